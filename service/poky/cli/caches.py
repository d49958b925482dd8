"""``poky cache``."""

import re

import click

from poky.cli.context import Failed, as_json, dsn_option, open_caches, open_store
from poky.cli.output import print_json, print_table, show_age, show_pairs
from poky.store import Node


@click.group()
def cache() -> None:
    """See and manage the cache nodes. A new one seldom needs a command, only POKY_CACHES."""


@cache.command("status")
@dsn_option
@as_json
def show_caches(dsn: str | None, as_json: bool) -> None:
    """Show the nodes, their leases and what they were last told."""
    with open_store(dsn) as store:
        nodes = store.nodes()
    if as_json:
        print_json([each._asdict() for each in nodes])
        return
    print_table(
        ["cache", "state", "since", "lease", "last lease", "last purge", "generation", "url"],
        [
            [
                node.name,
                _show_state(node),
                show_age(node.suspended_at),
                f"{node.lease_seconds:g} s",
                show_age(node.leased_at),
                show_age(node.purged_at),
                node.generation[:8],
                node.url,
            ]
            for node in nodes
        ],
    )


@cache.command("add", epilog="\b\nExample:\n  poky cache add cache1 http://203.0.113.7:6091")
@click.argument("name")
@click.argument("url")
@dsn_option
@as_json
def add_cache(name: str, url: str, dsn: str | None, as_json: bool) -> None:
    """Register a node outside private networks, which only the owner may.

    Every change tells it a bucket and a key, by HTTP. Any other node registers by POKY_CACHES.
    """
    if not re.fullmatch(r"http://[^\s/=]+:[0-9]{1,5}/?", url):
        raise click.UsageError(f"“{url}” is no cache's URL: write http://host:port.")
    with open_store(dsn, as_owner=True) as store:
        done = "registered" if store.register_node(name, url) else "exists"
    show_pairs({name: done}, as_json)


@cache.command("purge", epilog="\b\nExample:\n  poky cache purge tooltips 42")
@click.argument("bucket", required=False)
@click.argument("key", required=False)
@click.option("--all", "everything", is_flag=True, help="Let all caches forget everything.")
@dsn_option
@as_json
def purge_caches(
    bucket: str | None, key: str | None, everything: bool, dsn: str | None, as_json: bool
) -> None:
    """Let all caches forget one object, or everything with --all.

    Needed only after something that the service did not do: a restored database, for one.
    With --all it takes as long as a lease.
    """
    if everything and bucket:
        raise click.UsageError("--all is for all objects: name no BUCKET with it.")
    if not everything and not (bucket and key):
        raise click.UsageError(
            "Name a BUCKET and a KEY, or say --all: caches cannot forget one bucket alone."
        )
    for name in filter(None, (bucket, key)):
        if not re.fullmatch("[!-~]{1,1024}", name):  # it stands in the request line of the purge
            raise click.UsageError(f"“{name}” is no name of a bucket or key.")
    with open_store(dsn) as store, open_caches(store) as caches:
        if bucket and key:
            caches.purge_keys(bucket, [key])
        else:
            caches.purge_all()
        nodes = store.nodes()
    show_pairs({node.name: _show_state(node) for node in nodes}, as_json)


@cache.command("suspend", epilog="\b\nExample:\n  poky cache suspend cache1")
@click.argument("name")
@dsn_option
@as_json
def suspend_cache(name: str, dsn: str | None, as_json: bool) -> None:
    """Let a node use no copy until it is resumed; returns when that is certain."""
    with open_store(dsn) as store, open_caches(store) as caches:
        _require(caches.suspend(name), name)
    show_pairs(
        {name: "suspended"} if as_json else {name: f"suspended; poky cache resume {name} ends it"},
        as_json,
    )


@cache.command("resume")
@click.argument("name")
@dsn_option
@as_json
def resume_cache(name: str, dsn: str | None, as_json: bool) -> None:
    """Let a suspended node take part again as soon as it answers."""
    with open_store(dsn) as store, open_caches(store) as caches:
        _require(caches.resume(name), name)
    show_pairs(
        {name: "resumed"} if as_json else {name: "takes part again once it has answered"}, as_json
    )


@cache.command("remove")
@click.argument("name")
@dsn_option
@as_json
def remove_cache(name: str, dsn: str | None, as_json: bool) -> None:
    """Forget a node that POKY_CACHES no longer has; returns when it certainly uses no copy."""
    with open_store(dsn) as store, open_caches(store) as caches:
        _require(caches.remove(name), name)
    show_pairs({name: "removed"}, as_json)


def _require(is_there: bool, name: str) -> None:
    if not is_there:
        raise Failed(
            f"There is no cache named {name}. See: poky cache status", code="cache_not_found"
        )


def _show_state(node: Node) -> str:
    if node.suspended_at is None:
        return "takes part"
    state = "suspended" if node.drained else "being suspended"
    return f"{state}, held" if node.held else state
