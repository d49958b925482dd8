"""What is counted and written of every answer, also while the log is blocked."""

from __future__ import annotations

import os
import time

import pytest

from poky.metrics import AccessLog, Metrics

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
def stderr(monkeypatch: pytest.MonkeyPatch) -> int:
    """The end where what goes to the log comes out."""
    reader, writer = os.pipe()
    monkeypatch.setattr("poky.metrics.AccessLog", lambda: AccessLog(writer))
    return reader


def test_an_answer_counts_at_the_next_scrape() -> None:
    metrics = Metrics(access_log=False)
    for number in range(3):
        metrics.observe(REQUEST, 200, 10, 0.003)
        wanted = {"method": "GET", "route": "/kv/<bucket>/<key>", "status": "200"}
        assert counted(metrics, **wanted) == number + 1
    text = metrics.expose().decode()
    assert "poky_sent_bytes_total 30.0" in text
    assert 'poky_request_seconds_count{method="GET",route="/kv/<bucket>/<key>"} 3.0' in text
    metrics.close()


def test_a_method_that_a_client_invents_is_no_series_of_its_own() -> None:
    metrics = Metrics(access_log=False)
    metrics.observe({"REQUEST_METHOD": "FROBNICATE", "REQUEST_URI": "/"}, 404, 0, 0.0)
    assert counted(metrics, method="-", route="-", status="404") == 1
    metrics.close()


def test_a_line_is_written_soon(stderr: int) -> None:
    metrics = Metrics()
    metrics.observe(REQUEST, 200, 10, 0.003)
    started = time.monotonic()
    line = os.read(stderr, 4096).decode()
    assert time.monotonic() - started < 2
    assert line == (
        "method=GET path=/kv/b/k?x=1 status=200 bytes=10 ms=3.00 outcome=inserted"
        f" client=192.0.2.1 id={'r' * 64}\n"
    )
    metrics.close()


def test_the_last_lines_are_written_at_the_end(stderr: int) -> None:
    metrics = Metrics()
    for number in range(50):
        metrics.observe(REQUEST, 200, number, 0.003)
    metrics.close()
    lines = os.read(stderr, 65536).decode().splitlines()
    assert [line.split()[3] for line in lines] == [f"bytes={number}" for number in range(50)]


def test_while_the_log_is_blocked_answers_are_counted_and_memory_is_bounded(stderr: int) -> None:
    metrics = Metrics()
    for _ in range(80_000):
        metrics.observe(REQUEST, 200, 1, 0.003)
    wanted = {"method": "GET", "route": "/kv/<bucket>/<key>", "status": "200"}
    assert counted(metrics, **wanted) == 80_000
    assert len(metrics._seen) < 4096
    assert metrics._access is not None
    assert len(metrics._access._lines) <= 65_536
    os.close(stderr)  # the thread that waits for it goes on
    metrics.close()
