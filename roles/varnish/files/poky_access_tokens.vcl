# Tokens: a read is decided before anything of the cache is used for it. (POKY_ACCESS=tokens)
#
# The decision is one more object: what the service says of this Authorization in this bucket, kept under
# (generation, policy, bucket, Authorization). A change of tokens or of a public bucket is purged here as
# PURGE /policy, before it is acknowledged: it replaces the policy's tag, so that no older decision is found
# again. Decisions live under the same lease as objects: a node that missed a purge holds none.
# Included by poky_values.vcl: these subroutines run before those of poky.vcl. Without tokens nothing of
# this is loaded. Misses, lists and writes are decided by the service, which is sent the Authorization.

# req.http.Poky-Access: "lease" and "ask" = what is looked up; "granted"; "service" = no lease, the
# service decides; "" = a request that is passed anyway.
sub vcl_recv {
    if (local.socket == "purge") {
        if (req.method == "PURGE" && req.url == "/policy") {
            var.global_set("poky_policy", "=" + std.time2real(now, 0.0) + "-" + req.xid);
            return (synth(200, "Purged"));
        }
    } elseif (req.method == "GET" || req.method == "HEAD") {
        if (req.restarts == 0) {
            call poky_access_begin;
        } elseif (req.http.Poky-Access == "ask") {
            return (hash);
        } elseif (req.http.Poky-Access == "service" && !req.http.Poky-Key) {
            # It was passed for want of a lease, and now there is one: from the beginning.
            call poky_access_decide;
        }
    }
}

# No header of a client's steers what follows. (One by one: an expression over all headers is a tenth of a hit.)
sub poky_access_begin {
    unset req.http.Poky-Access;
    unset req.http.Poky-Policy;
    unset req.http.Poky-Key;
    unset req.http.Poky-Tag;
    unset req.http.Poky-Checked;
    unset req.http.Poky-Missed;
    if (req.url ~ "%") {
        call poky_recv_escapes;
    }
    if (req.url ~ "^/kv/[A-Za-z0-9_.,-]+/[A-Za-z0-9_.,~:@=+/-]+$") {
        if (req.http.Range) {
            call poky_recv_range;
        }
        call poky_access_decide;
    }
}

# The lease comes first: without one nothing is decided from the cache.
sub poky_access_decide {
    if (std.real(var.global_get("poky_until"), 0.0) > std.time2real(now, 0.0)) {
        set req.http.Poky-Policy = var.global_get("poky_generation") + var.global_get("poky_policy");
        set req.http.Poky-Access = "ask";
    } else {
        set req.http.Poky-Access = "lease";
    }
    return (hash);
}

sub vcl_hash {
    if (req.http.Poky-Access == "ask") {
        # What the client chose comes last, so that it cannot be taken for the rest.
        hash_data("access " + req.http.Poky-Policy + " " + regsub(req.url, "^/kv/([^/]+)/.*$", "\1") + " " +
            req.http.Authorization);
        return (lookup);
    }
    if (req.http.Poky-Access == "lease") {
        hash_data("lease");
        return (lookup);
    }
}

sub vcl_hit {
    if (req.http.Poky-Access == "ask") {
        if (obj.http.Poky-Granted) {
            set req.http.Poky-Access = "granted";
            return (restart);
        }
        return (deliver);
    }
    if (req.http.Poky-Access == "lease") {
        return (deliver);
    }
}

sub vcl_miss {
    if (req.http.Poky-Access == "ask" || req.http.Poky-Access == "lease") {
        return (fetch);
    }
}

sub vcl_backend_fetch {
    if (bereq.retries == 0 && !bereq.uncacheable) {
        if (bereq.http.Poky-Access == "ask") {
            set bereq.url = "/access/" + regsub(bereq.url, "^/kv/([^/]+)/.*$", "\1");
            call poky_access_fetch_bare;
            set bereq.backend = poky_lease.backend();
            return (fetch);
        }
        if (bereq.http.Poky-Access == "lease") {
            call poky_fetch_lease;
            return (fetch);
        }
        if (bereq.http.Poky-Key && bereq.http.Poky-Key != "lease") {
            call poky_access_fetch_bare;
            set bereq.backend = poky_service.backend();
            return (fetch);
        }
    }
}

# The service decides on this fetch by the Authorization of the client that missed; what it fetched is
# for all whose own decision says so.
sub poky_access_fetch_bare {
    header.regsub(bereq, "(?i)^(?!If-None-Match:|Authorization:).*$", "Poky-Dropped: 1");
    unset bereq.http.Poky-Dropped;
    unset bereq.body;
    set bereq.http.Host = "poky";
}

# A decision ends with its token; nine tenths, for clocks that run at different rates. A refusal is for those
# who wait for it: nothing would purge the guesses of all clients.
sub vcl_backend_response {
    if (!bereq.uncacheable && bereq.url ~ "^/access/") {
        unset beresp.http.Poky-Granted;
        call poky_beresp_waiters_only;
        set beresp.keep = 0s;
        if (beresp.status == 200) {
            set beresp.http.Poky-Granted = "1";
            set beresp.ttl = 1h;
            if (beresp.http.Poky-Access) {
                set beresp.ttl = std.duration(beresp.http.Poky-Access + "s", 0s) * 0.9 - (now - bereq.time);
                if (beresp.ttl > 1h) {
                    set beresp.ttl = 1h;
                }
                if (beresp.ttl <= 0s) {
                    call poky_beresp_waiters_only;
                }
            }
        }
        set beresp.http.Poky-Internal = "access";
        return (deliver);
    }
    # The client that missed was granted this a moment ago, and is not any more. Its refusal is its own: each
    # of those who wait for the same object asks anew.
    if (!bereq.uncacheable && (beresp.status == 401 || beresp.status == 403) && bereq.url != "/lease") {
        call poky_beresp_pass;
        set beresp.uncacheable = true;
        set beresp.ttl = 0s;
        set beresp.grace = 0s;
        set beresp.keep = 0s;
        return (deliver);
    }
}

sub vcl_backend_error {
    if (!bereq.uncacheable && bereq.url ~ "^/access/") {
        call poky_beresp_waiters_only;
        set beresp.http.Poky-Internal = "access";
        return (deliver);
    }
}

sub vcl_deliver {
    if (req.http.Poky-Access == "lease") {
        if (resp.http.Poky-Generation) {
            set req.http.Poky-Policy = resp.http.Poky-Generation + var.global_get("poky_policy");
            set req.http.Poky-Access = "ask";
        } else {
            set req.http.Poky-Access = "service";
            set req.http.Poky-Key = "none";
        }
        return (restart);
    }
    if (req.http.Poky-Access == "ask") {
        call poky_access_deliver;
    }
    # But for a lease that is denied: what is looked up with it is not refused.
    if ((resp.status == 401 || resp.status == 403) && !resp.http.Poky-Internal) {
        return (deliver);
    }
}

sub poky_access_deliver {
    if (resp.http.Poky-Granted) {
        set req.http.Poky-Access = "granted";
        return (restart);
    }
    if (resp.status == 401 || resp.status == 403) {
        unset resp.http.Poky-Internal;
        set resp.http.X-Cache = "PASS";
        set resp.http.X-Served-By = server.identity;
        return (deliver);
    }
    # No decision to be had: the service says what is wrong.
    set req.http.Poky-Access = "service";
    set req.http.Poky-Key = "none";
    return (restart);
}
