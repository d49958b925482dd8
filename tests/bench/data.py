"""Suites of what objects can do besides being read and written: paths, changes, expiry, in bulk."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from pathlib import Path

import psycopg2

from tests.bench.contest import Contest
from tests.bench.load import LoadError, Sample, watch
from tests.bench.stack import Database, Service, Stack
from tests.bench.suites import CLIENTS, KB, Contests, Stage


def paths(stage: Stage) -> Contests:
    """Keys with slashes against keys without; a page of a level against a page of keys."""
    keys, value = 10_000, stage.stack.value(KB)
    database, path = stage.stack.partitioned, "builds/2026/11/29/"
    bucket = stage.bucket(KB, keys)
    database.fill("paths", keys, value.read_bytes(), key=f"'{path}key-' || n")
    folders, below = 200, 5000 if stage.large else 1000
    folder = f"'d' || mod(n, {folders}) || '/key-' || n"
    database.fill("folders", folders * below, b"v", key=folder)
    database.settle()
    direct = stage.http(stage.poky, bucket, keys)
    put = replace(direct, method="PUT", value=value)
    at = {"path": f"/kv/paths/{path}key-"}
    yield Contest(
        {
            "get.direct": direct,
            "get.path": replace(direct, **at),
            "put.direct": put,
            "put.path": replace(put, **at),
        },
        [("get.path", "get.direct"), ("put.path", "put.direct")],
        facts={"clients": CLIENTS, "value_bytes": KB},
    )
    level = replace(direct, keys=0, clients=8)
    yield Contest(
        {
            "list.keys-100": replace(level, path="/kv/folders?limit=100"),
            "list.level-100": replace(level, path="/kv/folders?limit=100&delimiter=/"),
        },
        [("list.level-100", "list.keys-100")],
        facts={"clients": 8, "keys": folders * below, "keys_of_an_entry": below},
    )


def feed(stage: Stage) -> Contests:
    """PUT into a bucket that records its changes, and how soon a follower has one."""
    keys, value = 10_000, stage.stack.value(KB)
    bucket = stage.bucket(KB, keys)
    database = stage.stack.partitioned
    database.fill("recorded", keys, value.read_bytes())
    database.execute("SELECT poky.keep_changes('recorded', 86400)")
    database.settle()
    for clients in (CLIENTS, 8, 1):
        ending = "" if clients == CLIENTS else f".1k.{clients}"
        what = {"method": "PUT", "value": value, "clients": clients}
        yield Contest(
            {
                f"put.direct{ending}": stage.http(stage.poky, bucket, keys, **what),
                f"put.recorded{ending}": stage.http(stage.poky, "recorded", keys, **what),
            },
            [(f"put.recorded{ending}", f"put.direct{ending}")],
            facts={"clients": clients, "value_bytes": KB},
        )
    latency = _Latency(stage.poky, "recorded")
    yield Contest(
        {"feed.latency": latency, "put.latency": latency.of_the_put()},
        [("feed.latency", "put.latency")],
        unit="ms",
    )


def expiry(stage: Stage) -> Contests:
    """Objects that expire against others, and how fast expired ones are removed."""
    keys, value = 10_000, stage.stack.value(KB)
    bucket = stage.bucket(KB, keys)
    database = stage.stack.partitioned
    database.fill("expiring", keys, value.read_bytes())
    database.expire("expiring", "1 year")
    database.settle()
    get = stage.http(stage.poky, bucket, keys)
    put = replace(get, method="PUT", value=value)
    at = {"path": "/kv/expiring/key-"}
    yield Contest(
        {
            "get.direct": get,
            "get.expiring": replace(get, **at),
            "put.direct": put,
            "put.expiring": replace(put, **at, headers=("Poky-TTL: 31536000",)),
        },
        [("get.expiring", "get.direct"), ("put.expiring", "put.direct")],
        facts={"clients": CLIENTS, "value_bytes": KB},
    )
    number = 20_000
    yield Contest(
        {
            "reap": _Reap(stage.stack, number),
            "delete-1000": _Delete(stage.stack, number),
        },
        [("reap", "delete-1000")],
        unit="objects/s",
        facts={"objects": number, "value_bytes": 100},
    )


def transfer(stage: Stage) -> Contests:
    """poky export and import of small objects against bare COPY of the same rows."""
    number = 1_000_000 if stage.large else 200_000
    database = stage.stack.partitioned
    database.fill("bulk", number, stage.stack.value(100).read_bytes())
    database.execute("CREATE TABLE bench.bulk (LIKE poky._object INCLUDING ALL)")
    database.settle()
    file = stage.stack.folder / "bulk.jsonl"
    yield Contest(
        {
            "export": _Command(stage.stack, number, ["export", "bulk", "-o", str(file)]),
            "copy-out": _Copy(stage.stack, number, is_in=False),
        },
        [("export", "copy-out")],
        unit="objects/s",
        facts={"objects": number, "value_bytes": 100},
    )
    names = (f"bulk-{n}" for n in itertools.count())
    yield Contest(
        {
            "import": _Command(
                stage.stack, number, ["import", "@", str(file), "--create"], fresh=names
            ),
            "copy-in": _Copy(stage.stack, number, is_in=True),
        },
        [("import", "copy-in")],
        unit="objects/s",
        facts={"objects": number, "value_bytes": 100},
    )


DATA = {"paths": paths, "feed": feed, "expiry": expiry, "transfer": transfer}


@dataclass
class _Latency:
    """From the acknowledgement of a PUT to the event at a client that waits, one at a time."""

    service: Service
    bucket: str
    is_of_put: bool = False

    def of_the_put(self) -> _Latency:
        """From the request of the PUT to its acknowledgement."""
        return replace(self, is_of_put=True)

    def run(self, seconds: int) -> Sample:
        """The median of what fits into a slice."""
        writer, reader = (HTTPConnection("127.0.0.1", port, 10) for port in self.service.ports)
        with closing(writer), closing(reader):
            return watch(self.service.watched, lambda: self._run(writer, reader, seconds))

    def _run(
        self, writer: HTTPConnection, reader: HTTPConnection, seconds: int
    ) -> tuple[float, float, float, float]:
        reader.request("GET", f"/changes/{self.bucket}", headers={"Accept": "text/event-stream"})
        events = reader.getresponse()
        arrived: dict[str, float] = {}
        came = threading.Condition()

        def follow() -> None:
            for line in events:
                if line.startswith(b"data: "):
                    with came:
                        arrived[json.loads(line[6:])["key"]] = time.monotonic()
                        came.notify()

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        times: list[float] = []
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline or not times:
            key = f"key-{len(times)}"
            began = time.monotonic()
            writer.request("PUT", f"/kv/{self.bucket}/{key}", body=b"v")
            writer.getresponse().read()
            acknowledged = time.monotonic()
            with came:
                if not came.wait_for(lambda key=key: key in arrived, 10):
                    raise LoadError(f"{key} did not come to the follower of {self.bucket}")
                last = acknowledged - began if self.is_of_put else arrived[key] - acknowledged
            times.append(max(last, 0) * 1000)
            time.sleep(0.01)
        times.sort()
        p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
        return p50, len(times), p50 * 1000, p99 * 1000


@dataclass
class _Bulk:
    """Work in one session of the database, which counts its objects itself."""

    stack: Stack
    number: int

    def run(self, seconds: int) -> Sample:
        """All of it, however long it takes."""
        self.prepare(self.stack.partitioned)
        return watch(self.stack.watched(), self._run)

    def prepare(self, database: Database) -> None:
        """What is not measured."""

    def work(self, database: Database) -> None:
        """What is measured."""
        raise NotImplementedError

    def _run(self) -> tuple[float, float, float, float]:
        began = time.monotonic()
        self.work(self.stack.partitioned)
        return self.number / (time.monotonic() - began), self.number, 0, 0


@dataclass
class _Reap(_Bulk):
    """poky.reap, as often as it takes."""

    def prepare(self, database: Database) -> None:
        database.fill("reaped", self.number, b"v" * 100)
        database.expire("reaped", "-1 second")

    def work(self, database: Database) -> None:
        with closing(psycopg2.connect(database.service)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                done = 1
                while done:
                    cursor.execute("SELECT poky.reap(1000)")
                    (done,) = cursor.fetchone() or (0,)


@dataclass
class _Delete(_Bulk):
    """The bare DELETE of as many rows, a thousand in a transaction."""

    def prepare(self, database: Database) -> None:
        database.fill("reaped", self.number, b"v" * 100)

    def work(self, database: Database) -> None:
        statement = (
            "DELETE FROM poky._object WHERE bucket_id = (SELECT id FROM poky.bucket"
            " WHERE name = 'reaped') AND key = ANY (ARRAY(SELECT 'key-' || n"
            " FROM generate_series({}, {}) AS n))"
        )
        database.execute(
            *(statement.format(first, first + 999) for first in range(1, self.number + 1, 1000))
        )


@dataclass
class _Command(_Bulk):
    """The command ``poky``; "@" is another bucket each time."""

    arguments: Sequence[str] = ()
    fresh: Iterator[str] | None = None

    def work(self, database: Database) -> None:
        name = next(self.fresh) if self.fresh else ""
        done = subprocess.run(
            [sys.executable, "-m", "poky", *(name if a == "@" else a for a in self.arguments)],
            env={**os.environ, "POKY_DSN": database.service, "POKY_OWNER_DSN": database.owner},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise LoadError(f"poky {' '.join(self.arguments)}: {done.stderr.strip()[-2000:]}")


@dataclass
class _Copy(_Bulk):
    """COPY of the same rows, in its binary format, to a file or from it."""

    is_in: bool = False

    def prepare(self, database: Database) -> None:
        if self.is_in:
            if not self._file.exists():
                self._copy(database, "TO STDOUT", "poky._object")
            database.execute("TRUNCATE bench.bulk")

    def work(self, database: Database) -> None:
        if self.is_in:
            self._copy(database, "FROM STDIN", "bench.bulk")
        else:
            self._copy(database, "TO STDOUT", "poky._object")

    @property
    def _file(self) -> Path:
        return self.stack.folder / "bulk.copy"

    def _copy(self, database: Database, way: str, table: str) -> None:
        rows = table
        if way == "TO STDOUT":
            rows = (
                f"(SELECT * FROM {table} WHERE bucket_id ="
                " (SELECT id FROM poky.bucket WHERE name = 'bulk') ORDER BY key)"
            )
        with (
            closing(psycopg2.connect(database.owner)) as connection,
            connection,
            connection.cursor() as cursor,
            self._file.open("wb" if way == "TO STDOUT" else "rb") as file,
        ):
            cursor.copy_expert(f"COPY {rows} {way} (FORMAT binary)", file, 1 << 20)
