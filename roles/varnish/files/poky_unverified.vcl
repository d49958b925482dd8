# Unverified: for a while, copies are served without a lease while the service says that PostgreSQL is away.
# (varnish_serve_unverified)
#
# What that gives up: a copy may be older than a write that was acknowledged after the lease had ended. So it
# is marked, and it needs three things: the service answers, and says so (Poky-Database: away), not merely
# somebody who does not answer; the lease before was not refused; and it ended less than so many seconds ago.
# Included by poky_values.vcl: these subroutines run before those of poky.vcl. Without the setting nothing of
# this is loaded.

sub vcl_recv {
    if (req.restarts == 0) {
        unset req.http.Poky-Unverified;
    }
}

sub vcl_backend_response {
    if (!bereq.uncacheable && bereq.url == "/lease") {
        if (beresp.status == 503 && beresp.http.Poky-Database == "away") {
            # It is asked once a second.
            var.global_set("poky_away_until", std.time2real(now + 3s, 0.0));
        } else {
            var.global_set("poky_away_until", "0");
        }
        call poky_unverified_lease;
        unset beresp.http.Poky-Database;
    }
}

sub poky_unverified_lease {
    if (beresp.status == 403) {
        var.global_set("poky_unverified_until", "0");
    } elseif (beresp.status == 200 && beresp.http.Poky-Generation ~ "^[A-Za-z0-9_-]+$" &&
        now - bereq.time < std.duration(beresp.http.Poky-Lease + "s", 0s) * 0.9) {
        call poky_value_unverified;
        var.global_set("poky_unverified_until", "0");
        var.global_set("poky_unverified_generation", "=" + beresp.http.Poky-Generation);
        var.global_set("poky_unverified_until", std.time2real(
            bereq.time + std.duration(beresp.http.Poky-Lease + "s", 0s) * 0.9 +
            std.duration(bereq.http.Poky-Unverified + "s", 0s), 0.0));
        unset bereq.http.Poky-Unverified;
    }
}

# No copy under the last lease: as without a lease.
sub vcl_miss {
    if (req.http.Poky-Unverified && req.http.Poky-Key ~ "^=") {
        unset req.http.Poky-Unverified;
        set req.http.Poky-Key = "none";
        return (restart);
    }
}

sub vcl_deliver {
    if (resp.http.Poky-Internal == "lease" && !resp.http.Poky-Generation &&
        std.real(var.global_get("poky_away_until"), 0.0) > std.time2real(now, 0.0) &&
        std.real(var.global_get("poky_unverified_until"), 0.0) > std.time2real(now, 0.0)) {
        set req.http.Poky-Unverified = "1";
        set req.http.Poky-Key = var.global_get("poky_unverified_generation") + req.http.Poky-Tag;
        return (restart);
    }
    if (req.http.Poky-Unverified && req.http.Poky-Key ~ "^=" && resp.http.Cache-Status) {
        set resp.http.Cache-Status = "poky; hit; detail=unverified";
        set resp.http.Warning = {"110 poky "Response is Stale""};
    }
}
