# Poky's cache: a GET that starts after a write was acknowledged returns that write or a later one.
#
# A read is two lookups. The first finds the key's epoch: an object that Varnish makes itself, holding
# a tag that is never repeated. The second finds the object under (generation, tag, URL). PURGE removes
# the epoch: whatever is in flight under the old tag lands where no lookup finds it.
# The generation comes from the service with a lease; without a lease nothing is served from the cache.
# docs/decisions/0005-epoch-and-node-lease.md has the proof and the measurements.
#
# This file is the same everywhere. poky_values.vcl holds what differs between machines, and includes one
# poky_mode_*.vcl: what a read may rely on.
# Hash scheme 1. A change of vcl_hash, of the tag or of the generation's form needs a restart of
# varnishd, not a reload: a rollback would bring back objects that missed their purges.

vcl 4.1;

import blob;
import directors;
import header;
import purge;
import std;
import str;
import var;

include "poky_values.vcl";

# --- Requests ------------------------------------------------------------------------------------

# A read comes here several times. The first time it looks for the epoch; after that req.http.Poky-Key
# says for what: nothing = the epoch once more, "lease", "none" = it goes without a lease,
# "pass" = to the service, else the object under this generation and tag.
sub vcl_recv {
    if (req.restarts > 0) {
        call poky_recv_again;
    }
    if (local.socket == "purge") {
        call poky_recv_purge;
    }
    if (req.url ~ "%") {
        call poky_recv_escapes;
    }
    if (req.http.Range) {
        call poky_recv_range;
    }
    if (req.method != "GET" && req.method != "HEAD") {
        return (pass);
    }
    return (hash);
}

sub poky_recv_again {
    if (req.http.Poky-Key == "pass") {
        return (pass);
    }
    return (hash);
}

# Escapes of characters that names may have are decoded once, here: all spellings of a key share one copy
# and one purge. With any other escape (%2F, %25, %00) the URL goes to the service as it came.
sub poky_recv_escapes {
    if (req.url ~ "(?i)^/(?:kv|multi|buckets)/(?:[^%?]++|%(?:2[b-e]|3[0-9ad]|4[0-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9ae]))++$") {
        set req.url = blob.transcode(decoding=URL, encoding=IDENTITY, encoded=req.url);
    }
}

# Only a GET has a range, and here only one plain range of bytes: whatever else it says may be ignored (RFC
# 9110 14.2), and is, before Varnish judges it. Numbers that Varnish cannot hold stand for the end.
# Every change of a field leaves a copy in the workspace: a long list of ranges goes unchanged.
# And only an object has parts: Varnish would cut a list, which is another one when the next part is asked for.
sub poky_recv_range {
    std.collect(req.http.Range);
    if (req.http.Range ~ "(?i)^bytes=[0-9]{0,99}+-[0-9]{0,99}+$" && req.url ~ "^/kv/[^/?]++/") {
        call poky_recv_one_range;
    } else {
        unset req.http.Range;
    }
}

sub poky_recv_one_range {
    set req.http.Range = regsub(req.http.Range, "(?i)^bytes=", "bytes=");
    set req.http.Range = regsuball(req.http.Range, "(?<![0-9])0++(?=[0-9])", "");
    set req.http.Range = regsub(req.http.Range, "^bytes=([0-9]++)-[0-9]{15,}+$", "bytes=\1-");
    set req.http.Range = regsub(req.http.Range, "^bytes=[0-9]{15,}+-$", "bytes=99999999999999-");
    set req.http.Range = regsub(req.http.Range, "^bytes=-[0-9]{15,}+$", "bytes=-99999999999999");
    if (req.method != "GET" || req.http.Range !~ "^bytes=(?:[0-9]{1,14}+-[0-9]{0,14}+|-[0-9]{1,14}+)$" || (
        req.http.Range ~ "^bytes=[0-9]++-[0-9]" &&
        std.integer(regsub(req.http.Range, "^bytes=([0-9]++).*", "\1"), 0) >
        std.integer(regsub(req.http.Range, "^.*-", ""), 0))) {
        unset req.http.Range;
    }
}

