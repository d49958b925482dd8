"""What is counted and written of every answer, also while the log is blocked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace

import pytest

from poky import logs
from poky.logs import Log, LogHandler
from poky.metrics import Metrics, Statsd
from poky.metrics.figures import Figure, Histogram, Sizes, families
from poky.metrics.history import History, Sample, Totals, quantile
from tests.service import wait_until

REQUEST = {
    "REQUEST_METHOD": "GET",
    "REQUEST_URI": "/kv/b/k?x=1",
    "REMOTE_ADDR": "192.0.2.1",
    "HTTP_X_REQUEST_ID": "r" * 100,
    "poky.route": "/kv/<bucket>/<key>",
    "poky.outcome": "inserted",
}


def counted(metrics: Metrics, **labels: str) -> float:
    said = ",".join(f'{name}="{value}"' for name, value in labels.items())
    for line in metrics.expose().decode().splitlines():
        if line.startswith(f"poky_requests_total{{{said}}}"):
            return float(line.split()[-1])
    return 0.0


@pytest.fixture
def pipe() -> Iterator[tuple[int, Log]]:
    """The end where what goes to the log comes out, and the log."""
    reader, writer = os.pipe()
    yield reader, Log(writer)
    os.close(writer)


def test_an_answer_counts_at_the_next_scrape() -> None:
    metrics = Metrics()
    for number in range(3):
        metrics.observe(REQUEST, 200, 10, 0.003)
        wanted = {"method": "GET", "route": "/kv/<bucket>/<key>", "status": "200"}
        assert counted(metrics, **wanted) == number + 1
    text = metrics.expose().decode()
    assert "poky_sent_bytes_total 30.0" in text
    assert 'poky_request_seconds_count{method="GET",route="/kv/<bucket>/<key>"} 3.0' in text
    metrics.close()


def test_a_method_that_a_client_invents_is_no_series_of_its_own() -> None:
    metrics = Metrics()
    metrics.observe({"REQUEST_METHOD": "FROBNICATE", "REQUEST_URI": "/"}, 404, 0, 0.0)
    assert counted(metrics, method="-", route="-", status="404") == 1
    metrics.close()


def test_a_request_refused_for_its_length_is_counted() -> None:
    metrics = Metrics(buckets=1)
    for length in ("abc", "-1", "1" * 40, "٣", "", "0"):
        metrics.observe({**REQUEST, "CONTENT_LENGTH": length}, 400, 0, 0.0)
    metrics.observe({**REQUEST, "CONTENT_LENGTH": "7"}, 200, 0, 0.0)
    wanted = {"method": "GET", "route": "/kv/<bucket>/<key>", "status": "400"}
    assert counted(metrics, **wanted) == 6
    assert "poky_received_bytes_total 7.0" in metrics.expose().decode()
    metrics.close()


TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("parent", "trace"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", "-"),
        (f"00-{TRACE} status=500", "-"),
        ("", None),
    ],
)
@pytest.mark.parametrize("format", ["keyvalue", "json"])
def test_a_line_has_the_trace_and_no_query(
    pipe: tuple[int, Log], format: str, parent: str, trace: str | None
) -> None:
    metrics = Metrics(access_log=pipe[1], log_format=format)
    seen = {**REQUEST, "REQUEST_URI": "/kv/b/k?token=secret"}
    if parent:
        seen["HTTP_TRACEPARENT"] = parent
    metrics.observe(seen, 200, 10, 0.003)
    line = os.read(pipe[0], 4096).decode()
    metrics.close()
    assert "secret" not in line
    if format == "keyvalue":
        fields = dict(word.split("=", 1) for word in line.split())
        numbers = fields["status"], fields["bytes"], fields["ms"]
        assert numbers == ("200", "10", "3.00")
    else:
        fields = json.loads(line)
        assert (fields["status"], fields["bytes"], fields["ms"]) == (200, 10, 3.0)
        assert datetime.fromisoformat(fields["time"]).tzinfo
    assert (fields["method"], fields["path"]) == ("GET", "/kv/b/k")
    assert (fields["outcome"], fields["client"]) == ("inserted", "192.0.2.1")
    assert fields["id"] == "r" * 64
    assert fields.get("trace") == trace


def test_statsd_gets_the_original_names_and_times() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        metrics = Metrics(statsd=Statsd(f"127.0.0.1:{server.getsockname()[1]}", "base"))
        for status in (200, 200, 404):
            metrics.observe(REQUEST, status, 10, 0.0125)
        for _ in range(500):
            metrics.observe({**REQUEST, "REQUEST_METHOD": "PUT"}, 200, 10, 0.001)
        words: list[str] = []
        counts = 0
        while counts < 503:
            datagram = server.recv(65536)
            assert len(datagram) <= 1400
            words += datagram.decode().split("\n")
            counts = sum(int(w.split(":")[1][:-2]) for w in words if w.endswith("|c"))
        metrics.close()
    assert words.count("base.get:12.50|ms") == 3
    assert words.count("base.put:1.00|ms") == 500
    assert {word.split(":")[0] for word in words} == {
        *("base.get", "base.get.200", "base.get.404", "base.put", "base.put.200")
    }


def test_a_line_is_written_soon(pipe: tuple[int, Log]) -> None:
    metrics = Metrics(access_log=pipe[1])
    metrics.observe(REQUEST, 200, 10, 0.003)
    started = time.monotonic()
    line = os.read(pipe[0], 4096).decode()
    assert time.monotonic() - started < 2
    assert line == (
        "method=GET path=/kv/b/k status=200 bytes=10 ms=3.00 outcome=inserted"
        f" client=192.0.2.1 id={'r' * 64}\n"
    )
    metrics.close()


def test_the_last_lines_are_written_at_the_end(pipe: tuple[int, Log]) -> None:
    metrics = Metrics(access_log=pipe[1])
    for number in range(50):
        metrics.observe(REQUEST, 200, number, 0.003)
    metrics.close()
    assert pipe[1].flush(10)
    lines = os.read(pipe[0], 65536).decode().splitlines()
    assert [line.split()[3] for line in lines] == [f"bytes={number}" for number in range(50)]


def test_while_the_log_is_blocked_answers_are_counted_and_memory_is_bounded(
    pipe: tuple[int, Log],
) -> None:
    reader, log = pipe
    metrics = Metrics(access_log=log)
    for _ in range(80_000):
        metrics.observe(REQUEST, 200, 1, 0.003)
    wanted = {"method": "GET", "route": "/kv/<bucket>/<key>", "status": "200"}
    assert counted(metrics, **wanted) == 80_000
    assert len(metrics._seen) < 4096
    assert sum(map(len, log._lines)) <= 4 * 1024 * 1024
    assert log.dropped > 10_000
    began = time.monotonic()
    metrics.close()
    assert not log.flush(0.2)
    assert time.monotonic() - began < 5

    # Once it is read again, every line is there or counted.
    said = b""
    missing = None
    while missing is None:
        said += os.read(reader, 65536)
        missing = re.search(rb"(\d+) lines are missing here", said)
    assert said.count(b"method=GET") + int(missing[1]) >= 80_000 - 512
    assert log.dropped == int(missing[1])
    log.add(["again\n"])
    assert log.flush(10)


def test_a_log_that_takes_nothing_drops_and_counts() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for file in (writer, -1, os.open("/dev/full", os.O_WRONLY)):
        log = Log(file)
        log.add(["one\n", "two\n"])
        assert log.flush(10)
        assert log.dropped == 2


def test_a_text_that_returns_is_written_a_few_times_and_then_counted(
    pipe: tuple[int, Log], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away, each request would have the same to say."""
    reader, log = pipe
    now = 1000.0
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now))
    logger = logging.Logger("poky.store")
    logger.addHandler(handler := LogHandler(log))
    for number in range(300):
        logger.warning("cannot use the database: %s", "refused")
        logger.warning("another one: %d", number)
    handler.flush()
    lines = os.read(reader, 65536).decode().splitlines()
    assert lines.count("cannot use the database: refused") == 5
    assert "WARNING poky.logs: 295 times more: WARNING poky.store: cannot use the data" in lines[-1]
    assert len([line for line in lines if line.startswith("another one")]) == 300
    # After ten seconds it is said again, first what was left out.
    for _ in range(8):
        logger.warning("cannot use the database: %s", "refused")
    now += 10
    logger.warning("cannot use the database: %s", "refused")
    assert log.flush(10)
    lines = os.read(reader, 65536).decode().splitlines()
    assert lines[:5] == ["cannot use the database: refused"] * 5
    assert "3 times more" in lines[5]
    assert lines[6:] == ["cannot use the database: refused"]


