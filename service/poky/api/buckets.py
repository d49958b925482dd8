"""/buckets: what buckets there are, and making and dropping them."""

from poky.api.request import read_query, require_bucket
from poky.api.services import Services
from poky.config import url_of
from poky.http import Answer, Environ, bare, json, refuse


def get_buckets(services: Services, environ: Environ) -> Answer:
    """All buckets that may be listed, with PostgreSQL's estimates."""
    read_query(environ)
    found = services.store.buckets()
    grants = environ.get("poky.grants")  # of now, after the statement; None without tokens
    buckets = [
        {
            "name": each.name,
            "schema": each.kind,
            "estimated_rows": each.estimated_rows,
            "bytes": each.bytes,
            "ttl": each.default_ttl,
        }
        for each in found
        if grants is None or grants.allow("list", each.name)
    ]
    return json({"buckets": buckets})


def ensure_bucket(services: Services, environ: Environ, bucket: str) -> Answer:
    """Create a bucket; 200 also if it is there."""
    require_bucket(bucket)
    created = services.store.ensure_bucket(bucket)
    environ["poky.outcome"] = "created" if created else "exists"
    return bare(200)


def drop_bucket(services: Services, environ: Environ, bucket: str) -> Answer:
    """Drop a bucket; 409 if it has keys and the query does not say keys=drop."""
    require_bucket(bucket)
    keys = read_query(environ, "keys").get("keys")
    if keys not in (None, "drop"):
        raise refuse(
            400, "bad_query", "keys, if given, is drop: the bucket is dropped with its keys."
        )
    outbox_id = services.store.drop_bucket(bucket, keys=keys == "drop")
    if outbox_id is not None:
        services.caches.forget_bucket(outbox_id)
    return bare(200)


def ensure_bucket_by_token(services: Services, environ: Environ, bucket: str) -> Answer:
    """Create a bucket on the listener that clients reach: only where tokens decide."""
    _require_tokens(services)
    return ensure_bucket(services, environ, bucket)


def drop_bucket_by_token(services: Services, environ: Environ, bucket: str) -> Answer:
    """Drop a bucket on the listener that clients reach: only where tokens decide."""
    _require_tokens(services)
    return drop_bucket(services, environ, bucket)


def _require_tokens(services: Services) -> None:
    if services.gate is None:
        raise refuse(
            403,
            "admin_listener_needed",
            "Buckets are created and dropped on the admin listener: curl -X PUT"
            f" {url_of(services.config.admin_listen, services.config.admin_port)}/buckets/NAME,"
            " or by: poky bucket create NAME.",
        )
