"""``poky bucket``."""

import click

from poky.cli.context import (
    Failed,
    as_json,
    dsn_option,
    failures,
    load_config,
    open_caches,
    open_store,
)
from poky.cli.durations import Duration, show_duration
from poky.cli.output import print_json, print_table, progress_bar, rate_bar, show_pairs
from poky.schema import moving
from poky.store import ShardedStore, StoreError


@click.group()
def bucket() -> None:
    """Create, list and drop buckets."""


_CLEARED = 1000  # in one transaction
_TTL = click.IntRange(0, 1_000_000_000)


@bucket.command(
    "create",
    epilog="\b\nExamples:\n  poky bucket create tooltips\n  poky bucket create sessions --ttl 3600",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--ttl", type=_TTL, help="Seconds after which their objects expire; 0: never.")
@click.option(
    "--shard",
    type=click.IntRange(0, 255),
    help="The database to make them in, of those in POKY_SHARDS; 0: control. Default: the one with"
    " the fewest bytes.",
)
@dsn_option
@as_json
def create_bucket(
    names: tuple[str, ...], ttl: int | None, shard: int | None, dsn: str | None, as_json: bool
) -> None:
    """Create buckets; those that exist stay as they are, and where they are, but for a --ttl."""
    with open_store(dsn) as store:
        if shard and (not isinstance(store, ShardedStore) or shard not in store.shards):
            raise Failed(
                f"There is no shard {shard}: POKY_SHARDS names those that there are.",
                code="no_shard",
            )
        given = {"shard": shard} if isinstance(store, ShardedStore) else {}
        done = {
            name: "created" if store.ensure_bucket(name, **given) else "exists" for name in names
        }
        if ttl is not None:
            for name in names:
                store.set_bucket_ttl(name, ttl)
    show_pairs(done, as_json)


@bucket.command("list")
@dsn_option
@as_json
def list_buckets(dsn: str | None, as_json: bool) -> None:
    """List buckets with PostgreSQL's estimate of rows and the bytes on disk.

    public is what the bucket allows without a token: read, or none. ttl: the seconds after which
    objects expire that are written without a ttl of their own. changes: for how long changes are
    kept, to be followed.
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
        ["bucket", "schema", "rows (about)", "bytes", "public", "ttl", "changes"],
        [
            [
                each["name"],
                each["kind"],
                f"{each['estimated_rows']:,}",
                f"{each['bytes']:,}",
                each["public"],
                "-" if each["default_ttl"] is None else str(each["default_ttl"]),
                show_duration(each["changes_kept"]),
            ]
            for each in rows
        ],
    )


@bucket.command(
    "clear",
    epilog="\b\nExamples:\n  poky bucket clear builds --prefix 2026/11/ --confirm 2026/11/\n"
    "  poky bucket clear builds --confirm builds",
)
@click.argument("name")
@click.option("--prefix", default="", help="Only keys that begin with it. Default: all.")
@click.option("--confirm", help="The prefix again, or the bucket's name for all keys.")
@dsn_option
@as_json
def clear_bucket(
    name: str, prefix: str, confirm: str | None, dsn: str | None, as_json: bool
) -> None:
    """Delete a bucket's keys, a thousand in a transaction; the bucket stays.

    What is deleted stays so when the command is interrupted: the same command goes on.
    """
    if confirm != (prefix or name):
        raise Failed(
            f"This deletes {f'keys that begin with {prefix}' if prefix else 'all keys'}:"
            f" say --confirm {prefix or name} to do so.",
            code="not_confirmed",
        )
    deleted = 0
    after: str | None = ""
    with open_store(dsn) as store, open_caches(store) as caches:
        rows = {each.name: each.estimated_rows for each in store.buckets()}
        with rate_bar("delete", None if prefix else rows.get(name)) as report:
            while after is not None:
                page = store.list_page(name, prefix, after, _CLEARED)
                keys = [each.key for each in page.entries]
                none = [None] * len(keys)
                outcomes = store.delete_many(name, keys, none, none, none, False) if keys else []
                if ids := [each.outbox_id for each in outcomes if each.outbox_id]:
                    caches.purge_keys(name, keys)
                    store.confirm(ids)
                deleted += sum(each.outcome == "deleted" for each in outcomes)
                report(deleted)
                after = page.next
    if as_json:
        print_json({"deleted": deleted})
    else:
        click.echo(f"{name}: {deleted:,} deleted")


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


@bucket.command(
    "set",
    epilog="\b\nExamples:\n  poky bucket set tooltips --public read\n"
    "  poky bucket set sessions --ttl 3600\n  poky bucket set tooltips --changes 7d",
)
@click.argument("name")
@click.option(
    "--public",
    type=click.Choice(["read", "none"]),
    help="read: its objects are read without a token. none: only with one.",
)
@click.option(
    "--ttl",
    type=_TTL,
    help="Seconds after which objects expire that are written from now on; 0: never.",
)
@click.option(
    "--changes",
    type=Duration(),
    help="For how long its changes are kept, to be followed: 7d, 12h, 30m. none: not at all.",
)
@dsn_option
@as_json
def set_bucket(
    name: str,
    public: str | None,
    ttl: int | None,
    changes: int | None,
    dsn: str | None,
    as_json: bool,
) -> None:
    """Change a bucket; returns when the change holds at every instance and cache."""
    if public is None and ttl is None and changes is None:
        raise click.UsageError("Say what to change: --public, --ttl or --changes.")
    done = []
    with open_store(dsn, as_owner=(public, changes) != (None, None)) as store:
        if ttl is not None:
            store.set_bucket_ttl(name, ttl)
            done.append(f"expires after {ttl} s" if ttl else "does not expire")
        if changes is not None:
            store.keep_changes(name, changes or None)
            kept = f"keeps its changes for {show_duration(changes)}"
            done.append(kept if changes else "keeps no changes")
        if public is not None:
            outbox_id = store.publish_bucket(name, public == "read")
            if outbox_id is not None:
                with open_caches(store) as caches:
                    caches.forget_policy(outbox_id)
                store.confirm([outbox_id])
            done.append("is read without a token" if public == "read" else "needs a token")
    show_pairs({name: ", ".join(done)}, as_json)


@bucket.command(
    "move",
    epilog="\b\nExamples:\n  poky bucket move tooltips --to 1\n  poky bucket move --abort",
)
@click.argument("name", required=False)
@click.option("--to", "target", type=click.IntRange(0, 255), help="The shard; 0: control.")
@click.option("--abort", is_flag=True, help="Give the move up that was begun.")
@as_json
def move_bucket(name: str | None, target: int | None, abort: bool, as_json: bool) -> None:
    """Move a bucket to another of the databases in POKY_OWNER_SHARDS, while it is used.

    Reads go on; writes pause for a moment (below a second). What was interrupted goes on where it
    was: the same command again. One bucket at a time.
    """
    if abort == (name is not None and target is not None):
        raise click.UsageError("Say NAME and --to, or --abort alone.")
    config = load_config()
    if not config.owner_shards:
        raise Failed(
            "There is one database only: POKY_SHARDS and POKY_OWNER_SHARDS name others.",
            code="no_shard",
        )
    owners = {0: config.owner_dsn} | {each.number: each.dsn for each in config.owner_shards}
    among = {each.number: each.dsn for each in config.move_shards}
    with failures():
        if name is None or target is None:
            given_up = moving.abort(owners)
            click.echo(
                f"{given_up.name}: stays on shard {given_up.source}"
                if given_up
                else "No bucket is being moved."
            )
            return
        with progress_bar() as progress:
            moved = moving.move(owners, name, target, progress, among=among)
    if as_json:
        there = moving.Moved(name, target, target, 0.0, None)
        print_json((moved or there)._asdict())
    elif moved is None:
        click.echo(f"{name}: is on shard {target}")
    else:
        paused = (
            ""
            if moved.pause_seconds is None
            else f", writes paused for {moved.pause_seconds:.2f} s"
        )
        click.echo(
            f"{name}: moved from shard {moved.source} to shard {target} in {moved.seconds:.1f} s"
            f"{paused}"
        )
