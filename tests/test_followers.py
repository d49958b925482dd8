"""The proof of the feed: followers' copies equal the bucket, whatever happens at the same time.

Eight writers and four followers, at two instances of which one is started anew, while connections
to PostgreSQL are cut, or PostgreSQL itself crashes: no change of a key is missing, comes twice or
out of order.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from poky import embedded
from poky.schema.migrate import migrate
from tests.conftest import Database
from tests.service import Client, Service, running, wait_until
from tests.test_changes import query, record

pytestmark = [pytest.mark.inside, pytest.mark.slow, pytest.mark.timeout(300)]

KEYS = [f"k{number}" for number in range(12)]
SECONDS = 8
Change = tuple[str, str, str | None]  # key, result, etag


class Run:
    """What the threads share."""

    def __init__(self, services: list[Service], bucket: str) -> None:
        self.services = services
        self.bucket = bucket
        self.writing = threading.Event()
        self.writing.set()
        self.acknowledged: list[tuple[str, str]] = []  # key and tag of puts
        self.failures: list[BaseException] = []
        self.disturbed = 0

    def client(self, random: random.Random) -> Client:
        return random.choice(self.services).client(20)

    def thread(self, work: Callable[..., None], *arguments: Any) -> threading.Thread:
        def guarded() -> None:
            try:
                work(self, *arguments)
            except BaseException as error:
                self.failures.append(error)

        thread = threading.Thread(target=guarded)
        thread.start()
        return thread


def write(run: Run, seed: int) -> None:
    """Put, delete and batch, with and without a ttl; what fails may or may not have been done."""
    dice = random.Random(seed)
    while run.writing.is_set():
        with suppress(OSError, HTTPException, ValueError), closing(run.client(dice)) as client:
            for _ in range(20):
                key = dice.choice(KEYS)
                choice = dice.random()
                if choice < 0.4:
                    headers = {}
                    if dice.random() < 0.3:
                        key, headers = f"t{dice.randrange(100)}", {"poky_ttl": "1"}
                    answer = client.put(f"/kv/{run.bucket}/{key}", str(dice.random()), **headers)
                    if answer.status == 200:
                        run.acknowledged.append((key, answer.etag))
                elif choice < 0.6:
                    client.delete(f"/kv/{run.bucket}/{key}")
                else:
                    items = [{"key": each, "data": "v"} for each in dice.sample(KEYS, 4)]
                    answer = client.batch("PUT", run.bucket, items, "?atomic=true")
                    if answer.status == 200:
                        run.acknowledged += [(each["key"], each["etag"]) for each in answer.json()]


def follow(run: Run, seed: int, found: list[Change]) -> None:
    """Page by page, waiting or not, at any instance, now and then with a pause."""
    dice = random.Random(seed)
    after = "0"
    while ("end", "put") not in {change[:2] for change in found[-200:]}:
        if dice.random() < 0.1:
            time.sleep(dice.random() / 2)
        query = f"?after={after}&limit={dice.choice([1, 3, 10, 1000])}&wait={dice.choice([0, 1])}"
        with suppress(OSError, HTTPException, ValueError), closing(run.client(dice)) as client:
            answer = client.get(f"/changes/{run.bucket}{query}")
            assert answer.status in (200, 503), answer.body
            if answer.status == 200:
                page = answer.json()
                found += [
                    (each["key"], each["result"], each.get("etag")) for each in page["changes"]
                ]
                after = page["next"]


def stream(run: Run, seed: int, found: list[Change]) -> None:
    """By events; a connection ends after some of them, or when the instance does."""
    dice = random.Random(seed)
    last = "0"
    while ("end", "put") not in {change[:2] for change in found[-200:]}:
        with suppress(OSError, HTTPException), closing(run.client(dice)) as client:
            client._connection.request(
                "GET",
                f"/changes/{run.bucket}",
                headers={"Accept": "text/event-stream", "Last-Event-ID": last},
            )
            answer = client._connection.getresponse()
            assert answer.status in (200, 503), answer.read()
            event: dict[str, str] = {}
            for _ in range(dice.randrange(2000)):
                raw = answer.readline()
                if not raw.endswith(b"\n"):
                    break  # what the connection's end has cut off is no event
                line = raw.decode().rstrip("\n")
                if line:
                    name, _, value = line.partition(": ")
                    event[name] = value
                    continue
                if "data" in event:
                    each = json.loads(event["data"])
                    found.append((each["key"], each["result"], each.get("etag")))
                last, event = event.get("id", last), {}
                if found and found[-1][0] == "end":
                    break


def reap(run: Run, database: Database) -> None:
    while run.writing.is_set():
        with suppress(psycopg2.Error):
            query(database, "UPDATE poky._expiry SET due_at = now() WHERE due_at > now()")
            query(database, "SELECT poky.reap(100)")
        time.sleep(0.2)


def reap_all(database: Database, bucket: str) -> int:
    """Remove what has expired; how many objects of the bucket have yet to."""
    with suppress(psycopg2.Error):
        query(database, "UPDATE poky._expiry SET due_at = now() WHERE due_at > now()")
        query(database, "SELECT poky.reap(1000)")
    left: int = query(
        database,
        "SELECT count(*) FROM poky._object AS o JOIN poky.bucket AS b ON b.id = o.bucket_id"
        " WHERE b.name = %s AND o.expires_at IS NOT NULL",
        bucket,
    )[0][0]
    return left


def disturb(run: Run, database: Database) -> None:
    """Cut connections to PostgreSQL, and start an instance anew."""
    dice = random.Random(0)
    while run.writing.is_set():
        time.sleep(1)
        query(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND usename = 'poky_service' AND random() < 0.3",
        )
        if dice.random() < 0.5:
            run.services[1].stop()
            run.services[1].start()
        run.disturbed += 1


def crash(server: embedded.Embedded, run: Run, database: Database) -> None:
    """Kill PostgreSQL as a crash does; it is started again and recovers."""
    while run.writing.is_set():
        enough = len(run.acknowledged) + 50
        wait_until(
            lambda enough=enough: not run.writing.is_set() or len(run.acknowledged) > enough, 60
        )
        if not run.writing.is_set():
            return
        killed = server.pid
        os.kill(killed, signal.SIGQUIT)
        wait_until(lambda killed=killed: server.pid != killed, 60, "PostgreSQL is started again")
        run.disturbed += 1


def by_key(changes: list[Change]) -> dict[str, list[tuple[str, str | None]]]:
    found: dict[str, list[tuple[str, str | None]]] = {}
    for key, result, etag in changes:
        found.setdefault(key, []).append((result, etag))
    return found


def test_copies_of_followers_equal_the_bucket(
    database: Database, bucket: str, tmp_path: Path
) -> None:
    prove(database, bucket, tmp_path, disturb)


def test_they_do_although_postgresql_crashes(tmp_path: Path) -> None:
    # Without fsync: what was written survives, for the machine does.
    hasty = {"fsync": "off", "shared_buffers": "64MB"}
    with embedded.ensure_running(tmp_path / "home", settings=hasty) as server:
        server.supervise()
        migrate(server.dsn_owner, kind="partitioned", release="tests")
        database = Database("poky", "partitioned", server.dsn_owner, server.dsn_service)
        prove(database, "b", tmp_path, partial(crash, server))


def prove(
    database: Database, bucket: str, tmp_path: Path, disturb: Callable[[Run, Database], None]
) -> None:
    record(database, bucket)
    with (
        running(database.dsn_service, tmp_path / "one") as one,
        running(database.dsn_service, tmp_path / "two") as two,
    ):
        run = Run([one, two], bucket)
        copies: list[list[Change]] = [[], [], [], []]
        followers = [
            run.thread(follow if number < 2 else stream, number, copy)
            for number, copy in enumerate(copies)
        ]
        writers = [run.thread(write, 10 + number) for number in range(8)]
        others = [run.thread(reap, database), run.thread(disturb, database)]
        time.sleep(SECONDS)
        wait_until(lambda: run.failures or (run.disturbed > 1 and len(run.acknowledged) > 200), 120)
        run.writing.clear()
        for thread in [*writers, *others]:
            thread.join(60)
        # What expired later than the followers end would be no change of theirs.
        wait_until(lambda: not reap_all(database, bucket), 30, "nothing is left to expire")
        client = one.client()
        wait_until(lambda: client.put(f"/kv/{bucket}/end", "v").status == 200)
        for thread in followers:
            thread.join(60)
            assert not thread.is_alive(), "a follower did not come to the end"
        assert not run.failures, run.failures
        recorded = query(
            database,
            "SELECT c.key, c.result, '\"' || c.revision || '-' || c.hash || '\"'"
            " FROM poky._change AS c JOIN poky.bucket AS b ON b.id = c.bucket_id"
            " WHERE b.name = %s ORDER BY c.revision",
            bucket,
        )
        expected = by_key(recorded)
        assert len(recorded) > 200
        assert {"put", "delete", "expire"} <= {result for _, result, _ in recorded}
        assert {(key, etag) for key, _, etag in recorded} >= set(run.acknowledged)
        for copy in copies:
            assert by_key(copy) == expected
        listed = client.get(f"/kv/{bucket}?limit=1000").json()["keys"]
        last = {key: states[-1] for key, states in expected.items()}
        present = {key: etag for key, (result, etag) in last.items() if result == "put"}
        assert {each["key"]: each["etag"] for each in listed}.items() <= present.items()
        assert {each["key"] for each in listed} >= {*present} & {*KEYS}


@pytest.mark.alone
def test_two_thousand_who_wait_take_little_memory_and_no_threads(
    database: Database, bucket: str, tmp_path: Path
) -> None:
    record(database, bucket)
    with running(database.dsn_service, tmp_path / "log") as service, ExitStack() as clients:
        assert service.process
        status = Path(f"/proc/{service.process.pid}/status")

        def number(name: str) -> int:
            return int(re.findall(rf"(?m)^{name}:\s+(\d+)", status.read_text())[0])

        def figure() -> int:
            text = service.admin().get("/metrics").body.decode()
            return int(float(re.findall(r"(?m)^poky_followers (.+)$", text)[0]))

        threads = number("Threads")
        begin = service.client().get(f"/changes/{bucket}").json()["next"]
        waiting = []
        for each in range(2000):
            client = clients.enter_context(
                socket.create_connection(("127.0.0.1", service.port), 60)
            )
            accept = "text/event-stream" if each % 2 else "application/json"
            head = f"GET /changes/{bucket}?after={begin}&wait=60 HTTP/1.1\r\nHost: h"
            client.sendall(f"{head}\r\nAccept: {accept}\r\n\r\n".encode())
            waiting.append(client)
        wait_until(lambda: figure() == 2000, 50)
        assert number("VmRSS") < 200_000, "kB"
        assert number("Threads") <= threads + 8
        assert service.client().put(f"/kv/{bucket}/k", "v").status == 200
        for client in waiting:
            text = b""
            while b'"key":"k"' not in text:
                received = client.recv(65536)
                assert received, text
                text += received
        assert number("VmRSS") < 200_000, "kB"
