"""What ten thousand buckets over three databases take: python -m tests.bench.scale [BUCKETS]."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import track

from poky import embedded
from poky.schema.migrate import migrate
from poky.schema.shards import join_shards
from poky.store import ShardedStore
from tests.bench.machine import MB, resident_bytes
from tests.bench.stack import Database
from tests.service import Service

_SHARDS = 3
_STEPS = 4  # figures after a quarter of the buckets, a half, ..., so that it shows what grows how


def main(buckets: int) -> None:
    """Make so many buckets, and measure after each quarter of them."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="poky-scale-") as name:
        folder = Path(name)
        settings = {"fsync": "off", "shared_buffers": "256MB", "max_locks_per_transaction": "128"}
        with embedded.ensure_running(folder / "home", settings=settings) as server:
            databases = list(_databases(server))
            join_shards(
                databases[0].owner, {n: each.owner for n, each in enumerate(databases) if n}
            )
            rows = [
                _after(step, buckets // _STEPS, databases, folder, console)
                for step in range(1, _STEPS + 1)
            ]
    names = list(rows[0])
    print("| " + " | ".join(names) + " |")
    print("|" + "--:|" * len(names))
    for row in rows:
        print("| " + " | ".join(f"{value:,.4g}" for value in row.values()) + " |")


def _databases(server: embedded.Embedded) -> Iterator[Database]:
    everything = Database(server.dsn_owner, server.dsn_service)
    for number in range(_SHARDS):
        everything.execute(f"CREATE DATABASE s{number}")
        owner, service = (
            dsn.replace("/poky?", f"/s{number}?") for dsn in (everything.owner, everything.service)
        )
        migrate(owner, kind="partitioned", release="bench")
        yield Database(owner, service, f"s{number}")


def _after(
    step: int, count: int, databases: list[Database], folder: Path, console: Console
) -> dict[str, float]:
    shards = {n: each.service for n, each in enumerate(databases) if n}
    names = [f"b{number}" for number in range((step - 1) * count, step * count)]
    everything = [f"b{number}" for number in range(step * count)]
    with closing(ShardedStore(databases[0].service, shards)) as store:
        times = []
        for name in track(names, f"creating {count}", console=console):
            began = time.monotonic()
            store.ensure_bucket(name)
            times.append(time.monotonic() - began)
            store.put(name, "k", b"v", "text/plain")
        held = [each.buckets for each in store.states()]
    for each in databases:
        each.execute("ANALYZE")
    environment = {
        **os.environ,
        "POKY_DSN": databases[0].service,
        "POKY_OWNER_DSN": databases[0].owner,
        "POKY_SHARDS": " ".join(f"{n}={dsn}" for n, dsn in shards.items()),
    }
    service = Service(
        databases[0].service,
        folder / f"log{step}",
        {"POKY_SHARDS": environment["POKY_SHARDS"], "POKY_METRICS_BUCKETS": "100"},
    )
    started = _took(service.start)
    try:
        assert service.process
        pid = service.process.pid
        fresh = resident_bytes(pid) / MB

        def read(some: list[str]) -> None:
            with closing(service.client()) as client:
                for name in some:
                    assert client.get(f"/kv/{name}/k").status == 200

        def read_all() -> None:
            with ThreadPoolExecutor(4) as readers:
                list(readers.map(read, [everything[n::4] for n in range(4)]))

        first, second = _took(read_all), _took(read_all)
        admin = service.admin()
        return {
            "buckets": step * count,
            "on the fullest shard": max(held),
            "create, ms (median)": median(times) * 1000,
            "first reads, ms each": first / len(everything) * 1000,
            "later reads, ms each": second / len(everything) * 1000,
            "GET /buckets, ms": _took(lambda: _ok(admin.get("/buckets"))) * 1000,
            "/metrics, ms": _took(lambda: _ok(admin.get("/metrics"))) * 1000,
            "page, ms": _took(lambda: _ok(admin.get("/", accept="text/html"))) * 1000,
            "poky shards, s": _took(lambda: _shards(environment)),
            "start, s": started,
            "MB at start": fresh,
            "MB after all reads": resident_bytes(pid) / MB,
        }
    finally:
        service.stop()


def _took(do: Callable[[], Any]) -> float:
    began = time.monotonic()
    do()
    return time.monotonic() - began


def _ok(answer: Any) -> None:
    assert answer.status == 200, answer.body


def _shards(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "poky", "shards", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    assert not json.loads(done.stdout)["troubles"]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
