"""The admin listener's pages: what they say, that they run nothing, that all can read them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from poky import embedded
from poky.api.page.layout import ago, size_of
from poky.api.page.plots import shown
from poky.api.page.troubles import troubles
from poky.api.services import Sight
from poky.health import State
from poky.metrics import History, Metrics, Sample, Sizes, Totals
from poky.metrics.history import quantile
from poky.schema.migrate import migrate
from poky.store import Activity, Store, StoreError
from tests.conftest import HASTY, Database
from tests.fake_cache import FakeCache
from tests.service import Client, Response, Service, running, wait_until
from tests.test_browser import _FLAGS, Pages, browser, pages

__all__ = ["pages"]

pytestmark = [pytest.mark.parametrize("kind", ["partitioned"], scope="session"), pytest.mark.slow]

HTML = {"Accept": "text/html"}
_PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
_RUNS = "</pre><script>ran()</script><img src=x onerror=ran()>"


@pytest.fixture(scope="module")
def service(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("page") / "log"
    with running(database.dsn_service, log, statement_timeout="30", metrics_buckets="5") as service:
        service.admin().request("PUT", "/buckets/b")
        yield service


def show(admin: Client, path: str = "/") -> Response:
    admin.close()  # a connection that was idle for long may be closed
    answer = admin.request("GET", path, headers=HTML)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8", answer.body
    return answer


def state_of(admin: Client) -> str:
    """What the page says of the whole, without its tags."""
    page = show(admin).body.decode()
    found = re.search('<section class="state (?:good|bad)">(.*?)</section>', page, re.DOTALL)
    assert found, page
    return re.sub("<[^>]+>", " ", found[1])


def test_all_is_well(kind: str, service: Service) -> None:
    service.client().put("/kv/b/k", "v")
    page = show(service.admin()).body.decode()
    assert "All is well" in page
    for word in (
        "Requests per second",
        "Writes in a statement",
        "Instances",
        "PostgreSQL 1",
        ">b</a>",
        "Background",
    ):
        assert word in page
    assert f"<b>{os.uname().nodename}:{service.port}</b> (this one)" in page


def test_writes_of_the_last_seconds_are_plotted(kind: str, service: Service) -> None:
    def is_drawn() -> bool:
        service.client().put("/kv/b/plotted", "v")
        page = show(service.admin()).body.decode()
        return bool(re.search("Writes in a statement over the last hour: on average [1-9]", page))

    wait_until(is_drawn, 30)


def test_a_bucket_s_expiry_and_feed_are_shown(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with closing(Store(own_database.dsn_owner, pool_size=1)) as store:
        store.ensure_bucket("fed")
        store.set_bucket_ttl("fed", 3600)
        store.keep_changes("fed", 7 * 86_400)
        store.ensure_bucket("plain")
    with running(own_database.dsn_service, tmp_path / "log") as service:
        page = show(service.admin()).body.decode()
        rows = dict(re.findall(r"<tr><td><a[^>]*>(fed|plain)</a></td>(.*?)</tr>", page))
    assert "<td>after 60 min</td><td>for 7 days</td>" in rows["fed"]
    assert "<td></td><td></td>" in rows["plain"]


def test_programs_get_text(kind: str, service: Service) -> None:
    for accept in ("*/*", "text/plain"):
        answer = service.admin().get("/", accept=accept)
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert b"curl -X PUT" in answer.body


@pytest.mark.parametrize("path", ["/", "/browse?bucket=b", "/browse/object?bucket=b&key=k"])
def test_only_our_script_runs_and_nothing_comes_from_elsewhere(
    kind: str, service: Service, path: str
) -> None:
    service.client().put("/kv/b/k", "v")
    page = show(service.admin(), path)
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    text = page.body.decode()
    assert text.count("<script") == 1
    assert not re.search(r'\s(?:style|on[a-z]+)=|(?:src|href)="(?:https?:)?//', text)
    assert page.headers["Cache-Control"] == "no-store"


VALUES: dict[str, tuple[bytes, str, str]] = {
    "text": (_RUNS.encode(), "text/plain", "&lt;/pre&gt;&lt;script&gt;ran()"),
    "html": (_RUNS.encode(), "text/html", "&lt;script&gt;ran()"),
    "svg": (b"<svg onload='ran()'/>", "image/svg+xml", "&lt;svg onload="),
    "json": (b'{"a":[1.0,12345678901234567890,"<b>"]}', "application/json", "&quot;a&quot;: ["),
    "no-json": (b'{"a":', "application/json", "{&quot;a&quot;:"),
    "png": (_PNG, "image/png", 'src="data:image/png;base64,iVBOR'),
    "no-png": (b"plain", 'image/png"onerror="ran()', "<pre>plain</pre>"),
    "bytes": (bytes(range(256)), "application/octet-stream", "000000  00 01 02"),
    "empty": (b"", "text/plain", "It is empty."),
    "large": (b"x" * 300_000, "text/plain", "It is too large to be shown here."),
    "larger": (b"x" * 3_000_000, "text/plain", "It is too large to be shown here."),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_is_shown_and_not_run(kind: str, service: Service, name: str) -> None:
    value, content_type, shown = VALUES[name]
    put = service.client().put(f"/kv/b/{name}", value, content_type=content_type)
    assert put.status == 200
    page = show(service.admin(), f"/browse/object?bucket=b&key={name}").body.decode()
    assert shown in page
    assert "12345678901234567890" in page or name != "json"
    assert not re.search(r"<(?:script>ran|img src=x|svg onload|b>\")", page)
    assert page.count("<script") == 1
    assert len(page) < 400_000


def test_an_encoded_value_is_not_taken_for_text(kind: str, service: Service) -> None:
    service.client().request(
        "PUT", "/kv/b/coded", "abc", {"Content-Encoding": "gzip", "Content-Type": "text/plain"}
    )
    page = show(service.admin(), "/browse/object?bucket=b&key=coded").body.decode()
    assert "61 62 63" in page


def test_keys_are_listed_by_prefix_and_page(kind: str, service: Service) -> None:
    service.admin().request("PUT", "/buckets/many")
    client = service.client()
    for number in range(0, 150, 50):
        items = [{"key": f"k{n:03}", "data": "v"} for n in range(number, number + 50)]
        assert client.batch("PUT", "many", items).status == 200
    client.put("/kv/many/folder/one", "v")
    admin = service.admin()
    first = show(admin, "/browse?bucket=many").body.decode()
    assert ">folder/</a>" in first
    assert ">k098</a>" in first
    assert ">k099</a>" not in first
    (link,) = re.findall(r'href="(/browse\?[^"]*after[^"]*)"', first)
    second = show(admin, link.replace("&amp;", "&")).body.decode()
    assert ">k099</a>" in second
    assert "after=" not in second
    assert ">folder/one</a>" in show(admin, "/browse?bucket=many&prefix=folder/").body.decode()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/browse", 400, "bad_bucket_name"),
        ("/browse?bucket=<script>", 400, "bad_bucket_name"),
        ("/browse?bucket=b&more=1", 400, "bad_query"),
        ("/browse?bucket=nowhere", 404, "bucket_not_found"),
        ("/browse/object?bucket=b", 400, "bad_key"),
        ("/browse/object?bucket=b&key=missing", 404, "object_not_found"),
        ("/browse/object?bucket=nowhere&key=k", 404, "bucket_not_found"),
    ],
)
def test_what_is_not_there_is_refused(
    kind: str, service: Service, path: str, status: int, code: str
) -> None:
    path = path.replace("<", "%3C").replace(">", "%3E")
    answer = service.admin().request("GET", path, headers=HTML)
    assert (answer.status, answer.code) == (status, code)


def test_with_tokens_values_are_hidden_unless_allowed(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    for settings, status in (({}, 403), ({"admin_objects": "on"}, 200)):
        with running(
            own_database.dsn_service, tmp_path / f"log{status}", access="tokens", **settings
        ) as service:
            admin = service.admin()
            admin.request("PUT", "/buckets/b")
            assert admin.request("GET", "/browse?bucket=b", headers=HTML).status == status
            page = show(admin).body.decode()
            assert ("POKY_ADMIN_OBJECTS=on" in page) == (status == 403)
            assert service.client().get("/browse?bucket=b").status == 404


# What is wrong is said within five seconds.


def seen_within(admin: Client, words: str, seconds: float = 5.0) -> float:
    """How long it took; the limit is for a quiet machine, so a busy one gets longer."""
    began = time.monotonic()
    wait_until(lambda: words in state_of(admin), seconds * 6, words)
    return time.monotonic() - began


def test_a_cache_that_is_cut_off_is_named(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with FakeCache("one") as cache:
        settings = {"caches": f"one={cache.url}", "lease_seconds": "2", "statement_timeout": "30"}
        with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
            admin, lease = service.admin(), Client(service.lease_port)
            admin.request("PUT", "/buckets/b")
            wait_until(lambda: lease.get("/lease", poky_node="one").status == 200)
            reader = service.client()
            assert "All is well" in state_of(admin)
            # Nothing renews its lease now, and a cache without one passes its reads on.

            def said() -> str:
                reader.get("/kv/b/k")
                return state_of(admin)

            wait_until(lambda: "The cache one does not renew its lease." in said(), 30)
            wait_until(lambda: "The cache one has no lease." in said(), 30)
            cache.stop()
            service.client().put("/kv/b/k", "v")
            seen_within(admin, "The cache one is suspended")
            state = state_of(admin)
            assert re.search(r"suspended\. +since \d+ s", state)
            assert "Is Varnish up on its host" in state
            assert "it is suspended" in show(admin).body.decode().rpartition("Last warnings")[2]


def test_a_cache_that_nobody_reads_from_needs_no_lease(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with FakeCache("one") as cache:
        settings = {"caches": f"one={cache.url}", "lease_seconds": "2", "statement_timeout": "30"}
        with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
            admin, lease = service.admin(), Client(service.lease_port)
            admin.request("PUT", "/buckets/b")
            wait_until(lambda: lease.get("/lease", poky_node="one").status == 200)
            time.sleep(4)
            service.client().put("/kv/b/k", "v")
            assert "All is well" in state_of(admin)


def test_a_cache_that_confirms_late_or_was_removed_is_named(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with FakeCache("one") as cache:
        settings = {"caches": f"one={cache.url}", "purge_timeout": "1", "lease_seconds": "2"}
        with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
            admin, lease = service.admin(), Client(service.lease_port)
            admin.request("PUT", "/buckets/b")
            wait_until(lambda: lease.get("/lease", poky_node="one").status == 200)
            client = service.client()
            for number in range(10):
                client.put(f"/kv/b/{number}", "v")
            assert "to confirm" not in state_of(admin)
            cache.delay = 0.3
            for number in range(6):
                client.put(f"/kv/b/{number}", "w")
            for number in range(6):
                client.put(f"/kv/b/{number}", "x")
            assert re.search(r"The cache one takes 3\d\d ms to confirm a purge", state_of(admin))
            cache.delay = 0
            wait_until(lambda: "to confirm" not in state_of(admin))
            with closing(Store(own_database.dsn_service, pool_size=1)) as store:
                store.suspend_node("one", hold=True)

                def is_removed() -> bool:
                    with suppress(StoreError):  # it may hold a lease
                        return store.remove_node("one")
                    return False

                wait_until(is_removed)
            seen_within(admin, "The cache one does not take part.")


def test_requests_that_are_slow_are_told(kind: str, own_database: Database, tmp_path: Path) -> None:
    with FakeCache("one") as cache:
        settings = {"caches": f"one={cache.url}", "purge_timeout": "4", "lease_seconds": "60"}
        with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
            admin, lease = service.admin(), Client(service.lease_port)
            admin.request("PUT", "/buckets/b")
            wait_until(lambda: lease.get("/lease", poky_node="one").status == 200)
            cache.delay = 0.8

            def write(number: int) -> int:
                client = service.client()
                return [client.put(f"/kv/b/{number}-{n}", "v") for n in range(5)][-1].status

            with ThreadPoolExecutor(20) as writers:
                assert set(writers.map(write, range(20))) == {200}
            said = state_of(admin)
            assert re.search(r"One request for an object in a hundred took longer than \d", said)
            wait_until(lambda: "took longer" not in state_of(admin))


def test_an_instance_that_is_gone_is_named_by_a_page_that_was_not_open(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    dsn = own_database.dsn_service
    with running(dsn, tmp_path / "one", instance="one") as one:
        with running(dsn, tmp_path / "two", instance="two"):
            runs = r'"name": ?"instances".*?"runs": ?[1-9]'
            status = "/status?verbose"
            wait_until(lambda: re.search(runs, one.client().get(status).body.decode()))
            time.sleep(6)
        seen_within(one.admin(), "The instance two is gone.")


def test_an_instance_that_is_gone_is_named(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    dsn = own_database.dsn_service
    with running(dsn, tmp_path / "one", instance="one") as one:
        admin = one.admin()
        with running(dsn, tmp_path / "two", instance="two"):
            assert ">two<" in show(admin).body.decode()
            assert "All is well" in state_of(admin)
        seen_within(admin, "The instance two is gone.")
        with running(dsn, tmp_path / "again", instance="two"):
            seen_within(admin, "All is well")


def test_a_database_that_is_gone_is_named(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    server = embedded.ensure_running(home, settings=HASTY)
    try:
        migrate(server.dsn_owner, kind="partitioned", release="tests")
        with running(server.dsn_service, tmp_path / "log") as service:
            admin = service.admin()
            assert "All is well" in state_of(admin)
            server.close()
            seen_within(admin, "The database does not answer.")
            wait_until(lambda: re.search(r"answer\. +since \d+ s", state_of(admin)))
            assert "Is PostgreSQL up" in state_of(admin)
            server = embedded.ensure_running(home, settings=HASTY)
            seen_within(admin, "All is well")
    finally:
        server.close()


# Samples of the last hour.


def test_an_hour_is_kept_in_samples(kind: str) -> None:
    history = History((0.001, 0.01, 0.1))
    for number in range(500):
        now = 1000.0 + 10 * number
        assert history.is_due(now)
        counts = [0.0, 10.0 * number, 0.0, 0.0]
        history.take(Totals(now, 10 * number, number, counts, {"b": 5 * number}))
        assert not history.is_due(now + 9)
    assert len(history.samples) == 360
    last: Sample = history.samples[-1]
    assert (last.requests, last.failed, last.seconds, last.buckets) == (10, 1, 10, {"b": 5})
    assert last.median == pytest.approx(0.0055)


def test_a_sample_has_the_buckets_that_were_used_in_its_time(kind: str) -> None:
    history = History((1.0,))
    for now, buckets in ((0.0, {"idle": 3}), (10.0, {"idle": 3, "new": 1})):
        history.take(Totals(now, 0, 0, [0.0, 0.0], buckets))
    (sample,) = history.samples
    assert sample.buckets == {"new": 1}


def test_a_sample_has_how_many_writes_shared_a_statement_in_its_time(kind: str) -> None:
    sizes = Sizes()
    sizes.add(1, 50)  # before the first sample
    metrics = Metrics(writes=sizes)
    try:
        wait_until(lambda: (sample := metrics.recent()) is not None and sample.seconds > 0)
        assert _recent(metrics).grouped is None
        for size in (1, 5):
            sizes.add(1, size)
        assert _recent(metrics).grouped == 3
    finally:
        metrics.close()


def _recent(metrics: Metrics) -> Sample:
    sample = metrics.recent()
    assert sample is not None
    return sample


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (None, "s", "\N{EN DASH}"),
        (0.0, "", "0"),
        (0.001234, "s", "1.23 ms"),
        (0.01234, "s", "12.3 ms"),
        (12.345, "s", "12,345 ms"),
        (7.0, "", "7"),
    ],
)
def test_figures_have_few_digits(kind: str, value: float | None, unit: str, expected: str) -> None:
    assert shown(value, unit) == expected


def test_what_is_wrong_is_told_from_its_bound_on(kind: str) -> None:
    now = 1_000_000.0

    def minute(failed: int, at: float = now - 10) -> Sight:
        return Sight(history=lambda: [Sample(at, 5, 1000, failed, None, None, {})])

    def objects(requests: int, slowest: float) -> Sight:
        return Sight(recent=lambda: Sample(now, 5, requests, 0, None, slowest, {}))

    def told(
        sight: Sight = Sight(),  # noqa: B008
        state: State = State("ok", "ok"),  # noqa: B008
        tasks: Sequence[dict[str, Any]] = (),
        activity: Activity | None = None,
    ) -> list[tuple[str, float | None]]:
        return [each[:2] for each in troubles(state, (), sight, (), tasks, activity, now)]

    def archive(at: int | None) -> Activity:
        return Activity("17", 0, 0, [], [], True, 0, at)

    failing = {"name": "reap", "last_error": "away", "lag_seconds": 30.0}
    assert told() == []
    assert told(minute(10)) == []
    (failed,) = told(minute(11))
    assert failed == ("11 of 1,000 requests of the last minute failed (5xx).", now - 15)
    assert told(minute(1000, now - 61)) == []
    assert told(objects(50, 0.5)) == told(objects(49, 9.0)) == []
    (slow,) = told(objects(50, 0.6))
    assert "longer than 0.60 s" in slow[0]
    assert told(Sight(memory=lambda: (90, 100))) == []
    assert told(Sight(memory=lambda: (91, 100))) == [("The memory for requests is used up.", None)]
    assert told(Sight(stale_at=lambda: now - 3600)) == []
    assert told(Sight(stale_at=lambda: now - 3599)) == [
        ("A read through a cache was stale.", now - 3599)
    ]
    assert told(Sight(gone=lambda: {"a": now - 600})) == []
    assert told(Sight(gone=lambda: {"a": now - 599})) == [("The instance a is gone.", now - 599)]
    assert told(Sight(purge_seconds=lambda: {"c": 0.1})) == []
    assert told(Sight(purge_seconds=lambda: {"c": 0.15}))[0][0].startswith(
        "The cache c takes 150 ms"
    )
    assert told(tasks=[failing]) == [("The background task reap fails: away", now - 30)]
    assert told(tasks=[{**failing, "lag_seconds": 0}, {**failing, "last_error": ""}]) == []
    assert told(state=State("ok", "missing")) == [("The database's schema is missing.", None)]
    away = Sight(failing_since=lambda: 7.0)
    assert told(away, State("unavailable", "unknown")) == [("The database does not answer.", 7.0)]
    assert told(activity=archive(None)) == []
    assert told(activity=archive(5)) == [("PostgreSQL cannot archive its WAL.", 5)]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (3e9, "3.0 GB"),
     (4.2e12, "4.2 TB"), (5e15, "5000.0 TB")],
)  # fmt: skip
def test_sizes_have_a_unit(kind: str, count: float, expected: str) -> None:
    assert size_of(count) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"),
     (172_799, "48 h"), (864_000, "10 days")],
)  # fmt: skip
def test_spans_have_a_unit(kind: str, seconds: float, expected: str) -> None:
    assert ago(seconds) == expected


def test_quantiles_are_linear_within_a_bound(kind: str) -> None:
    bounds = (1.0, 2.0, 4.0)
    assert quantile(bounds, [0, 0, 0, 0], 0.5) is None
    assert quantile(bounds, [2, 2, 0, 0], 0.5) == 1.0
    assert quantile(bounds, [0, 0, 4, 0], 0.25) == 2.5
    assert quantile(bounds, [0, 0, 0, 5], 0.5) == 4.0


# In a browser.

_AXE = """
<script src="/axe.js"></script>
<script>
  const report = what => fetch('/', {method: 'POST', body: JSON.stringify(what)});
  addEventListener('load', () => axe.run(document, {resultTypes: ['violations']}).then(
    found => report(found.violations.map(each => [each.impact, each.id,
      each.nodes.slice(0, 3).map(node => node.html.slice(0, 200))])),
    error => report('' + error)));
