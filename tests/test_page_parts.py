"""What each part of the admin listener's page says of figures that are given, to the letter."""

from __future__ import annotations

import re
from contextlib import closing, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from poky.api.page import fleet, objects, overview, shards
from poky.api.page.layout import table
from poky.api.page.plots import Line, _rounded_up, plot
from poky.api.page.troubles import since_words, troubles
from poky.api.services import Services, Sight
from poky.config import Config
from poky.forms import CacheNode
from poky.health import Shard, State
from poky.logs import Event
from poky.metrics import Alert, Prometheus, Sample, Told
from poky.store import Activity, Bucket, Listed, Node, Object, ShardState, Store

NOW = 1_000_000.0
DASH = "\N{EN DASH}"


def cells(html: str) -> list[list[str]]:
    """The rows of a table below its head, without tags."""
    return [
        [re.sub("<[^>]+>", "", cell) for cell in re.findall("<td.*?>(.*?)</td>", row)]
        for row in re.findall("<tr>(.*?)</tr>", html)[1:]
    ]


def services(sight: Sight = Sight(), **settings: Any) -> Services:  # noqa: B008
    config = Config.from_env({}, **settings)
    store: Any = SimpleNamespace(connections=(1, 2), pool_size=8, counts=SimpleNamespace(errors={}))
    nothing: Any = nullcontext
    return Services(store, nothing, config, nothing, lambda: 0, bytes, sight=sight, house=store)


# Plots.


def test_a_plot_has_a_line_for_each_name_over_the_last_hour() -> None:
    lines = [
        Line("all", "one", [(NOW - 3600, 0.0), (NOW - 3550, 20.0), (NOW, 5.0)]),
        Line("<99 %>", "two", [(NOW - 3601, 9.0), (NOW - 1800, 10.0), (NOW - 1740, None)]),
    ]
    page = plot("A & B", "/s", lines, NOW)
    assert re.findall('<path class="([a-z]*)" d="(.*?)"/>', page) == [
        ("grid", "M0 45H360M0 .5H360M0 89.5H360"),
        ("one", "M0.0 89.0h1L5.0 1.0M360.0 67.0h1"),
        ("two", "M180.0 45.0h1"),
    ]
    assert '<svg viewBox="0 0 360 90" role="img"' in page
    assert f'"A &amp; B over the last hour: all 5 /s, &lt;99 %&gt; {DASH}"' in page
    assert "<figcaption>A &amp; B</figcaption>" in page
    assert "<span>an hour ago</span><span>top: 20 /s</span><span>now</span>" in page
    assert re.findall('class="key (one|two)">(.*?) <b>(.*?)</b>', page) == [
        ("one", "all", "5 /s"),
        ("two", "&lt;99 %&gt;", DASH),
    ]


def test_a_line_breaks_where_there_was_nothing() -> None:
    minutes = [(NOW - 180, 1.0), (NOW - 120, 1.0), (NOW - 59.0, 1.0), (NOW - 50, None), (NOW, 2.0)]
    (drawn,) = re.findall('class="one" d="(.*?)"', plot("t", "", [Line("a", "one", minutes)], NOW))
    assert drawn == "M342.0 45.0h1L348.0 45.0M354.1 45.0h1M360.0 1.0h1"


def test_a_plot_without_values_is_empty() -> None:
    page = plot("t", "s", [Line("a", "one", []), Line("b", "two", [(NOW, None)])], NOW)
    assert 'class="one" d' not in page
    assert 'class="two" d' not in page
    assert "top: 1,000 ms" in page
    assert f"a {DASH}, b {DASH}" in page


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 1), (-1, 1), (1e-6, 1e-6), (0.003, 0.005), (1, 1), (1.01, 2), (2.1, 5), (5.5, 10),
     (20, 20), (21, 50), (700, 1000)],
)  # fmt: skip
def test_the_top_of_a_plot_is_a_round_number(value: float, expected: float) -> None:
    assert _rounded_up(value) == pytest.approx(expected)


def test_a_table_has_its_numbers_on_the_right() -> None:
    made = table("N&N", ("a", "b<"), [("1", "2"), ("3", "4")], "None.", "b<, c")
    assert made == (
        '<div class="wide" tabindex="0" role="region" aria-label="N&amp;N"><table>'
        "<thead><tr><th scope=col>a</th><th scope=col class=number>b&lt;</th></tr></thead>"
        "<tbody><tr><td>1</td><td class=number>2</td></tr>"
        "<tr><td>3</td><td class=number>4</td></tr></tbody></table></div>"
    )
    assert table("N", ("a",), [], "None.") == '<p class="quiet">None.</p>'


