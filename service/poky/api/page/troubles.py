"""What is wrong, since when, and what to do: by what an instance knows without asking anyone."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, NamedTuple

from poky.api.page.layout import ago
from poky.api.services import Sight
from poky.forms import CacheNode
from poky.health import State
from poky.store import Activity, Node

_FAILED_SHARE = 0.01
_RECENT_SECONDS = 60.0
_STALE_SECONDS = 3600.0
_GONE_SECONDS = 600.0
_FULL = 0.9
_SLOW_SECONDS = 0.5  # as the alert PokySlow has it
_SLOW_PURGE_SECONDS = 0.1
_ENOUGH = 50  # requests, to say that they are slow

#: What to do, by what is wrong; docs/operations.md has a paragraph for each.
DO = {
    "database": "Is PostgreSQL up, and does the firewall let this host through? systemctl status"
    " 'postgresql@*' on its host; reads from the caches go on as long as their leases.",
    "shard": "Is PostgreSQL up there, and does the firewall let this host through? Until then its"
    " buckets answer 503, and GET /buckets too; the others go on.",
    "control": "Is PostgreSQL up there, and does the firewall let this host through? Until then"
    " buckets elsewhere that an instance knows go on; others, tokens and leases do not.",
    "number": "Correct POKY_SHARDS; poky shards says what does not fit.",
    "schema": "Run the deploy, or poky migrate.",
    "cache": "Is Varnish up on its host, and can this host reach its purge listener? Writes go on,"
    " reads through it are passed on; it takes part again by itself.",
    "lease": "Can the cache reach an instance's lease listener (port + 2000)? Until then it passes"
    " every read on.",
    "removed": "It was removed by command: an instance that starts makes it take part again;"
    " or take it out of POKY_CACHES.",
    "slow-purge": "Is its host, or the network to it, overloaded? Every write waits for it; beyond"
    " POKY_PURGE_TIMEOUT it is suspended.",
    "slow": "POKY_SERVER_TIMING=on says in which stage; the plots below since when. Is PostgreSQL's"
    " host busy, or are there too few instances?",
    "stale": "Call for help: the promise is broken. poky cache purge --all makes every cache forget"
    " what it has.",
    "task": "Its error says why; it is tried again by itself.",
    "failed": "The last warnings and errors below, and the log, say why.",
    "memory": "Large values or slow readers hold it: more instances, or POKY_MAX_INFLIGHT_BYTES.",
    "archive": "Writes go on, and the WAL fills the disk: repair the backup's repository.",
    "instance": "Look at its log: journalctl -u poky@PORT on its host.",
}


class Trouble(NamedTuple):
    """Something that is wrong. ``since``: seconds since 1970; None: it is not known."""

    what: str
    since: float | None
    do: str


def troubles(
    state: State,
    caches: Sequence[CacheNode],
    sight: Sight,
    nodes: Sequence[Node],
    tasks: Sequence[Mapping[str, Any]],
    activity: Activity | None,
    now: float,
) -> list[Trouble]:
    """All that is wrong now, the worst first. ``caches``: those that this instance is to tell."""
    found = []
    stale_at = sight.stale_at()
    if stale_at and now - stale_at < _STALE_SECONDS:
        found.append(Trouble("A read through a cache was stale.", stale_at, DO["stale"]))
    if state.database != "ok":
        since = sight.failing_since()
        found.append(Trouble("The database does not answer.", since, DO["database"]))
    elif state.schema != "ok":
        found.append(Trouble(f"The database's schema is {state.schema}.", None, DO["schema"]))
    found += [_of_node(node) for node in nodes if node.suspended_at is not None]
    last = sight.recent()
    # Without reads a cache asks for none; one that gets none passes its reads on.
    found += [
        Trouble(
            f"The cache {node.name} {_lack(node, now)}.",
            node.leased_at,
            DO["lease"],
        )
        for node in nodes
        if node.suspended_at is None and last and last.reads and _lack(node, now)
    ]
    if state.ok:
        known = {word for node in nodes for word in (node.name, node.url)}
        found += [
            Trouble(f"The cache {each.name or each.url} does not take part.", None, DO["removed"])
            for each in caches
            if (each.name or each.url) not in known
        ]
    found += [
        Trouble(
            f"The cache {name} takes {seconds * 1000:,.0f} ms to confirm a purge.",
            None,
            DO["slow-purge"],
        )
        for name, seconds in sight.purge_seconds().items()
        if seconds > _SLOW_PURGE_SECONDS
    ]
    found += [
        Trouble(f"The instance {name} is gone.", at, DO["instance"])
        for name, at in sight.gone().items()
        if now - at < _GONE_SECONDS
    ]
    found += [
        Trouble(
            f"The background task {task['name']} fails: {task['last_error']}",
            now - task["lag_seconds"],
            DO["task"],
        )
        for task in tasks
        if task["last_error"] and task["lag_seconds"] > 0
    ]
    recent = [sample for sample in sight.history() if now - sample.at < _RECENT_SECONDS]
    requests = sum(sample.requests for sample in recent)
    failed = sum(sample.failed for sample in recent)
    if requests and failed / requests > _FAILED_SHARE:
        since = min(sample.at - sample.seconds for sample in recent if sample.failed)
        what = f"{failed:,} of {requests:,} requests of the last minute failed (5xx)."
        found.append(Trouble(what, since, DO["failed"]))
    if last and last.requests >= _ENOUGH and (last.slowest_percent or 0) > _SLOW_SECONDS:
        what = (
            f"One request for an object in a hundred took longer than {last.slowest_percent:.2f} s."
        )
        found.append(Trouble(what, None, DO["slow"]))
    used, limit = sight.memory()
    if used > _FULL * limit:
        found.append(Trouble("The memory for requests is used up.", None, DO["memory"]))
    if activity and activity.archive_failed_at:
        what = "PostgreSQL cannot archive its WAL."
        found.append(Trouble(what, activity.archive_failed_at, DO["archive"]))
    return found


def _of_node(node: Node) -> Trouble:
    how = "by command: poky cache resume lets it take part" if node.held else ""
    return Trouble(
        f"The cache {node.name} is suspended{f' {how}' if how else ''}.",
        node.suspended_at,
        DO["cache"],
    )


def _lack(node: Node, now: float) -> str:
    """What a cache that takes part lacks; empty: nothing. It renews its lease after a tenth."""
    age = inf if node.leased_at is None else now - node.leased_at
    if age > node.lease_seconds + 1:
        return "has no lease"
    return "does not renew its lease" if age > node.lease_seconds / 4 + 1 else ""


def since_words(trouble: Trouble, now: float) -> str:
    """Since when, in words; empty if it is not known."""
    return f"since {ago(now - trouble.since)}" if trouble.since else ""