# What is counted of requests.


def exposed(metrics: Metrics) -> dict[str, float]:
    """The samples by their name and labels as they are written."""
    lines = metrics.expose().decode().splitlines()
    pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
    return {name: float(number) for name, number in pairs}


def test_batches_are_counted_by_their_items() -> None:
    metrics = Metrics()
    for items in (1, 2, 100_001):
        metrics.observe({**REQUEST, "REQUEST_METHOD": "POST", "poky.items": items}, 200, 0, 0.1)
    metrics.observe(REQUEST, 200, 0, 0.1)
    found = exposed(metrics)
    metrics.close()
    bucket = 'poky_batch_items_bucket{le="%s",method="POST"}'
    assert [found[bucket % le] for le in ("1.0", "10.0", "100000.0", "+Inf")] == [1, 2, 2, 3]
    assert found['poky_batch_items_sum{method="POST"}'] == 100_004
    assert not [name for name in found if "batch_items" in name and "GET" in name]


def test_series_of_buckets_are_for_those_that_succeeded_first() -> None:
    metrics = Metrics(buckets=2)

    def see(uri: str, status: int = 200, method: str = "GET", length: str = "") -> None:
        asked = {"REQUEST_URI": uri, "REQUEST_METHOD": method, "CONTENT_LENGTH": length}
        metrics.observe({**REQUEST, **asked}, status, 10, 0.0)

    see("/kv/absent/k", 404)
    see("/kv/invented/k", 400)
    see("/kv/a?prefix=x")
    see("/kv/%62/k")
    see("/multi/b", method="PUT", length="5")
    see("/kv/c/k")
    see("/kv/a/k", 404)
    see("/kv/b/k", 399, length="7")
    see("/changes/a")
    found = exposed(metrics)
    metrics.close()
    name = "poky_bucket_%s_total"
    assert {each: value for each, value in found.items() if "bucket_requests_total" in each} == {
        f'{name % "requests"}{{bucket="-",method="GET"}}': 4,
        f'{name % "requests"}{{bucket="a",method="GET"}}': 2,
        f'{name % "requests"}{{bucket="b",method="PUT"}}': 1,
        f'{name % "requests"}{{bucket="b",method="GET"}}': 1,
    }
    assert found[f'{name % "sent_bytes"}{{bucket="a"}}'] == 20
    assert found[f'{name % "received_bytes"}{{bucket="b"}}'] == 12
    assert found[f'{name % "received_bytes"}{{bucket="a"}}'] == 0
    none = Metrics()
    none.observe(REQUEST, 200, 0, 0.0)
    assert "poky_bucket" not in none.expose().decode()
    none.close()