# The first page.


def sample(at: float, requests: int, failed: int, **more: Any) -> Sample:
    facts = {"median": 0.002, "slowest_percent": 0.02, "buckets": {}, "grouped": 1.5, **more}
    return Sample(at, 10.0, requests, failed, **facts)


def test_the_last_hour_is_told_in_rates() -> None:
    history = [sample(NOW - 10, 100, 0), sample(NOW, 250, 5, slowest_percent=None)]
    made = overview._plots(
        services(Sight(history=lambda: history, groups=lambda: (1000, 2500))), NOW
    )
    said = re.findall('aria-label="(.*?)"', made)
    assert said == [
        "Requests per second over the last hour: all 25 /s",
        "Failed per second (5xx) over the last hour: failed 0.50 /s",
        f"Time over the last hour: median 2 ms, 99 % {DASH}",
        "Writes in a statement over the last hour: on average 1.50",
    ]
    assert "2,500 writes shared 1,000 statements: 2.5 in each." in made
    nothing = overview._plots(services(), NOW)
    assert "0 writes shared 0 statements: 0.0 in each." in nothing


def activity(**more: Any) -> Activity:
    facts = {"version": "17.2", "started_at": int(NOW) - 7200, "bytes": 5_000_000_000}
    facts |= {"instances": [], "standbys": [], "is_archiving": False, "archived_at": None}
    return Activity(**{**facts, "archive_failed_at": None, **more})


def test_instances_are_named_and_ours_is_marked() -> None:
    both = [
        {"name": "<a>", "address": None, "connections": 3},
        {"name": "b", "address": "10.0.0.2", "connections": 4},
    ]
    made = overview._instances(activity(instances=both), "b")
    assert cells(made) == [
        ["&lt;a&gt;", "the database&#x27;s own host", "3"],
        ["b (this one)", "10.0.0.2", "4"],
    ]
    assert "<b>b</b> (this one)" in made
    assert "<td class=number>3</td>" in made
    assert "Not known while the database does not answer." in overview._instances(None, "b")


def test_the_database_is_told_in_a_paragraph() -> None:
    made = overview._database(
        services(), activity(standbys=["db2", "<x>"], is_archiving=True), {"db2": 48_000.0}, NOW
    )
    assert (
        re.sub("<[^>]+>", " ", made).split()
        == (
            "Database PostgreSQL 17.2, up 2 h, 5.0 GB; standbys: db2 (48.0 kB behind), &lt;x&gt;;"
            " WAL: archived, nothing yet. 1 of our 8 connections are busy, 2 idle."
        ).split()
    )
    away = overview._database(services(), None, {}, NOW)
    assert "It does not answer.</p><p>1 of our 8 connections are busy, 2 idle." in away


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "not archived"),
        ({"archived_at": 5, "archive_failed_at": 9}, "not archived"),
        ({"is_archiving": True}, "archived, nothing yet"),
        ({"is_archiving": True, "archived_at": int(NOW) - 60}, "last archived 60 s ago"),
        (
            {"is_archiving": True, "archived_at": 5, "archive_failed_at": 9},
            '<span class="bad">archiving fails</span>',
        ),
    ],
)
def test_how_the_archive_is(facts: dict[str, Any], expected: str) -> None:
    assert shards.archive(activity(**facts), NOW) == expected


def node(name: str, **more: Any) -> Node:
    facts = {"name": name, "url": f"http://{name}:1", "generation": "g", "lease_seconds": 10.0}
    facts |= {"suspended_at": None, "drained": True, "held": False, "leased_at": None}
    return Node(**{**facts, "purged_at": None, **more})


def test_caches_are_told_with_their_state_and_hits() -> None:
    at = int(NOW)
    both = [
        node("a", leased_at=at - 3, purged_at=at - 5),
        node("b", suspended_at=at - 300),
    ]
    made = overview._caches(both, {"a": "93.2%", "c": "1.0%", "d": "2.0%"}, NOW)
    assert cells(made) == [
        ["a", "takes part", "3 s ago", "5 s ago", "93.2%", "http://a:1"],
        ["b", "suspended since 5 min", "never", "never", DASH, "http://b:1"],
    ]
    assert "Hits by host: c 1.0%, d 2.0%." in made
    assert overview._caches([], {}, NOW) == '<h2>Caches</h2><p class="quiet">There are none.</p>'