</script>
"""
_WATCH = """
<script>
  const report = what => fetch('/', {method: 'POST', body: JSON.stringify(what)});
  const began = performance.now();
  const look = () => {
    const said = document.querySelector('.state').textContent;
    if (said.includes('Not all is well')) report([said, (performance.now() - began) / 1000]);
    else setTimeout(look, 50);
  };
  look();
  report('there');
</script>
"""


@pytest.fixture
def troubled(kind: str, own_database: Database, tmp_path: Path) -> Iterator[Callable[[str], str]]:
    """Pages of an instance with everything to show, its cache suspended; by path."""
    with FakeCache("one") as cache:
        settings = {"caches": f"one={cache.url}", "lease_seconds": "2", "statement_timeout": "30"}
        with running(own_database.dsn_service, tmp_path / "service", **settings) as service:
            admin, client = service.admin(), service.client()
            admin.request("PUT", "/buckets/b")
            client.put("/kv/b/picture", _PNG, content_type="image/png")
            client.put("/kv/b/folder/json", '{"a": 1}', content_type="application/json")
            cache.stop()
            client.put("/kv/b/k", "v")
            wait_until(lambda: "is suspended" in state_of(admin))
            yield lambda path: show(admin, path).body.decode()


PATHS = (
    "/",
    "/browse?bucket=b",
    "/browse/object?bucket=b&key=picture",
    "/browse/object?bucket=b&key=folder/json",
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_everyone_can_read_it(
    kind: str, pages: Pages, tmp_path: Path, troubled: Callable[[str], str]
) -> None:
    pages.pages["/axe.js"] = files("axe_core_python").joinpath("axe.min.js").read_text()
    for number, path in enumerate(PATHS):
        for is_dark in (False, True)[: 2 if number in (0, 3) else 1]:
            page = troubled(path)
            if is_dark:
                page = page.replace("(prefers-color-scheme: dark)", "all")
            pages.pages["/"] = page.replace("</body>", f"{_AXE}</body>")
            with browser(f"http://{pages.site}/", tmp_path / f"profile-{number}-{is_dark}"):
                found = pages.reports.get(timeout=60)
            assert isinstance(found, list), found
            serious = [each for each in found if each[0] in ("serious", "critical")]
            assert not serious, (path, is_dark, json.dumps(serious, indent=1))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_that_is_open_says_what_is_wrong(
    kind: str, pages: Pages, tmp_path: Path, service: Service, troubled: Callable[[str], str]
) -> None:
    pages.pages["/"] = show(service.admin()).body.decode().replace("</body>", f"{_WATCH}</body>")
    with browser(f"http://{pages.site}/", tmp_path / "profile"):
        assert pages.reports.get(timeout=60) == "there"
        pages.pages["/"] = troubled("/")
        said, _ = pages.reports.get(timeout=60)
    assert "The cache one is suspended" in said


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_can_be_drawn(kind: str, tmp_path: Path, service: Service, width: int) -> None:
    """A screenshot of what the instance itself serves, its policy in force; narrow and wide."""
    program = shutil.which("chromium")
    assert program, "chromium is missing: make packages"
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [
            *(program, *_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars"),
            *(f"--window-size={width},1400", f"--screenshot={picture}"),
            f"http://127.0.0.1:{service.admin_port}/",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert picture.is_file(), done.stderr
    assert "Content Security Policy" not in done.stderr
    assert picture.stat().st_size > 10_000