# PURGE has a listener of its own (-a purge=...), which only the service can reach: behind nginx on
# the same host every client is 127.0.0.1, and an ACL would protect nothing.
sub poky_recv_purge {
    if (req.method == "PURGE" && req.url ~ "^/kv/[A-Za-z0-9_.,-]+/[A-Za-z0-9_.,~:@=+/-]+$") {
        return (purge);
    }
    if (req.method == "PURGE" && req.url == "/policy") {
        # Without poky_access_tokens.vcl, which comes first, nothing was decided here.
        return (synth(200, "Purged"));
    }
    if (req.method == "GET" && req.url == "/node") {
        return (synth(200, "Node"));
    }
    if (req.method != "PURGE" && req.method != "GET") {
        return (synth(405, "Method Not Allowed"));
    }
    return (synth(404, "Not Found"));
}

# --- Lookups -------------------------------------------------------------------------------------

# On the URL, never on Host. The three kinds cannot meet: a generation begins with "=".
sub vcl_hash {
    if (req.restarts == 0 || !req.http.Poky-Key || req.http.Poky-Key == "none") {
        hash_data("epoch" + req.url);
    } elseif (req.http.Poky-Key == "lease") {
        hash_data("lease");
    } else {
        hash_data(req.http.Poky-Key + req.url);
    }
    return (lookup);
}

sub vcl_hit {
    if (req.restarts == 0 || !req.http.Poky-Key) {
        call poky_mode_hit_epoch;
        return (restart);
    }
    if (req.http.Poky-Key == "none") {
        call poky_hit_without_lease;
    }
    call poky_mode_hit_object;
    return (deliver);
}

# What the service answers may be a write that is not acknowledged yet: our copy must not come back
# after that, when we hold a lease again.
sub poky_hit_without_lease {
    purge.hard();
    return (pass);
}

sub vcl_miss {
    if (req.restarts == 0) {
        call poky_miss_epoch;
    } elseif (req.http.Poky-Key == "none") {
        return (pass);
    }
    return (fetch);
}

# One object has one cacheable spelling; a purge would miss a copy under any other. Only a canonical
# URL ever gets an epoch, so a hit need not ask. Nothing here or before resolves "//", "/./" or "/../":
# the service refuses them, and a refusal is not kept.
sub poky_miss_epoch {
    unset req.http.Poky-Key;
    if (req.url !~ "^/kv/[A-Za-z0-9_.,-]+/[A-Za-z0-9_.,~:@=+/-]+$") {
        return (pass);
    }
}

sub vcl_pass {
    return (fetch);
}

sub vcl_purge {
    return (synth(200, "Purged"));
}

# --- Fetches -------------------------------------------------------------------------------------

sub vcl_backend_fetch {
    if (bereq.retries > 0) {
        # Prepared already; the director names another instance.
        return (fetch);
    }
    if (bereq.uncacheable) {
        call poky_fetch_pass;
        return (fetch);
    }
    if (!bereq.http.Poky-Key) {
        return (error(200, "Epoch"));
    }
    if (bereq.http.Poky-Key == "lease") {
        call poky_fetch_lease;
        return (fetch);
    }
    call poky_fetch_object;
    return (fetch);
}

sub poky_fetch_pass {
    header.regsub(bereq, "(?i)^Poky-(?!TTL:)[^:]*:.*$", "Poky-Dropped: 1");
    unset bereq.http.Poky-Dropped;
    set bereq.http.Poky-Cache = "expiry";
    # The service compares it with the origin of a page that writes.
    if (!bereq.http.X-Forwarded-Host) {
        set bereq.http.X-Forwarded-Host = bereq.http.Host;
    }
    set bereq.http.Host = "poky";
    set bereq.backend = poky_service.backend();
    if (bereq.method != "GET" && bereq.method != "HEAD") {
        call poky_value_write_timeout;
        call poky_fetch_size;
        if (!std.healthy(bereq.backend)) {
            # Sent to nobody: so the answer is certain (poky_error_unsent).
            set bereq.http.Poky-Unsent = "1";
            return (error(503, "No instance is ready"));
        }
        return;
    }
    # A read has no body: that of a restarted request is gone, and the service would wait for its length.
    # (VCL may not unset these two by name from Varnish 7.6 on.)
    unset bereq.body;
    header.regsub(bereq, "(?i)^(?:Content-Length|Transfer-Encoding):.*$", "Poky-Dropped: 1");
    unset bereq.http.Poky-Dropped;
    if (bereq.url ~ "^/changes/") {
        # These may wait for a minute: connections of their own, so that they use up no others.
        set bereq.backend = poky_follow.backend();
    }
}

# The service gives a statement half a second for each MB (docs/configuration.md, Time).
sub poky_fetch_size {
    set bereq.first_byte_timeout = bereq.first_byte_timeout +
        std.duration(real=std.real(bereq.http.Content-Length, 0.0) / 2097152.0);
}