def test_a_method_that_is_known_and_a_route_that_is_are_series() -> None:
    metrics = Metrics()
    for method in ("GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"):
        metrics.observe({"REQUEST_METHOD": method, "REQUEST_URI": "/"}, 404, 0, 0.0)
    metrics.observe({**REQUEST, "REQUEST_METHOD": "PATCH"}, 405, 0, 0.0)
    known = dict.fromkeys(("GET", "HEAD", "PUT", "POST", "DELETE", "-"), 1.0)
    for method, count in known.items():
        assert counted(metrics, method=method, route="-", status="404") == count
    assert counted(metrics, method="PATCH", route="/kv/<bucket>/<key>", status="405") == 1
    metrics.close()


def test_what_clients_did_lately_is_known_without_what_admins_did() -> None:
    metrics = Metrics(buckets=1)
    metrics.history._marks.append(metrics._totals(time.time() - 5, ("/kv/<bucket>/<key>",)))
    for method, status in (("GET", 200), ("HEAD", 304), ("PUT", 503)):
        metrics.observe({**REQUEST, "REQUEST_METHOD": method}, status, 0, 0.02)
    for route in ("/kv/<bucket>", "/multi/<bucket>", "/status"):
        metrics.observe({**REQUEST, "poky.route": route}, 500, 0, 9.0)
    found = metrics.recent()
    assert found is not None
    assert (found.requests, found.failed, found.reads) == (3, 1, 2)
    assert found.median is not None
    assert 0.01 <= found.median <= 0.02
    assert found.slowest_percent is not None
    assert found.slowest_percent <= 0.02
    assert found.buckets == {"b": 6}
    metrics.count()
    whole = metrics._totals(time.time(), ("/kv/", "/multi/"))
    assert (whole.requests, whole.failed, whole.reads) == (5, 3, 4)
    metrics.close()


