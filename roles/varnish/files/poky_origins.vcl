# Origins: what lets pages of other origins read an answer (CORS), when it is sent. (POKY_CORS_ORIGINS)
#
# An object is cached once, without any of these fields, and no Origin is part of a key. What is passed comes
# from the service with the same fields.
# Included by poky_values.vcl: these subroutines run before those of poky.vcl. Without origins nothing of
# this is loaded.

sub vcl_backend_response {
    if (!bereq.uncacheable) {
        unset beresp.http.Vary;
        unset beresp.http.Access-Control-Allow-Origin;
        unset beresp.http.Access-Control-Expose-Headers;
        if (beresp.http.Cross-Origin-Resource-Policy) {
            set beresp.http.Cross-Origin-Resource-Policy = "same-origin";
        }
    }
}

sub vcl_deliver {
    if (!resp.http.Poky-Internal && !resp.http.Poky-Granted) {
        call poky_origins_deliver;
        if (resp.http.Cross-Origin-Resource-Policy) {
            set resp.http.Cross-Origin-Resource-Policy = "cross-origin";
        }
    }
}

sub vcl_synth {
    call poky_origins_deliver;
}

sub poky_origins_deliver {
    call poky_value_origins;
    unset resp.http.Access-Control-Allow-Origin;
    if (req.http.Poky-Origins == "|*|") {
        set resp.http.Access-Control-Allow-Origin = "*";
    } else {
        if (!resp.http.Vary) {
            set resp.http.Vary = "Origin";
        } elseif (resp.http.Vary !~ "(?i)\bOrigin\b") {
            set resp.http.Vary = resp.http.Vary + ", Origin";
        }
        if (req.http.Origin ~ "^[^|]+$" && str.contains(req.http.Poky-Origins, "|" + req.http.Origin + "|")) {
            set resp.http.Access-Control-Allow-Origin = req.http.Origin;
        }
    }
    unset req.http.Poky-Origins;
    if (resp.http.Access-Control-Allow-Origin) {
        set resp.http.Access-Control-Expose-Headers =
            "Accept-Encoding, Accept-Ranges, Allow, Cache-Status, Content-Encoding, Content-Range, Date, ETag, " +
            "Poky-Expires, Poky-Outcome, Retry-After, WWW-Authenticate, X-Cache, X-Request-ID, X-Served-By";
    }
}
