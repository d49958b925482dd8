# lease: copies are used only while the service cannot have acknowledged a write without our purge.

# Two variables spare the lookup of the lease during its first tenth. "until" is read first and written
# last (poky_beresp_lease_granted), so that it never vouches for a generation older than its own.
sub poky_mode_hit_epoch {
    if (std.real(var.global_get("poky_until"), 0.0) > std.time2real(now, 0.0)) {
        set req.http.Poky-Key = var.global_get("poky_generation") + obj.http.Poky-Tag;
    } else {
        set req.http.Poky-Tag = obj.http.Poky-Tag;
        set req.http.Poky-Key = "lease";
    }
}

sub poky_mode_deliver_epoch {
    set req.http.Poky-Tag = resp.http.Poky-Tag;
    set req.http.Poky-Key = "lease";
}

sub poky_mode_hit_object {
}

sub poky_mode_object_life {
    call poky_value_object_ttl;
    set beresp.keep = 0s;
}
