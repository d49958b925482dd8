"""What a purge costs a write without other load."""

from __future__ import annotations

import statistics
import time
from contextlib import closing
from pathlib import Path

import psycopg2

from poky.schema.migrate import migrate
from poky.store import Store
from tests.coherence.stack import Stack
from tests.service import Client, running

_WRITES = 1000


def of_a_write(folder: Path) -> tuple[float, float]:
    """Median milliseconds of a PUT of 1 kB without caches, and with one node that confirms.

    Two services on one PostgreSQL, each with a database of its own: a database knows which caches
    there are. They take turns, write by write.
    """
    with Stack(folder, nodes=1, instances=1, gated=False) as stack:
        dsn = stack.database.dsn_owner
        with closing(psycopg2.connect(dsn)) as connection:
            connection.autocommit = True
            connection.cursor().execute("CREATE DATABASE without OWNER poky_owner")
        migrate(dsn.replace("/poky?", "/without?"), release="coherence")
        dsn = stack.database.dsn_service.replace("/poky?", "/without?")
        with running(dsn, folder / "without.log", log_level="warning") as without:
            for each in (dsn, stack.database.dsn_service):
                with closing(Store(each, pool_size=1)) as store:
                    store.ensure_bucket("cost")
            clients = Client(without.port), Client(stack.services[0].port)
            times: tuple[list[float], list[float]] = ([], [])
            for number in range(_WRITES):
                for client, taken in zip(clients, times, strict=True):
                    began = time.perf_counter()
                    assert client.put(f"/kv/cost/{number % 100}", b"x" * 1000).status == 200
                    taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(times[0]), statistics.median(times[1])
