# revalidate: every read asks the service, which answers 304 if the copy is still right.

sub poky_mode_hit_epoch {
    set req.http.Poky-Key = "=revalidate" + obj.http.Poky-Tag;
}

sub poky_mode_deliver_epoch {
    set req.http.Poky-Key = "=revalidate" + resp.http.Poky-Tag;
}

# A hit is the answer of a fetch that began before this request arrived.
sub poky_mode_hit_object {
    return (pass);
}

sub poky_mode_object_life {
    call poky_value_object_ttl;
    set beresp.keep = beresp.ttl;
    set beresp.ttl = 1ms;
}
