# bounded: a copy that missed its purge may live to the end of its TTL.

sub poky_mode_hit_epoch {
    set req.http.Poky-Key = "=bounded" + obj.http.Poky-Tag;
}

sub poky_mode_deliver_epoch {
    set req.http.Poky-Key = "=bounded" + resp.http.Poky-Tag;
}

sub poky_mode_hit_object {
}

sub poky_mode_object_life {
    call poky_value_object_ttl;
    set beresp.keep = 0s;
}
