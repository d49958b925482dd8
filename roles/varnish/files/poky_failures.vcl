# Failures: an address that sent many tokens that are not valid waits. (POKY_ACCESS=tokens)
#
# Each of them costs the service a query. What is decided already is not touched: others behind the same address
# read on from the cache.
# Included by poky_values.vcl: these subroutines run before those of poky.vcl.

import vsthrottle;

sub vcl_recv {
    # What has no decision of its own in the cache: the service would be asked.
    if (local.socket != "purge" && ((req.method != "GET" && req.method != "HEAD") ||
        req.url !~ "^/kv/[^/?]+/[^?]+$") && req.url ~ "^/(?:kv|multi|buckets|changes)") {
        call poky_failures_check;
    }
}

sub vcl_miss {
    if (req.http.Poky-Access == "ask") {
        call poky_failures_check;
    }
}

# Without a lease it is the service that decides.
sub vcl_pass {
    if (req.http.Poky-Access == "service") {
        call poky_failures_check;
    }
}

# nginx sets the first address of X-Forwarded-For.
sub poky_failures_check {
    call poky_value_failures;
    if (vsthrottle.remaining(regsub(req.http.X-Forwarded-For, ",.*", ""),
        std.integer(req.http.Poky-Failures, 0), 10s) <= 0) {
        return (synth(429, "Too Many Requests"));
    }
}

sub vcl_deliver {
    if (resp.status == 401) {
        call poky_value_failures;
        if (vsthrottle.is_denied(regsub(req.http.X-Forwarded-For, ",.*", ""),
            std.integer(req.http.Poky-Failures, 0), 10s)) {
            unset req.http.Poky-Failures;
        }
    }
}

sub vcl_synth {
    if (resp.status == 429) {
        set resp.http.Content-Type = "application/problem+json";
        set resp.http.Cache-Control = "no-store";
        set resp.http.Retry-After = "10";
        set resp.body = """{"type": "about:blank", "title": "Too Many Requests", "status": 429, """ +
            """"code": "too_many_failures", """ +
            """"detail": "This address sent too many tokens that are not valid. Try again in ten seconds."}""";
        return (deliver);
    }
}
