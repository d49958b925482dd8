"""Each database of several: whether it answers, how full it is, who follows it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape

from poky.api.page.layout import ago, size_of, table
from poky.api.page.troubles import DO, Trouble
from poky.api.services import Services
from poky.health import Shard
from poky.store import CONTROL, Activity, Bucket, ShardedStore, StoreError

_NONE = "\N{EN DASH}"


def named(number: int) -> str:
    """How a page names a database of several."""
    return f"control (shard {number})" if number == CONTROL else f"shard {number}"


def activities(services: Services, shards: Sequence[Shard]) -> dict[int, Activity]:
    """What those that answer say of themselves, by number."""
    found = {}
    if isinstance(services.house, ShardedStore):
        for each in shards:
            if each.state.ok:
                with suppress(StoreError):
                    found[each.number] = services.house.activity_of(each.number)
    return found


def buckets(services: Services, shards: Sequence[Shard]) -> list[Bucket] | None:
    """The buckets of those that answer, by name; None: none of them does."""
    up = [each.number for each in shards if each.state.ok]
    if up and isinstance(services.house, ShardedStore):
        with suppress(StoreError):
            return services.house.buckets_of(up)
    return None


def troubles(shards: Sequence[Shard], activities: Mapping[int, Activity]) -> list[Trouble]:
    """What is wrong with one of them."""
    found = []
    for each in shards:
        name = named(each.number)
        if each.state.database != "ok":
            what = f"The database of {name} does not answer."
            do = DO["control" if each.number == CONTROL else "shard"]
            found.append(Trouble(what, each.failing_since, do))
        elif each.state.schema != "ok":
            what = f"The schema of {name} is {each.state.schema}."
            found.append(Trouble(what, None, DO["schema"]))
        elif each.held and each.held.shard != each.number:
            what = f"The database that the settings call {name} is shard {each.held.shard}."
            found.append(Trouble(what, None, DO["number"]))
        activity = activities.get(each.number)
        if activity and activity.archive_failed_at:
            what = f"PostgreSQL of {name} cannot archive its WAL."
            found.append(Trouble(what, activity.archive_failed_at, DO["archive"]))
    return found


def overview(
    services: Services,
    shards: Sequence[Shard],
    activities: Mapping[int, Activity],
    lags: Mapping[str, float],
    now: float,
) -> str:
    """A row for each, in place of the paragraph on the database."""
    rows = [_row(services, each, activities.get(each.number), lags, now) for each in shards]
    columns = (
        "shard",
        "state",
        "PostgreSQL",
        "size",
        "buckets",
        "standbys",
        "WAL",
        "connections here",
        "waits",
        "errors",
    )
    numbers = "size, buckets, waits, errors"
    return f"<h2>Databases</h2>{table('Databases', columns, rows, '', numbers)}"


def _row(
    services: Services,
    shard: Shard,
    activity: Activity | None,
    lags: Mapping[str, float],
    now: float,
) -> tuple[str, ...]:
    state = '<span class="good">answers</span>'
    if shard.state.database != "ok":
        since = f" since {ago(now - shard.failing_since)}" if shard.failing_since else ""
        state = f'<span class="bad">does not answer{since}</span>'
    elif not shard.state.ok:
        state = f'<span class="bad">schema {escape(shard.state.schema)}</span>'
    whole = services.store
    store = whole.of_shard(shard.number) if isinstance(whole, ShardedStore) else whole
    busy, idle = store.connections
    size = activity.bytes if activity else shard.held.bytes if shard.held else None
    return (
        f"<b>{shard.number}</b>" + (" (control)" if shard.number == CONTROL else ""),
        state,
        f"{escape(activity.version)}, up {ago(now - activity.started_at)}" if activity else _NONE,
        _NONE if size is None else size_of(size),
        f"{shard.held.buckets:,}" if shard.held else _NONE,
        standbys(activity, lags) if activity else _NONE,
        archive(activity, now) if activity else _NONE,
        f"{busy} busy, {idle} idle of {store.pool_size}",
        f"{store.counts.get('waits'):,.0f}",
        f"{sum(store.counts.errors.values()):,}",
    )


def standbys(activity: Activity, lags: Mapping[str, float]) -> str:
    """Who follows a server, and how far behind."""
    found = ", ".join(
        escape(name) + (f" ({size_of(lags[name])} behind)" if name in lags else "")
        for name in activity.standbys
    )
    return found or "none"


def archive(activity: Activity, now: float) -> str:
    """Whether a server's WAL is archived."""
    if not activity.is_archiving:
        return "not archived"
    if activity.archive_failed_at:
        return '<span class="bad">archiving fails</span>'
    if activity.archived_at:
        return f"last archived {ago(now - activity.archived_at)} ago"
    return "archived, nothing yet"