sub poky_fetch_object {
    call poky_fetch_bare;
    set bereq.http.Poky-Cache = "expiry";
    set bereq.backend = poky_service.backend();
}

# A listener and threads of its own: a busy service must not cost us the lease. After its first tenth every
# read starts a refresh unless one runs; after one that failed, half a second of them end here.
sub poky_fetch_lease {
    if (bereq.is_bgfetch && std.real(var.global_get("poky_retry"), 0.0) > std.time2real(now, 0.0)) {
        return (abandon);
    }
    call poky_fetch_bare;
    set bereq.url = "/lease";
    set bereq.http.Poky-Node = server.identity;
    set bereq.backend = poky_lease.backend();
}

# What is shared by all clients must not depend on any client's headers; the names of the request that began it
# are for the service's log. Varnish has put If-None-Match there itself, if it holds an expired copy.
sub poky_fetch_bare {
    header.regsub(bereq, "(?i)^(?!(?:If-None-Match:|X-Request-Id: ?[A-Za-z0-9._:+/=-]{1,128}$|Traceparent: ?[0-9a-f-]{55}$)).*$", "Poky-Dropped: 1");
    unset bereq.http.Poky-Dropped;
    unset bereq.body;
    set bereq.http.Host = "poky";
}

# --- Answers -------------------------------------------------------------------------------------

sub vcl_backend_response {
    if (bereq.uncacheable) {
        call poky_beresp_pass;
    } elseif (bereq.url == "/lease") {
        call poky_beresp_lease;
    } elseif (beresp.status == 200) {
        call poky_beresp_object;
    } else {
        call poky_beresp_transient;
    }
    if (beresp.http.Content-Encoding) {
        call poky_beresp_coded;
    }
    if (beresp.http.Content-Length) {
        call poky_beresp_whole;
    }
    return (deliver);
}

# Bytes are the client's, whatever coding it gave them: Varnish would check that gzip is gzip, and answer 503
# if not. And it takes the coding off an empty value (poky_deliver_coding).
sub poky_beresp_coded {
    set beresp.filters = "";
    if (beresp.http.Content-Length == "0") {
        set beresp.http.Poky-Coding = beresp.http.Content-Encoding;
    }
}

# What promises a length is sent once it is whole. If the instance dies in mid-body, or storage is full,
# nothing was sent yet and the read is tried once more (poky_error_unavailable), then without keeping it.
# Nor is kept what would evict too much of the cache (varnish_largest_kept).
sub poky_beresp_whole {
    set beresp.do_stream = false;
    call poky_value_largest_kept;
    if (!bereq.uncacheable && (bereq.http.Poky-Began ||
        std.integer(beresp.http.Content-Length, 0) > std.integer(bereq.http.Poky-Largest-Kept, 0))) {
        call poky_beresp_waiters_only;
        call poky_beresp_room;
    } elseif (bereq.uncacheable) {
        call poky_beresp_room;
    }
    set bereq.http.Poky-Began = "1";
}

# What is not kept is in Transient until its reader has it. Large answers leave room there for small ones,
# or slow readers of large values would cost writes their answers.
sub poky_beresp_room {
    call poky_value_small_room;
    if (std.integer(beresp.http.Content-Length, 0) > 65536 &&
        std.bytes(beresp.http.Content-Length + "B", 0B) + std.bytes(bereq.http.Poky-Small-Room, 0B) >
        storage.Transient.free_space) {
        set bereq.http.Poky-Full = "1";
        return (error(503, "Transient is full"));
    }
}

sub poky_beresp_pass {
    unset beresp.http.Poky-Internal;
    unset beresp.http.Poky-Left;
    set beresp.http.X-Cache = "PASS";
    set beresp.http.Cache-Status = "poky; fwd=bypass";
    set beresp.http.X-Served-By = server.identity;
}

# The headers of a hit are stored with the object: a hit then costs no header work.
# No grace: an expired copy would be served while it is fetched anew.
sub poky_beresp_object {
    unset beresp.http.Vary;
    unset beresp.http.Set-Cookie;
    unset beresp.http.Server-Timing;
    unset beresp.http.Poky-Internal;
    set beresp.http.Cache-Control = "no-cache";
    set beresp.http.X-Cache = "HIT";
    set beresp.http.X-Served-By = server.identity;
    set beresp.http.Cache-Status = "poky; hit";
    if (beresp.was_304) {
        set beresp.http.Cache-Status = "poky; fwd=stale; fwd-status=304; stored";
    }
    set beresp.grace = 0s;
    call poky_mode_object_life;
    if (beresp.http.Poky-Left) {
        call poky_beresp_expiry;
    }
}