def bucket(name: str, **more: Any) -> Bucket:
    facts = {"kind": "flat", "estimated_rows": 1200, "bytes": 5000, "default_ttl": None}
    return Bucket(name, **{**facts, "changes_kept": None, **more})


def test_buckets_are_told_with_what_holds_for_them() -> None:
    history = [sample(NOW - 10 * n, 9, 0, buckets={"a": n, "-": 9}) for n in range(7, 0, -1)]
    with_rates = services(Sight(history=lambda: history), metrics_buckets=2)
    both = [
        bucket("a", default_ttl=3600, changes_kept=86_400 * 7),
        bucket("b", bytes=10),
    ]
    made = overview._buckets(with_rates, both, {"b"}, [])
    assert cells(made) == [
        ["a", "1,200", "5.0 kB", "", "after 60 min", "for 7 days", "0.3"],
        ["b", "1,200", "10 B", "read by everyone", "", "", DASH],
    ]
    assert made.endswith('<p class="quiet"></p>')
    assert 'href="/browse?bucket=a"' in made


def test_buckets_are_two_hundred_at_most_and_what_is_not_shown_is_said() -> None:
    many = [bucket(f"b{number}") for number in range(203)]
    shut = services(admin_objects="off")
    made = overview._buckets(shut, many, set(), [])
    assert len(cells(made)) == 200
    assert "/browse" not in made
    assert made.endswith(
        '<p class="quiet">3 more: GET /buckets lists all. Rates by bucket are counted with'
        " POKY_METRICS_BUCKETS. Keys and values are shown with POKY_ADMIN_OBJECTS=on.</p>"
    )
    assert "more:" not in overview._buckets(shut, many[:200], set(), [])
    assert "Not known while" in overview._buckets(shut, None, set(), [])
    assert "There are none yet" in overview._buckets(shut, [], set(), [])
    away = [shard(0), shard(1, State("unavailable", "unknown")), shard(2, State("ok", "old"))]
    placed = overview._buckets(shut, [bucket("a", shard=2)], set(), away)
    assert cells(placed)[0][-1] == "2"
    assert "Those of shard 1 and 2 are not known now." in placed


def test_tasks_are_told_with_their_errors() -> None:
    task = {"name": "reap", "period_seconds": 2.5, "scope": "fleet", "runs": 1234, "errors": 2}
    ended = {**task, "ended_at": NOW - 4, "last_error": "<away>"}
    never = {**task, "name": "look", "scope": "instance", "ended_at": None, "last_error": None}
    assert cells(overview._tasks([ended, never], NOW)) == [
        ["reap", "every 2.5 s, one of all", "1,234", "2", "4 s ago", "&lt;away&gt;"],
        ["look", "every 2.5 s", "1,234", "2", DASH, ""],
    ]
    assert "None." in overview._tasks([], NOW)


def test_the_last_warning_is_the_first() -> None:
    events = [
        Event(NOW - 60, "warning", "poky.store", "first"),
        Event(NOW - 5, "error", "poky.cache", "<second>"),
    ]
    assert cells(overview._events(services(Sight(events=lambda: events)), NOW)) == [
        ["5 s ago", "error", "poky.cache", "&lt;second&gt;"],
        ["60 s ago", "warning", "poky.store", "first"],
    ]


# Troubles.


def test_what_a_cache_lacks_is_told_where_reads_need_it() -> None:
    at = int(NOW)

    def told(*nodes: Node, reads: int = 1, state: str = "ok") -> list[tuple[str, float | None]]:
        sight = Sight(recent=lambda: sample(NOW, 1, 0, reads=reads))
        caches = (CacheNode("a", "http://a:1"), CacheNode("", "http://b:1"))
        found = troubles(State(state, "ok"), caches, sight, nodes, (), None, NOW)
        return [each[:2] for each in found if "cache" in each.what]

    b = node("b", leased_at=at)
    assert told(node("a", leased_at=at - 3), b) == []
    assert told(node("a", leased_at=at - 4), b) == [
        ("The cache a does not renew its lease.", at - 4)
    ]
    assert told(node("a", leased_at=at - 11), b)[0][0].endswith("does not renew its lease.")
    assert told(node("a", leased_at=at - 12), b) == [("The cache a has no lease.", at - 12)]
    assert told(node("a"), b) == [("The cache a has no lease.", None)]
    assert told(node("a"), b, reads=0) == []
    assert told(node("a", suspended_at=at - 9), b) == [("The cache a is suspended.", at - 9)]
    assert told(node("a", suspended_at=at - 9, held=True), b) == [
        ("The cache a is suspended by command: poky cache resume lets it take part.", at - 9)
    ]
    assert told(b) == [("The cache a does not take part.", None)]
    assert told(node("a", leased_at=at)) == [("The cache http://b:1 does not take part.", None)]
    assert told(state="unavailable") == []