def test_a_sample_is_the_difference_of_totals() -> None:
    history = History((1.0, 2.0))
    assert history.is_due(0)
    assert history.is_mark_due(0)
    before = Totals(100.0, 10, 1, [5.0, 5.0, 0.0], {"a": 3, "b": 2}, 4, 8, 6)
    history.take(before)
    assert list(history.samples) == []
    assert not history.is_due(109.9)
    assert history.is_due(110)
    after = Totals(110.0, 15, 3, [7.0, 6.0, 1.0], {"a": 4, "b": 2, "c": 1}, 6, 13, 8)
    history.take(after)
    assert list(history.samples) == [
        Sample(110.0, 10.0, 5, 2, 1.0, 2.0, {"a": 1, "c": 1}, 2.5, 2),
    ]
    history.take(after._replace(at=120.0))
    assert history.samples[-1][2:] == (0, 0, None, None, {}, None, 0)


def test_what_happened_just_now_is_since_the_oldest_of_three_marks() -> None:
    history = History((1.0,))

    def totals(at: float) -> Totals:
        return Totals(at, int(at), 0, [at, 0.0], {})

    assert history.recent(totals(1)) is None
    for at in (10.0, 12.0, 14.0, 16.0):
        assert history.is_mark_due(at)
        history.mark(totals(at))
        assert not history.is_mark_due(at + 1.9)
    found = history.recent(totals(17))
    assert found is not None
    assert (found.seconds, found.requests) == (5.0, 5)
    assert history.recent(totals(12.0)) is None


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [([4, 0, 0, 0], 0.5, 0.5), ([1, 1, 0, 0], 0.75, 1.5), ([0, 4, 0, 0], 1.0, 2.0),
     ([1, 0, 1, 0], 0.5, 1.0), ([0, 0, 0, 1], 0.01, 4.0), ([0, 0, 8, 0], 0.125, 2.25)],
)  # fmt: skip
def test_a_quantile_lies_in_its_bound(counts: list[float], share: float, expected: float) -> None:
    assert quantile((1.0, 2.0, 4.0), counts, share) == expected


# Figures.


def test_sizes_are_counted_by_each_thread_and_added_up() -> None:
    sizes = Sizes()
    assert (sizes.count, sizes.sum) == (0, 0)
    for thread, size in ((1, 1), (1, 3), (2, 64), (2, 65), (1, 300)):
        sizes.add(thread, size)
    assert (sizes.count, sizes.sum) == (5, 1 + 3 + 64 + 65 + 256)
    series = sizes.series()[""]
    assert series == [1, 0, 1, 0, 0, 0, 1, 2, 389]
    for size in (255, 256, 257):
        other = Sizes()
        other.add(1, size)
        assert other.sum == min(size, 256)


def test_an_observation_at_a_bound_is_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe("a", value)
    histogram.observe("b", 3.0)
    assert histogram.series() == {"a": [2, 2, 1, 14], "b": [0, 0, 1, 3]}