# What the service says is left (without it, it would refuse us the object: Poky-Cache) counts from the
# start of the fetch, and nine tenths of it are used: no clock but PostgreSQL's matters, beyond its rate.
sub poky_beresp_expiry {
    set beresp.http.Poky-Left = std.duration(beresp.http.Poky-Left + "s", 0s) * 0.9 - (now - bereq.time);
    if (std.real(beresp.http.Poky-Left, 0.0) <= 0.0) {
        # Nor for reads that wait for this fetch: one may have begun after the object had expired.
        set beresp.ttl = 0s;
        set beresp.keep = 0s;
    } else {
        if (beresp.ttl > std.duration(beresp.http.Poky-Left + "s", 0s)) {
            set beresp.ttl = std.duration(beresp.http.Poky-Left + "s", 0s);
        }
        if (beresp.keep > std.duration(beresp.http.Poky-Left + "s", 0s)) {
            set beresp.keep = std.duration(beresp.http.Poky-Left + "s", 0s);
        }
    }
    unset beresp.http.Poky-Left;
}

# 404, 412, 5xx: for those who wait for this fetch, and expired for all who come later.
# Who waits has the same tag, so no write was acknowledged between the fetch and the wait.
sub poky_beresp_transient {
    unset beresp.http.Poky-Internal;
    set beresp.http.X-Cache = "MISS";
    set beresp.http.X-Served-By = server.identity;
    set beresp.http.Cache-Status = "poky; fwd=miss";
    call poky_beresp_waiters_only;
}

# Varnish compares a TTL with a request's arrival, so a TTL just above zero (at zero it skips the
# object) is for those who came before the answer. Kept a second, until the last of them has run.
sub poky_beresp_waiters_only {
    set beresp.ttl = 0.001ms;
    set beresp.grace = 0s;
    set beresp.keep = 1s;
}

# A lease of L seconds counts from the start of its fetch. We use nine tenths of it, for clocks that run
# at different rates: a tenth of that as TTL, the rest as grace, in which one background fetch renews it.
# So whenever PostgreSQL fails, at least 0.81 L are left.
sub poky_beresp_lease {
    set beresp.http.Poky-Internal = "lease";
    call poky_beresp_waiters_only;
    set beresp.keep = 0s;
    set beresp.grace = std.duration(beresp.http.Poky-Lease + "s", 0s) * 0.09;
    if (beresp.status == 403) {
        call poky_beresp_lease_denied;
    } elseif (beresp.status != 200 || beresp.http.Poky-Generation !~ "^[A-Za-z0-9_-]+$" ||
        now - bereq.time >= beresp.grace * 10.0) {
        call poky_beresp_lease_missing;
    } else {
        call poky_beresp_lease_granted;
    }
}

sub poky_beresp_lease_granted {
    set beresp.http.Poky-Generation = "=" + beresp.http.Poky-Generation;
    if (now - bereq.time < beresp.grace) {
        var.global_set("poky_until", "0");
        var.global_set("poky_generation", beresp.http.Poky-Generation);
        var.global_set("poky_until", std.time2real(bereq.time + beresp.grace, 0.0));
        set beresp.ttl = beresp.grace - (now - bereq.time);
        set beresp.grace = beresp.grace * 9.0;
    } else {
        set beresp.grace = beresp.grace * 10.0 - (now - bereq.time);
    }
}

# An old "no" is always safe: keep it and ask again in the background.
sub poky_beresp_lease_denied {
    var.global_set("poky_until", "0");
    unset beresp.http.Poky-Generation;
    set beresp.ttl = 1s;
    set beresp.grace = 1h;
}

# No answer, or one too late to use: the lease that we hold is good to its end.
sub poky_beresp_lease_missing {
    if (bereq.is_bgfetch) {
        var.global_set("poky_retry", std.time2real(now + 0.5s, 0.0));
        return (abandon);
    }
    unset beresp.http.Poky-Generation;
    set beresp.ttl = 1s;
    set beresp.grace = 1h;
}