def test_failures_are_told_since_the_first_of_the_last_minute() -> None:
    history = [sample(NOW - 50, 90, 0), sample(NOW - 30, 90, 9), sample(NOW - 20, 90, 9)]
    (found,) = troubles(State("ok", "ok"), (), Sight(history=lambda: history), (), (), None, NOW)
    assert found.what.startswith("18 of 270 requests")
    assert found.since == NOW - 40
    assert since_words(found, NOW) == "since 40 s"
    assert since_words(found._replace(since=None), NOW) == ""


# Several databases.


def shard(number: int, state: State = State("ok", "ok"), **more: Any) -> Shard:  # noqa: B008
    return Shard(**{"number": number, "state": state, "failing_since": None, "held": None, **more})


def test_what_is_wrong_with_a_database_is_told_by_its_number() -> None:
    away = State("unavailable", "unknown")
    failing = activity(is_archiving=True, archive_failed_at=7)
    several = [
        shard(0, away, failing_since=5.0),
        shard(1, away),
        shard(2, State("ok", "old"), held=ShardState(9, 1, 1)),
        shard(3, held=ShardState(4, 1, 1)),
        shard(4, held=ShardState(4, 1, 1)),
        shard(5),
    ]
    found = shards.troubles(several, {4: failing, 5: activity()})
    assert [each[:2] for each in found] == [
        ("The database of control (shard 0) does not answer.", 5.0),
        ("The database of shard 1 does not answer.", None),
        ("The schema of shard 2 is old.", None),
        ("The database that the settings call shard 3 is shard 4.", None),
        ("PostgreSQL of shard 4 cannot archive its WAL.", 7),
    ]
    assert "that an instance knows go on" in found[0].do
    assert "buckets answer 503" in found[1].do
    assert "poky migrate" in found[2].do
    assert "POKY_SHARDS" in found[3].do


def test_each_database_has_a_row() -> None:
    with closing(Store("host=/nowhere", pool_size=8)) as store:
        store.counts.errors.update({"40001": 1200, "57014": 3})
        store.counts.add("waits", 1500)
        several = [
            shard(0, held=ShardState(0, 7_000_000, 1500)),
            shard(1, State("unavailable", "unknown"), failing_since=NOW - 90),
            shard(2, State("unavailable", "unknown")),
            shard(3, State("ok", "old"), held=ShardState(3, 9, 1)),
        ]
        made = shards.overview(
            services()._replace(store=store), several, {0: activity(standbys=["x"])}, {}, NOW
        )
    ours = ["0 busy, 0 idle of 8", "1,500", "1,203"]
    assert cells(made) == [
        ["0 (control)", "answers", "17.2, up 2 h", "5.0 GB", "1,500", "x", "not archived", *ours],
        ["1", "does not answer since 90 s", DASH, DASH, DASH, DASH, DASH, *ours],
        ["2", "does not answer", DASH, DASH, DASH, DASH, DASH, *ours],
        ["3", "schema old", DASH, "9 B", "1", DASH, DASH, *ours],
    ]
    assert shards.standbys(activity(), {}) == "none"


# What Prometheus knows.


def knows(alerts: Any = (), **values: Any) -> fleet.Fleet:
    return fleet.Fleet("http://p:9090", Told(alerts, values))


def test_the_instances_of_all_hosts_have_their_figures() -> None:
    a, b = {"host": "h1", "instance": "i:1"}, {"host": "h2", "instance": "i:2"}
    found = knows(
        up=[(b, 0.0), (a, 1.0)],
        started=[(a, NOW - 600), (b, NOW)],
        release=[({**a, "release": "<1.0>"}, 1.0)],
        requests=[(a, 12.5), (b, float("nan"))],
        failed=[],
        slowest=[(a, 0.25)],
    )
    assert cells(fleet.instances(found, NOW)) == [
        ["h1", "i:1", "answers, up 10 min", "&lt;1.0&gt;", "12.5", "0", "250 ms"],
        ["h2", "i:2", "does not answer", "", DASH, DASH, DASH],
    ]
    assert "It asks none." in fleet.instances(knows(), NOW)
    assert fleet.instances(fleet.Fleet("http://p:9090"), NOW) == ""


