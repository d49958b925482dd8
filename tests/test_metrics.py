"""What is counted and written of every answer, also while the log is blocked."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from poky import logs
from poky.logs import Log, LogHandler
from poky.metrics import Metrics

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