sub vcl_backend_error {
    call poky_beresp_waiters_only;
    if (beresp.status == 200) {
        call poky_error_epoch;
        return (deliver);
    }
    if (!bereq.uncacheable && bereq.url == "/lease") {
        set beresp.http.Poky-Internal = "lease";
        call poky_beresp_lease_missing;
        return (deliver);
    }
    call poky_error_unavailable;
    return (deliver);
}

# A tag exists for others only once it is in the cache: what is fetched under it was read after that.
sub poky_error_epoch {
    set beresp.http.Poky-Internal = "epoch";
    set beresp.http.Poky-Tag = "=" + std.time2real(now, 0.0) + "-" + bereq.xid;
    set beresp.ttl = 7d;
}

sub poky_error_unavailable {
    if (bereq.retries == 0 && !bereq.http.Poky-Full && (bereq.method == "GET" || bereq.method == "HEAD")) {
        return (retry);
    }
    if (bereq.uncacheable) {
        call poky_beresp_pass;
    } else {
        call poky_beresp_transient;
    }
    set beresp.status = 503;
    set beresp.reason = "Service Unavailable";
    set beresp.http.Content-Type = "application/problem+json";
    set beresp.http.Cache-Control = "no-store";
    set beresp.http.Retry-After = "1";
    if (bereq.method == "GET" || bereq.method == "HEAD" || (bereq.method == "POST" && bereq.url ~ "^/multi/")) {
        set beresp.body = """{"type": "about:blank", "title": "Service Unavailable", "status": 503, """ +
            """"code": "service_unavailable", """ +
            """"detail": "The cache cannot get this from the service. Try again in a second."}""";
    } elseif (bereq.http.Poky-Unsent) {
        call poky_error_unsent;
    } else {
        call poky_error_outcome_unknown;
    }
}

sub poky_error_unsent {
    set beresp.body = """{"type": "about:blank", "title": "Service Unavailable", "status": 503, """ +
        """"code": "service_unavailable", """ +
        """"detail": "No instance of the service is ready; nothing was changed. Try again in a second."}""";
}

# The connection ended before the answer, after the request: the change may have been made.
sub poky_error_outcome_unknown {
    set beresp.http.Poky-Outcome = "unknown";
    set beresp.body = """{"type": "about:blank", "title": "Service Unavailable", "status": 503, """ +
        """"code": "outcome_unknown", """ +
        """"detail": "The service did not answer. The change may have been made: read before you repeat it."}""";
}

# --- Delivery ------------------------------------------------------------------------------------

sub vcl_deliver {
    if (resp.http.Poky-Internal) {
        call poky_deliver_internal;
    }
    # A modified_at stands still while the content changes: only the service can answer this.
    unset req.http.If-Modified-Since;
    if (req.http.Range) {
        call poky_deliver_range;
    }
    if (req.restarts > 0 && (req.http.If-Match || req.http.X-If-Match)) {
        call poky_deliver_if_match;
    }
    if (req.http.If-Unmodified-Since) {
        call poky_deliver_if_unmodified_since;
    }
    if (req.restarts > 0 && obj.age < now - req.time && resp.status < 500) {
        call poky_deliver_new;
    }
    if (req.http.If-None-Match) {
        call poky_deliver_if_none_match;
    }
    if (resp.http.Poky-Coding) {
        call poky_deliver_coding;
    }
    if (obj.hits == 0) {
        call poky_deliver_miss;
    }
    return (deliver);
}

sub poky_deliver_internal {
    if (resp.http.Poky-Tag) {
        call poky_mode_deliver_epoch;
    } elseif (resp.http.Poky-Generation) {
        set req.http.Poky-Key = resp.http.Poky-Generation + req.http.Poky-Tag;
    } else {
        set req.http.Poky-Key = "none";
    }
    return (restart);
}

# What was fetched after this read had begun may be a write that is not acknowledged yet. Unless its
# tag is still the one in use, others may be given an older copy after us: so look again. The same
# if it was passed for want of a lease, and now there is one. A round is two or three restarts, and
# there is another only if the key was written meanwhile: seven in a row are enough (max_restarts: 30).
sub poky_deliver_new {
    if (req.http.Poky-Key == "none" && req.restarts < 20 &&
        std.real(var.global_get("poky_until"), 0.0) > std.time2real(now, 0.0)) {
        unset req.http.Poky-Key;
        return (restart);
    }
    if (obj.hits == 0) {
        set req.http.Poky-Missed = req.http.Poky-Key;
    }
    if (req.http.Poky-Key != req.http.Poky-Checked && req.http.Poky-Key != "none" &&
        req.http.Poky-Key != "pass" && req.http.Poky-Key !~ "^=revalidate" && req.restarts < 20) {
        set req.http.Poky-Checked = req.http.Poky-Key;
        unset req.http.Poky-Key;
        return (restart);
    }
    if (req.http.Poky-Missed == req.http.Poky-Key) {
        call poky_deliver_miss;
    }
}