def test_alerts_say_what_they_mean_and_where_to_read_on() -> None:
    full = Alert("<A>", "critical", "It <burns>.", "docs/a.md", NOW - 30)
    bare = Alert("B", "", "", "", NOW - 300)
    found = knows([full, bare])
    assert cells(fleet.alerts(found, NOW)) == [
        ["&lt;A&gt;", "critical", "30 s", "It &lt;burns&gt;.", "docs/a.md"],
        ["B", "", "5 min", "", ""],
    ]
    assert [tuple(each) for each in fleet.troubles(found)] == [
        ("It <burns>.", NOW - 30, "The alert <A>: docs/a.md says what to do."),
        ("The alert B fires.", NOW - 300, "The alert B."),
    ]
    assert fleet.troubles(fleet.Fleet("")) == []
    assert "POKY_PROMETHEUS_URL" in fleet.alerts(fleet.Fleet(""), NOW)
    silent = fleet.Fleet("http://p:9090", None, NOW - 120)
    assert "Prometheus at http://p:9090 does not answer since 2 min." in fleet.alerts(silent, NOW)
    assert "does not answer.</p>" in fleet.alerts(silent._replace(failing_since=None), NOW)
    (trouble,) = fleet.troubles(silent)
    assert trouble.since == NOW - 120
    assert "at http://p:9090" in trouble.do


def test_backups_are_told_as_far_as_they_are_known() -> None:
    def one(value: float, **labels: str) -> list[tuple[dict[str, str], float]]:
        return [(labels, value)]

    whole = knows(
        backup=[
            ({"kind": "full"}, NOW - 3 * 86_400),
            ({"kind": "incr"}, NOW - 60),
            ({"kind": "diff"}, 0.0),
        ],
        backup_took=one(75.4),
        backup_bytes=one(5e9),
        backup_oldest=one(NOW - 20 * 86_400),
        backup_checked=one(NOW - 240),
        archive_failed=one(1.0),
        drill=[({"host": "h2"}, NOW - 7200), ({"host": "<h1>"}, NOW - 60), ({"host": "h3"}, 0.0)],
        drill_ok=one(1.0, host="<h1>"),
        drill_took=one(41.2, host="h2"),
    )
    assert cells(fleet.backups(whole, NOW)) == [
        ["last full backup", "3 days ago"],
        ["last incremental backup", "60 s ago"],
        ["the last one", "took 75 s, for 5.0 GB of database"],
        ["can be restored to", "any moment since 20 days ago"],
        ["is complete up to", "4 min ago"],
        ["archive", "failed within 15 min"],
        ["last restore drill on &lt;h1&gt;", "60 s ago, all was there"],
        ["last restore drill on h2", "2 h ago, it failed, after 41 s"],
    ]
    checked = knows(backup_checked=one(NOW), archive_failed=one(0.0), backup_took=one(9.0))
    assert [row[1] for row in cells(fleet.backups(checked, NOW))] == [
        "0 s ago",
        "takes what PostgreSQL writes",
    ]
    assert len(cells(fleet.backups(knows(backup_checked=one(NOW)), NOW))) == 1
    assert "No host exports any" in fleet.backups(knows(archive_failed=one(1.0)), NOW)
    assert fleet.backups(fleet.Fleet("http://p:9090"), NOW) == ""


def test_hit_ratios_are_shares_and_lags_are_bytes() -> None:
    found = knows(
        hits=[({"host": "b"}, -0.01), ({"host": "a"}, 0.9321), ({"host": "c"}, float("inf"))],
        lag=[({"application_name": "db2"}, 48_000.0)],
    )
    assert dict(fleet.hit_ratios(found)) == {"a": "93.2%", "b": "0.0%"}
    assert fleet.lags(found) == {"db2": 48_000.0}
    assert fleet.Asking(None).fleet() == fleet.Fleet("")
    asked = fleet.Asking(Prometheus("http://127.0.0.1:9")).fleet()
    assert (asked.url, asked.told) == ("http://127.0.0.1:9", None)
    assert asked.failing_since


# Buckets and objects.