def test_figures_are_families_of_their_kind() -> None:
    histogram = Histogram((1.0,))
    histogram.observe(("a", "b"), 0.5)
    histogram.observe(("a", "b"), 2.0)
    given = {
        "one": Figure("One.", lambda: 7),
        "two": Figure("Two.", lambda: {"x": 1, "y": 2}, "counter", "word"),
        "three": Figure("Three.", lambda: histogram, "histogram", "first second"),
        "four": Figure("Four.", lambda: {("p", "q"): 3}, label="first second"),
    }
    found = list(families(given))
    assert [(each.name, each.type, each.documentation) for each in found] == [
        ("poky_one", "gauge", "One."),
        ("poky_two", "counter", "Two."),
        ("poky_three", "histogram", "Three."),
        ("poky_four", "gauge", "Four."),
    ]
    assert [
        (each.name, each.labels, each.value) for family in found for each in family.samples
    ] == [
        ("poky_one", {}, 7),
        ("poky_two_total", {"word": "x"}, 1),
        ("poky_two_total", {"word": "y"}, 2),
        ("poky_three_bucket", {"first": "a", "second": "b", "le": "1.0"}, 1),
        ("poky_three_bucket", {"first": "a", "second": "b", "le": "+Inf"}, 2),
        ("poky_three_count", {"first": "a", "second": "b"}, 2),
        ("poky_three_sum", {"first": "a", "second": "b"}, 2.5),
        ("poky_four", {"first": "p", "second": "q"}, 3),
    ]


# Lines of the log.


@pytest.mark.parametrize("format", ["keyvalue", "json"])
def test_what_a_client_sends_is_cut_in_a_line(pipe: tuple[int, Log], format: str) -> None:
    metrics = Metrics(access_log=pipe[1], log_format=format)
    long = {"REQUEST_URI": "/" + "x" * 3000 + "?q", "HTTP_X_REQUEST_ID": "a b"}
    metrics.observe({**REQUEST, **long}, 200, 1, 0.0123456)
    line = os.read(pipe[0], 65536).decode()
    metrics.close()
    assert line.endswith("\n")
    if format == "json":
        fields = json.loads(line)
        assert abs(datetime.fromisoformat(fields["time"]).timestamp() - time.time()) < 20
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", fields["time"])
    else:
        fields = dict(word.split("=", 1) for word in line.split())
    assert (len(fields["path"]), fields["id"]) == (2048, "-")
    assert float(fields["ms"]) == 12.35


def test_a_log_says_how_many_lines_are_missing(pipe: tuple[int, Log]) -> None:
    reader, log = pipe
    log = Log(os.dup(log._file), most_bytes=10)
    log.add(["123456789\n", "x\n", "y\n"])
    assert log.flush(10)
    wanted = b"123456789\nWARNING poky.logs: 2 lines are missing here: the log was not taken.\n"
    said = b""
    while len(said) < len(wanted):
        said += os.read(reader, 4096)
    assert said == wanted
    assert log.dropped == 2
    log.add(["again\n"])
    assert log.flush(10)
    assert os.read(reader, 4096) == b"again\n"
    os.close(log._file)


def test_the_last_warnings_are_remembered_each_once(pipe: tuple[int, Log]) -> None:
    logger = logging.Logger("poky.x")
    logger.addHandler(handler := LogHandler(pipe[1]))
    logger.info("quiet")
    for number in range(25):
        logger.warning("number %d", number)
        logger.error("number %d", number)
    recent = list(handler.recent)
    assert [each.message for each in recent] == [f"number {number}" for number in range(5, 25)]
    assert {(each.level, each.logger) for each in recent} == {("error", "poky.x")}
    assert abs(recent[-1].at - time.time()) < 20
    logger.info("as it should be")
    assert list(handler.recent) == recent


def test_a_warning_that_comes_again_is_remembered_once_with_its_last_time(
    pipe: tuple[int, Log],
) -> None:
    logger = logging.Logger("poky.x")
    logger.addHandler(handler := LogHandler(pipe[1]))
    other = logging.Logger("poky.y")
    other.addHandler(handler)
    for _ in range(2):
        logger.warning("again")
        last = handler.recent[-1].at
    assert [each.message for each in handler.recent] == ["again"]
    assert handler.recent[-1].at == last
    other.warning("again")
    logger.warning("again")
    assert [each.logger for each in handler.recent] == ["poky.x", "poky.y", "poky.x"]