# If-Match on a read: a match is answered from here, all else by the service.
sub poky_deliver_if_match {
    if (req.http.Poky-Key != "none" && req.http.Poky-Key != "pass") {
        set req.http.Poky-If-Match = req.http.If-Match + req.http.X-If-Match;
        if (resp.status != 200 || (req.http.Poky-If-Match != "*" && (
            req.http.Poky-If-Match !~ {"^"(?:[!#-~]*+|[A-Za-z0-9:, -]*+)"(?:[ \t]*+,[ \t]*+"(?:[!#-~]*+|[A-Za-z0-9:, -]*+)")*+$"} || (
            !str.contains(req.http.Poky-If-Match, resp.http.ETag) &&
            !str.contains(req.http.Poky-If-Match, {"""} + resp.http.Last-Modified + {"""}))))) {
            set req.http.Poky-Key = "pass";
            return (restart);
        }
    }
}

# A date is the service's to compare: modified_at stands still while the content changes.
sub poky_deliver_if_unmodified_since {
    if (req.restarts > 0 && req.http.Poky-Key != "none" && req.http.Poky-Key != "pass") {
        set req.http.Poky-Key = "pass";
        return (restart);
    }
}

# Varnish compares a single tag, whatever the method; this adds "*" and lists for reads. A list that is not
# plainly legal is the service's to judge or refuse, and so are a write's conditions. Possessive: a
# client's list must not make the expression backtrack.
sub poky_deliver_if_none_match {
    if (req.method != "GET" && req.method != "HEAD") {
        unset req.http.If-None-Match;
    } elseif (req.http.If-None-Match == "*") {
        set req.http.If-None-Match = resp.http.ETag;
    } elseif (req.http.If-None-Match ~ {"^(?:W/)?+"[!#-~]*+"(?:[ \t]*+,[ \t]*+(?:W/)?+"[!#-~]*+")*+$"}) {
        if (resp.http.ETag && str.contains(req.http.If-None-Match, resp.http.ETag)) {
            set req.http.If-None-Match = resp.http.ETag;
        }
    } elseif (req.restarts > 0 && req.http.Poky-Key != "none" && req.http.Poky-Key != "pass") {
        set req.http.Poky-Key = "pass";
        return (restart);
    }
}

# Part of a value by the date that it had would be mixed with another value of that date. And Varnish
# (7.7) finds bytes in an empty value.
sub poky_deliver_range {
    if (req.http.If-Range && req.http.If-Range !~ {"^""}) {
        unset req.http.Range;
    }
    if (resp.http.Content-Length == "0") {
        unset req.http.Range;
    }
}

sub poky_deliver_coding {
    set resp.http.Content-Encoding = resp.http.Poky-Coding;
    unset resp.http.Poky-Coding;
}

sub poky_deliver_miss {
    if (resp.http.X-Cache == "HIT") {
        set resp.http.X-Cache = "MISS";
        if (resp.http.Cache-Status == "poky; hit") {
            set resp.http.Cache-Status = "poky; fwd=miss; stored";
        }
    }
}

sub vcl_synth {
    set resp.http.Cache-Control = "no-store";
    if (resp.status == 200) {
        set resp.http.Poky-Node = server.identity;
        set resp.body = "";
        return (deliver);
    }
    set resp.http.Content-Type = "application/problem+json";
    if (resp.status == 503) {
        set resp.http.Retry-After = "1";
    }
    call poky_synth_problem;
    return (deliver);
}

# The purge listener's refusals, and what Varnish says when VCL failed.
sub poky_synth_problem {
    if (resp.status == 404) {
        set resp.http.Poky-Code = "path_not_found";
    } elseif (resp.status == 405) {
        set resp.http.Poky-Code = "method_not_allowed";
    } else {
        set resp.http.Poky-Code = "service_unavailable";
    }
    set resp.body = {"{"type": "about:blank", "title": ""} + resp.reason + {"", "status": "} + resp.status +
        {", "code": ""} + resp.http.Poky-Code + {"", "detail": "The cache refused this request.""} + "}";
    unset resp.http.Poky-Code;
}
