"""The first page: whether all is well, and every part of the service at a glance."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

from poky.api import welcome
from poky.api.page import fleet, shards
from poky.api.page.layout import ago, page, size_of, table
from poky.api.page.plots import Line, plot
from poky.api.page.troubles import since_words, troubles
from poky.api.request import prefers
from poky.api.services import Services
from poky.health import Shard
from poky.http import Answer, Environ
from poky.store import CONTROL, Activity, Bucket, Node, StoreError

_MOST_BUCKETS = 200
_RATE_SECONDS = 60.0


def get_overview(services: Services, environ: Environ) -> Answer:
    """What this instance sees, as a page; for what is no browser, where to go on."""
    if not prefers(environ, "text/html", "text/plain"):
        return welcome.get_admin_welcome(services, environ)
    now = time.time()
    sight = services.sight
    asking = fleet.Asking(sight.prometheus)
    state = services.health.check()
    several = sight.shards()
    activity: Activity | None = None
    nodes: Sequence[Node] = sight.nodes()
    buckets: Sequence[Bucket] | None = None
    public: set[str] = set()
    activities = shards.activities(services, several)
    if state.ok and (not several or CONTROL in activities):
        with suppress(StoreError):
            activity = activities.get(CONTROL) or services.house.activity()
            nodes = services.house.nodes()
            public = set(services.house.public_buckets())
            buckets = None if several else services.house.buckets()
    if several:
        buckets = shards.buckets(services, several)
    tasks = services.background()
    known = asking.fleet()
    if activity:
        sight.note(each["name"] for each in activity.instances)
    # One that revalidates every read is not registered.
    caches = services.config.caches if services.config.cache_mode != "revalidate" else ()
    found = shards.troubles(several, activities)
    found += troubles(state, caches, sight, nodes, tasks, None if several else activity, now)
    found += fleet.troubles(known)
    items = "".join(
        f'<li><span class="what">{escape(each.what)}</span> {since_words(each, now)}'
        f"<br>{escape(each.do)}</li>"
        for each in found
    )
    if found:
        banner = f'<section class="state bad"><h2>Not all is well</h2><ul>{items}</ul></section>'
    else:
        banner = (
            '<section class="state good"><h2>All is well</h2><p>The database answers, the caches'
            " take part, the work in the background is in time.</p></section>"
        )
    config = services.config
    head = (
        f"<header><h1>Poky</h1><span>{escape(config.instance)}</span>"
        f'<span class="quiet">release {escape(config.release)}, up {ago(now - sight.started_at)},'
        f" {datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC</span></header>"
    )
    body = (
        banner,
        fleet.alerts(known, now),
        _plots(services, now),
        _instances(activity, config.instance),
        fleet.instances(known, now),
        shards.overview(services, several, activities, fleet.lags(known), now)
        if several
        else _database(services, activity, fleet.lags(known), now),
        _caches(nodes, fleet.hit_ratios(known), now),
        _buckets(services, buckets, public, several),
        fleet.backups(known, now),
        _tasks(tasks, now),
        _events(services, now),
    )
    title = f"{'Trouble' if found else 'All is well'}: Poky {config.instance}"
    return page(title, head, "\n".join(body))


def _plots(services: Services, now: float) -> str:
    samples = services.sight.history()
    rates = [(each.at, each.requests / each.seconds) for each in samples]
    failed = [(each.at, each.failed / each.seconds) for each in samples]
    median = [(each.at, each.median) for each in samples]
    slowest = [(each.at, each.slowest_percent) for each in samples]
    grouped = [(each.at, each.grouped) for each in samples]
    statements, writes = services.sight.groups()
    mean = writes / statements if statements else 0.0
    return (
        '<h2>The last hour, here</h2><div class="cards">'
        + plot("Requests per second", "/s", [Line("all", "one", rates)], now)
        + plot("Failed per second (5xx)", "/s", [Line("failed", "two", failed)], now)
        + plot("Time", "s", [Line("median", "one", median), Line("99 %", "two", slowest)], now)
        + plot("Writes in a statement", "", [Line("on average", "one", grouped)], now)
        + f'</div><p class="quiet">{writes:,} writes shared {statements:,} statements:'
        f" {mean:.1f} in each.</p>"
    )


def _instances(activity: Activity | None, ours: str) -> str:
    rows = [
        (
            f"<b>{escape(each['name'])}</b> (this one)"
            if each["name"] == ours
            else escape(each["name"]),
            escape(each["address"] or "the database's own host"),
            str(each["connections"]),
        )
        for each in (activity.instances if activity else ())
    ]
    empty = "Not known while the database does not answer."
    columns = ("instance", "from", "connections")
    return f"<h2>Instances</h2>{table('Instances', columns, rows, empty, 'connections')}"


def _database(
    services: Services, activity: Activity | None, lags: Mapping[str, float], now: float
) -> str:
    busy, idle = services.store.connections
    used = f"{busy} of our {services.store.pool_size} connections are busy, {idle} idle."
    if activity is None:
        return f'<h2>Database</h2><p class="bad">It does not answer.</p><p>{used}</p>'
    return (
        f"<h2>Database</h2><p>PostgreSQL {escape(activity.version)}, up"
        f" {ago(now - activity.started_at)}, {size_of(activity.bytes)};"
        f" standbys: {shards.standbys(activity, lags)}; WAL: {shards.archive(activity, now)}."
        f" {used}</p>"
    )


def _caches(nodes: Sequence[Node], hits: Mapping[str, str], now: float) -> str:
    rows = []
    for node in nodes:
        state = '<span class="good">takes part</span>'
        if node.suspended_at is not None:
            state = f'<span class="bad">suspended since {ago(now - node.suspended_at)}</span>'
        leased = "never" if node.leased_at is None else f"{ago(now - node.leased_at)} ago"
        purged = "never" if node.purged_at is None else f"{ago(now - node.purged_at)} ago"
        ratio = hits.get(node.name, "\N{EN DASH}")
        rows.append((escape(node.name), state, leased, purged, ratio, escape(node.url)))
    columns = ("cache", "state", "last lease", "last purge", "hits", "address")
    # A cache may have another name than its host has in Prometheus.
    others = {
        host: ratio for host, ratio in hits.items() if host not in {node.name for node in nodes}
    }
    more = ", ".join(f"{escape(host)} {ratio}" for host, ratio in others.items())
    return f"<h2>Caches</h2>{table('Caches', columns, rows, 'There are none.', 'hits')}" + (
        f'<p class="quiet">Hits by host: {more}.</p>' if more else ""
    )


def _buckets(
    services: Services,
    buckets: Sequence[Bucket] | None,
    public: set[str],
    several: Sequence[Shard],
) -> str:
    if buckets is None:
        return '<h2>Buckets</h2><p class="quiet">Not known while the database does not answer.</p>'
    rates = _rates(services)
    has_pages = services.config.admin_objects == "on"
    rows = [
        (
            f'<a href="/browse?bucket={quote(each.name)}">{escape(each.name)}</a>'
            if has_pages
            else escape(each.name),
            f"{each.estimated_rows:,}",
            size_of(each.bytes),
            "read by everyone" if each.name in public else "",
            f"after {ago(each.default_ttl)}" if each.default_ttl else "",
            f"for {ago(each.changes_kept)}" if each.changes_kept else "",
            f"{rates[each.name]:.1f}" if each.name in rates else "\N{EN DASH}",
            *([f"{each.shard}"] if several else []),
        )
        for each in buckets[:_MOST_BUCKETS]
    ]
    more = len(buckets) - len(rows)
    notes = [f"{more} more: GET /buckets lists all." if more > 0 else ""]
    if away := [f"{each.number}" for each in several if not each.state.ok]:
        notes.append(f"Those of shard {' and '.join(away)} are not known now.")
    if not services.config.metrics_buckets:
        notes.append("Rates by bucket are counted with POKY_METRICS_BUCKETS.")
    if not has_pages:
        notes.append("Keys and values are shown with POKY_ADMIN_OBJECTS=on.")
    columns = (
        "bucket",
        "keys (about)",
        "size",
        "public",
        "expiry",
        "changes kept",
        "requests/s here",
        *(["shard"] if several else []),
    )
    empty = "There are none yet: curl -X PUT on this listener's /buckets/NAME makes one."
    made = table("Buckets", columns, rows, empty, "keys (about), size, requests/s here")
    return f'<h2>Buckets</h2>{made}<p class="quiet">{" ".join(filter(None, notes))}</p>'


def _rates(services: Services) -> dict[str, float]:
    samples = list(services.sight.history())[-int(_RATE_SECONDS // 10) :]
    seconds = sum(sample.seconds for sample in samples)
    counts: dict[str, int] = {}
    for sample in samples:
        for name, count in sample.buckets.items():
            counts[name] = counts.get(name, 0) + count
    return {name: count / seconds for name, count in counts.items()}


def _tasks(tasks: Sequence[Mapping[str, Any]], now: float) -> str:
    rows = [
        (
            escape(task["name"]),
            f"every {task['period_seconds']:g} s" + (", one of all" * (task["scope"] == "fleet")),
            f"{task['runs']:,}",
            f"{task['errors']:,}",
            f"{ago(now - task['ended_at'])} ago" if task["ended_at"] else "\N{EN DASH}",
            escape(task["last_error"] or ""),
        )
        for task in tasks
    ]
    columns = ("task", "when", "runs", "errors", "last good end", "last error")
    return f"<h2>Background</h2>{table('Background', columns, rows, 'None.', 'runs, errors')}"


def _events(services: Services, now: float) -> str:
    rows = [
        (f"{ago(now - each.at)} ago", escape(each.level), escape(each.logger), escape(each.message))
        for each in reversed(list(services.sight.events()))
    ]
    columns = ("when", "level", "from", "message")
    made = table("Warnings and errors", columns, rows, "None since the start.")
    return f"<h2>Last warnings and errors</h2>{made}"
