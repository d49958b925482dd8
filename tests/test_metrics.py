"""What is counted and written of every answer, also while the log is blocked."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace

import pytest

from poky import logs
from poky.logs import Log, LogHandler
from poky.metrics import Metrics, Statsd

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
