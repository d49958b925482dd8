"""/buckets: what buckets there are, and making and dropping them."""

from poky.api.request import read_query, require_bucket
from poky.api.services import Services
from poky.http import Answer, Environ, bare, json, refuse


def get_buckets(services: Services, environ: Environ) -> Answer:
    """All buckets, with PostgreSQL's estimates."""
    read_query(environ)
    buckets = [
        {
            "name": each.name,
            "schema": each.kind,
            "estimated_rows": each.estimated_rows,
            "bytes": each.bytes,
        }
        for each in services.store.buckets()
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