def test_above_an_object_is_its_bucket_and_above_that_the_first_page() -> None:
    first = '<nav aria-label="Where this is"><a href="/">Poky</a>'
    assert objects._head("a&b") == f"{first}</nav><h1>Bucket a&amp;b</h1>"
    bucket = '<a href="/browse?bucket=a%26b">a&amp;b</a>'
    assert objects._head("a&b", "<k>") == f"{first} {bucket}</nav><h1>&lt;k&gt;</h1>"


def test_a_key_is_a_link_and_so_is_what_keys_begin_with() -> None:
    key = Listed("a&b/c", 1500, 1, "h", 1370314891, "text/<x>", None, None)
    assert objects._row("b", key) == (
        '<a href="/browse/object?bucket=b&amp;key=a%26b%2Fc">a&amp;b/c</a>',
        "1.5 kB",
        "Tue, 04 Jun 2013 03:01:31 GMT",
        "text/&lt;x&gt;",
    )
    beginning = Listed("a&b/", *[None] * 7)  # type: ignore[arg-type]
    assert objects._row("b", beginning) == (
        '<a href="/browse?bucket=b&amp;prefix=a%26b%2F">a&amp;b/</a>',
        *("", "", ""),
    )


def stored(value: bytes, content_type: str = "text/plain", **more: Any) -> Object:
    facts = {"key": "k", "revision": 1234, "hash": "0a1b2c3d", "modified_at": 1370314891}
    facts |= {"unchanged_since": 0, "milliseconds_left": None}
    return Object(
        **{
            **facts,
            "value": value,
            "size": len(value),
            "content_type": content_type,
            "content_encoding": None,
            "expires_at": None,
            **more,
        }
    )


def test_what_is_known_of_an_object_is_in_a_table() -> None:
    assert cells(objects._facts(stored(b"x" * 1500))) == [
        ["size", "1.5 kB"],
        ["content type", "text/plain"],
        ["content encoding", "none"],
        ["modified", "Tue, 04 Jun 2013 03:01:31 GMT"],
        ["expires", "never"],
        ["revision", "1,234"],
        ["ETag", "&quot;1234-0a1b2c3d&quot;"],
    ]
    coded = cells(objects._facts(stored(b"", content_encoding="gzip", expires_at=1370314892)))
    assert coded[2][1] == "gzip"
    assert coded[4][1] == "Tue, 04 Jun 2013 03:01:32 GMT"


def test_a_value_is_shown_as_far_as_it_can_be() -> None:
    text = "line\tone\r\n<two>"
    assert objects._value(stored(text.encode())) == "<pre>line\tone\r\n&lt;two&gt;</pre>"
    shown = objects._value(stored(b'{"b":1.50,"a":[1]}', "application/ld+json; charset=utf-8"))
    assert shown == "<pre>{\n  &quot;b&quot;: 1.50,\n  &quot;a&quot;: [\n    1\n  ]\n}</pre>"
    assert objects._value(stored(b"{}x", "application/json")) == "<pre>{}x</pre>"
    assert objects._value(stored(b'{"a":1}')) == "<pre>{&quot;a&quot;:1}</pre>"
    assert "base64,eA==" in objects._value(stored(b"x", "IMAGE/PNG; q=1"))
    assert objects._value(stored(b"x" * 262_144)).startswith("<pre>xxx")
    assert "too large" in objects._value(stored(b"x" * 262_145))
    assert "It is empty." in objects._value(stored(b""))


@pytest.mark.parametrize("code", [*range(0x20), 0x7F])
def test_text_is_what_has_no_control_characters(code: int) -> None:
    shown = objects._value(stored(b"a" + bytes([code])))
    assert shown.startswith("<pre>000000  61") == (code < 0x20 and code not in (9, 10, 13))


def test_bytes_are_shown_in_lines_of_sixteen_up_to_a_bound() -> None:
    value = bytes(range(0x78, 0x88)) + b"\xff ~\x7f"
    assert objects._hexadecimal(value).split("\n") == [
        "000000  78 79 7a 7b 7c 7d 7e 7f 80 81 82 83 84 85 86 87  xyz{|}~.........",
        "000010  ff 20 7e 7f                                      . ~.",
    ]
    assert len(objects._hexadecimal(bytes(512)).split("\n")) == 32
    longer = objects._hexadecimal(bytes(1513)).split("\n")
    assert (len(longer), longer[-1]) == (33, "\N{HORIZONTAL ELLIPSIS} 1,513 bytes in all")
