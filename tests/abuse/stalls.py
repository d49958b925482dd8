"""Work that others must not wait for: large batches, locked rows, large values, a hung database."""

from __future__ import annotations

import json
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg2

from tests.abuse.client import Broken, request
from tests.abuse.report import Row
from tests.service import wait_until
from tests.support.chain import Chain, http_status
from tests.support.memory import MB

BUCKET = "abuse-stalls"
STATUS_SECONDS = 1.0
ANSWER_SECONDS = 5.5  # 5, and what a busy machine adds

Work = Callable[[Chain, float], None]


def _batches(chain: Chain, end: float) -> None:
    items = [{"key": f"k{n}", "data": "x" * 100} for n in range(10_000)]
    body = json.dumps(items).encode()
    while time.monotonic() < end:
        with suppress(Broken, OSError):
            request(
                *(chain.port, "PUT", f"/multi/{BUCKET}", body),
                content_type="application/json",
            )


def _locked(chain: Chain, end: float) -> None:
    while time.monotonic() < end:
        with suppress(Broken, OSError):
            request(chain.port, "PUT", f"/kv/{BUCKET}/locked", b"x")


def _large(chain: Chain, end: float) -> None:
    while time.monotonic() < end:
        with suppress(Broken, OSError):
            request(chain.port, "GET", f"/kv/{BUCKET}/large?a")


@contextmanager
def _lock(chain: Chain) -> Iterator[None]:
    with psycopg2.connect(chain.database.dsn_owner) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM poky._object WHERE key = 'locked' FOR UPDATE")
        yield
        connection.rollback()


@contextmanager
def _nothing(chain: Chain) -> Iterator[None]:
    yield


@contextmanager
def _hung(chain: Chain) -> Iterator[None]:
    pids = _family(chain.database.pid)
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


# Name, work, so many at once, what surrounds it, whether others' reads must succeed, and their
# 99th percentile in ms.
STALLS: tuple[tuple[str, Work, int, Callable, bool, float], ...] = (  # type: ignore[type-arg]
    ("8 batches of 10,000 items", _batches, 8, _nothing, True, 400),
    ("20 writers of a locked row", _locked, 20, _lock, True, 400),
    ("40 uncached GETs of 10 MB", _large, 40, _nothing, True, 400),
    ("PostgreSQL hangs", lambda chain, end: None, 1, _hung, False, ANSWER_SECONDS * 1000),
)


def run(chain: Chain, door: str, *, short: bool = False, only: str = "") -> list[Row]:
    """Each stall for its seconds."""
    chain.poky("bucket", "create", BUCKET)
    port = chain.instances[0].port
    for key, value in {"small": b"small", "locked": b"x", "large": b"x" * 10 * MB}.items():
        assert request(port, "PUT", f"/kv/{BUCKET}/{key}", value).status == 200
    return [
        _run(chain, door, stall, 3 if short else 10)
        for stall in STALLS
        if only in stall[0] and not (short and stall[0].startswith("40"))
    ]


def _reads(chain: Chain) -> bool:
    """Whether every instance is asked again, as long as it takes a cache to see that it is well."""
    with suppress(Broken, OSError):
        answers = [request(chain.port, "GET", f"/kv/{BUCKET}/small?a") for _ in range(4)]
        return all(answer.status == 200 for answer in answers)
    return False


def _run(chain: Chain, door: str, stall: tuple, seconds: float) -> Row:  # type: ignore[type-arg]
    name, work, count, around, served, limit = stall
    row = Row(
        "stalls", name, door, f"/status within {STATUS_SECONDS:.0f} s; GET p99 {limit:.0f} ms"
    )
    end = time.monotonic() + seconds
    threads = [threading.Thread(target=work, args=(chain, end)) for _ in range(count)]
    statuses: Counter[int] = Counter()
    waits: list[float] = []
    reads: list[float] = []
    with around(chain):
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        while time.monotonic() < end:
            for instance in chain.instances:  # as Varnish's probe asks
                began = time.monotonic()
                http_status(instance.port, timeout=10)
                waits.append(time.monotonic() - began)
            began = time.monotonic()
            # Not cached: what the service does for others is what is measured.
            with suppress(Broken, OSError):
                statuses[request(chain.port, "GET", f"/kv/{BUCKET}/small?a").status] += 1
            reads.append(time.monotonic() - began)
    for thread in threads:
        thread.join(30)
    served_again = time.monotonic()
    wait_until(lambda: _reads(chain), 60, "reads are served again")
    row.seen = f"served again after {time.monotonic() - served_again:.1f} s, "
    p99 = statistics.quantiles([*reads, max(reads)], n=100, method="inclusive")[98] * 1000
    row.count = len(reads)
    row.seen += f"/status at most {max(waits):.2f} s, GET p99 {p99:.0f} ms, " + ", ".join(
        f"{number} x {status}" for status, number in sorted(statuses.items())
    )
    if max(waits) > STATUS_SECONDS * 1.1:
        row.violations.append(f"/status took {max(waits):.1f} s")
    if p99 > limit:
        row.violations.append(f"others waited {p99:.0f} ms (99th percentile)")
    failed = sum(number for status, number in statuses.items() if status != 200)
    if served and failed:
        row.violations.append(f"{failed} of {len(reads)} of others' GETs failed")
    return row