def test_texts_are_counted_for_so_many_at_a_time(pipe: tuple[int, Log]) -> None:
    reader, log = pipe
    logger = logging.Logger("poky.x")
    logger.addHandler(handler := LogHandler(log))
    for number in range(logs._MOST_TEXTS):
        logger.info("known %d", number)
    for _ in range(7):
        logger.info("known 0")
        logger.info("one more")
    handler.flush()
    lines = os.read(reader, 65536).decode().splitlines()
    assert lines.count("known 0") == 5
    assert lines.count("one more") == 7, "which of them to leave out is not known"
    assert lines[-1] == "WARNING poky.logs: 3 times more: INFO poky.x: known 0"


def test_a_record_that_cannot_be_written_is_no_failure(
    pipe: tuple[int, Log], capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.Logger("poky.x")
    logger.addHandler(handler := LogHandler(pipe[1]))
    logger.warning("%d", "no number")
    assert "TypeError" in capsys.readouterr().err
    logger.warning("fine")
    handler.flush()
    assert os.read(pipe[0], 100) == b"fine\n"


def test_what_fits_to_the_last_byte_is_written() -> None:
    reader, writer = os.pipe()
    log = Log(writer, most_bytes=10)
    with log._changed:  # before any is written
        log._bytes = 4
        log._lines.append(b"abc\n")
    log.add(["fghij\n"])
    assert log.flush(10) is True
    assert os.read(reader, 100) == b"abc\nfghij\n"
    assert log.dropped == 0
    assert all(each.daemon for each in threading.enumerate() if each.name == "poky-log")
    os.set_blocking(writer, False)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writer, bytes(4096))
    log.add(["x\n"])
    wait_until(lambda: log.dropped == 1)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("format", ["keyvalue", "json"])
def test_all_records_of_a_process_go_to_its_log(
    pipe: tuple[int, Log], monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    reader, log = pipe
    root = logging.getLogger()
    before = logging.StreamHandler()
    before.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    monkeypatch.setattr(root, "handlers", [before])
    handler = logs.take_over(log, format)
    assert root.handlers == [handler]
    try:
        raise ZeroDivisionError("why")
    except ZeroDivisionError:
        logging.getLogger("poky.x").exception("failed: %s", "so")
    log.add([log.note("noted")])
    assert log.flush(10)
    said = os.read(reader, 65536).decode()
    if format == "json":
        record, note = map(json.loads, said.splitlines())
        assert (record["level"], record["logger"], record["message"]) == (
            *("error", "poky.x", "failed: so"),
        )
        assert "ZeroDivisionError: why" in record["traceback"]
        assert (note["level"], note["logger"], note["message"]) == ("warning", "poky.logs", "noted")
        assert "traceback" not in note
        assert datetime.fromisoformat(note["time"]).tzinfo
    else:
        assert said.startswith("ERROR poky.x: failed: so\nTraceback")
        assert said.endswith("WARNING poky.logs: noted\n")


# statsd.


def test_a_statsd_that_cannot_be_used_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    for host in ("nowhere.invalid:1", "127.0.0.1:many"):
        statsd = Statsd(host, "base")
        statsd.send([("GET", 200, 0.1)])
        statsd.close()
        assert f"statsd at {host} cannot be used" in caplog.text
    statsd = Statsd("127.0.0.1", "base")
    assert statsd._address == ("127.0.0.1", 8125)
    statsd.close()


def test_where_nothing_was_answered_statsd_gets_nothing() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        statsd = Statsd(f"127.0.0.1:{server.getsockname()[1]}", "base")
        statsd.send([])
        statsd.send([("GET", 200, 0.1)])
        assert server.recv(100) == b"base.get:100.00|ms\nbase.get.200:1|c"
        statsd.close()


def test_a_small_datagram_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    statsd = Statsd("127.0.0.1:1", "base")
    sent: list[str] = []
    monkeypatch.setattr(statsd, "_send", sent.append)
    statsd.send([("GET", 200, 0.001), ("GET", 404, 0.002)])
    assert sent == ["base.get:1.00|ms\nbase.get:2.00|ms\nbase.get.200:1|c\nbase.get.404:1|c"]
    sent.clear()
    statsd.send([("PUT", 200, 0.001)] * 200)
    assert len(sent) == 3
    assert all(len(each) <= 1400 for each in sent)
    assert "\n".join(sent).split("\n") == ["base.put:1.00|ms"] * 200 + ["base.put.200:200|c"]
    statsd.close()
