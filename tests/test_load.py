"""``poky serve`` under steady load: it beats its heart, and ends in good order."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Database
from tests.service import Service, wait_until

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow, pytest.mark.alone]

HAMMER = Path(__file__).parent / "hammer.py"


@contextmanager
def hammered(service: Service, folder: Path, clients: int = 16) -> Iterator[Path]:
    """Clients that check every answer, for the length of a block; their report."""
    report = folder / "report.json"
    assert service.admin().request("PUT", "/buckets/hammer").status == 200
    program = [sys.executable, str(HAMMER), service.url, "--bucket", "hammer"]
    process = subprocess.Popen(
        [*program, "--clients", str(clients), "--rate", "500", "--report", str(report)],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(
            lambda: report.exists() and told(report)["requests"] > 100, what="the load has begun"
        )
        yield report
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def told(report: Path) -> Any:
    return json.loads(report.read_text())


@pytest.mark.parametrize("kind", ["partitioned"])
def test_the_heart_beats_under_load(own_database: Database, tmp_path: Path, kind: str) -> None:
    """The one thread serves all clients and waits for PostgreSQL; 20 s are quiet enough to end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        service = Service(
            own_database.dsn_service,
            tmp_path / "log",
            {
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "4000000",
                "POKY_THREADS": "1",
            },
        ).start()
        try:
            with hammered(service, tmp_path) as report:
                beats = [time.monotonic()]
                while beats[-1] < beats[0] + 24:
                    if listener.recv(999) == b"WATCHDOG=1":
                        beats.append(time.monotonic())
                        listener.settimeout(4)  # after which systemd would kill it
                assert told(report)["failed"] == told(report)["wrong"] == 0, told(report)
        finally:
            assert service.stop() == 0


@pytest.mark.parametrize("kind", ["partitioned"])
@pytest.mark.parametrize("threads", ["1", "4"])
def test_it_ends_in_good_order_under_load(
    own_database: Database, tmp_path: Path, kind: str, threads: str
) -> None:
    """No thread waits for its turn for ever, and no client is cut off without a word."""
    log = tmp_path / "log"
    service = Service(own_database.dsn_service, log, {"POKY_THREADS": threads}).start()
    with hammered(service, tmp_path) as report:
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 15
        assert "unanswered" not in log.read_text()
        # Whoever comes after the end finds nobody: that is no answer that was lost.
        lost = [
            each
            for each in told(report)["failures"]
            if "refused" not in str(each) and "Connection reset" not in str(each)
        ]
        assert lost == []
        assert told(report)["wrong"] == 0
