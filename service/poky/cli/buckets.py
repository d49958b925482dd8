"""``poky bucket``."""

import click

from poky.cli.context import Failed, as_json, dsn_option, open_caches, open_store
from poky.cli.output import print_json, print_table, show_pairs
from poky.store import StoreError


@click.group()
def bucket() -> None:
    """Create, list and drop buckets."""


@bucket.command("create", epilog="\b\nExample:\n  poky bucket create tooltips")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@dsn_option
@as_json
def create_bucket(names: tuple[str, ...], dsn: str | None, as_json: bool) -> None:
    """Create buckets; those that exist stay as they are."""
    with open_store(dsn) as store:
        done = {name: "created" if store.ensure_bucket(name) else "exists" for name in names}
    show_pairs(done, as_json)


@bucket.command("list")
@dsn_option
@as_json
def list_buckets(dsn: str | None, as_json: bool) -> None:
    """List buckets with PostgreSQL's estimate of rows and the bytes on disk.

    public is what the bucket allows without a token: read, or none.
    """
    with open_store(dsn) as store:
        buckets, public = store.buckets(), {*store.public_buckets()}
    rows = [
        each._asdict() | {"public": "read" if each.name in public else "none"} for each in buckets
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ["bucket", "schema", "rows (about)", "bytes", "public"],
        [
            [
                each["name"],
                each["kind"],
                f"{each['estimated_rows']:,}",
                f"{each['bytes']:,}",
                each["public"],
            ]
            for each in rows
        ],
    )


@bucket.command("drop", epilog="\b\nExample:\n  poky bucket drop tooltips --keys")
@click.argument("name")
@click.option("--keys", is_flag=True, help="Also if the bucket has keys: they are lost.")
@dsn_option
@as_json
def drop_bucket(name: str, keys: bool, dsn: str | None, as_json: bool) -> None:
    """Drop a bucket; one with keys only with --keys."""
    with open_store(dsn) as store:
        try:
            outbox_id = store.drop_bucket(name, keys=keys)
        except StoreError as error:
            if error.code != "bucket_not_empty":
                raise
            detail = f"{error.detail} Say --keys to drop it with its keys."
            raise Failed(detail, code=error.code) from error
        if outbox_id is not None:
            with open_caches(store) as caches:
                caches.purge_all()
            store.confirm([outbox_id])
    show_pairs({name: "dropped"}, as_json)


@bucket.command("set", epilog="\b\nExample:\n  poky bucket set tooltips --public read")
@click.argument("name")
@click.option(
    "--public",
    type=click.Choice(["read", "none"]),
    required=True,
    help="read: its objects are read without a token. none: only with one.",
)
@dsn_option
@as_json
def set_bucket(name: str, public: str, dsn: str | None, as_json: bool) -> None:
    """Change a bucket; returns when the change holds at every instance and cache."""
    with open_store(dsn, as_owner=True) as store:
        outbox_id = store.publish_bucket(name, public == "read")
        if outbox_id is not None:
            with open_caches(store) as caches:
                caches.forget_policy(outbox_id)
            store.confirm([outbox_id])
    show_pairs({name: "is read without a token" if public == "read" else "needs a token"}, as_json)
