"""Clients of the SQL functions that remember every answer, for what must go unnoticed.

Each writer has keys of its own, so it knows what must be there: it reads its own writes back while
it goes on, and ``check`` reads everything again at the end. Nothing is retried: every error counts.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import psycopg2


class Seen(NamedTuple):
    revision: int
    hash: str
    modified_at: int
    content_type: str
    value: bytes


class Load:
    """Writers, deleters, readers and a contested counter, as poky_service; a context manager."""

    def __init__(
        self, dsn: str, buckets: list[str], *, writers: int = 4, new_buckets: bool = False
    ) -> None:
        self.dsn = dsn
        self.buckets = buckets
        self.new_buckets = new_buckets
        self.errors: list[str] = []
        self.calls = 0
        self.slowest = 0.0
        self.states: dict[tuple[str, str], Seen | None] = {}  # what was acknowledged last
        self.static: dict[tuple[str, str], Seen] = {}  # what no test touches
        self.counted = 0  # increments acknowledged to anybody
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            *(self._thread(self._write, number) for number in range(writers)),
            *(self._thread(self._count, number) for number in range(2)),
            self._thread(self._read, 0),
        ]

    def __enter__(self) -> Load:
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            for bucket in self.buckets:
                cursor.execute("SELECT * FROM poky.list(%s, 'static-', '', 1000)", [bucket])
                for key, *_ in cursor.fetchall():
                    self.static[bucket, key] = self._get(cursor, bucket, key)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def wait_for_calls(self, more: int) -> None:
        """Wait until so many more calls were answered: the load is on."""
        enough = self.calls + more
        while self.calls < enough:
            assert not self.errors, self.errors[:3]
            time.sleep(0.005)

    def check(self) -> None:
        """Assert that no call failed and that everything is as it was acknowledged."""
        assert not self.errors, (len(self.errors), self.errors[:3])
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            wrong = [
                (name, state, found)
                for name, state in [*self.states.items(), *self.static.items()]
                if (found := self._get(cursor, *name)) != state
            ]
            assert not wrong, (len(wrong), wrong[:3])
            # Nothing but what was acknowledged is there, either.
            expected = {name for name, state in self.states.items() if state} | set(self.static)
            listed = set()
            for bucket in {bucket for bucket, _ in expected} | set(self.buckets):
                cursor.execute("SELECT key FROM poky.list(%s, '', '', 10000000)", [bucket])
                listed |= {(bucket, key) for (key,) in cursor.fetchall()}
            others = {key for _, key in listed - expected}
            assert expected <= listed
            assert all(key.startswith(("static-", "counter")) for key in others), others
            counter = self._get(cursor, self.buckets[0], "counter")
            assert counter is not None
            assert int(counter.value) == self.counted

    def connect(self) -> Any:
        connection = psycopg2.connect(
            self.dsn, options="-c lock_timeout=1500 -c statement_timeout=5000"
        )
        connection.autocommit = True
        return connection

    def _thread(self, work: Callable[[Any, int], None], number: int) -> threading.Thread:
        def run() -> None:
            with closing(self.connect()) as connection, connection.cursor() as cursor:
                while not self._stop.is_set():
                    try:
                        work(cursor, number)
                    except (psycopg2.Error, AssertionError) as error:
                        if not self._may_refuse(cursor, error):
                            self.errors.append(f"{work.__name__} {number}: {error!r}")
                            return

        return threading.Thread(target=run, daemon=True)

    def _may_refuse(self, cursor: Any, error: Exception) -> bool:
        """In the partitioned schema a bucket has to be made before it is used."""
        if getattr(error, "pgcode", None) == "PK404" and "named new-" in str(error):
            cursor.execute("SELECT kind FROM poky.status()")
            self.new_buckets = False
            return bool(cursor.fetchone() == ("partitioned",))
        return False

    def _call(self, cursor: Any, function: str, *values: object) -> list[Any]:
        began = time.monotonic()
        places = ", ".join(["%s"] * len(values))
        cursor.execute(f"SELECT * FROM poky.{function}({places})", values)
        rows: list[Any] = cursor.fetchall()
        with self._lock:
            self.calls += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
        return rows

    def _get(self, cursor: Any, bucket: str, key: str) -> Seen | None:
        rows = self._call(cursor, "get", bucket, key)
        if not rows:
            return None
        _, revision, digest, modified_at, _, content_type, value, *_ = rows[0]
        return Seen(revision, digest, modified_at, content_type, bytes(value))

    def _write(self, cursor: Any, number: int) -> None:
        """Put, put many, put under conditions, delete, delete many; read back half of it."""
        chance = random.Random(number)
        for turn in itertools.count():
            if self._stop.is_set():
                return
            bucket = chance.choice(self.buckets)
            if self.new_buckets and chance.random() < 0.05:
                bucket = f"new-{number}-{turn}"
            keys = sorted(
                {f"w{number}-{chance.randrange(200)}" for _ in range(chance.choice((1, 5)))}
            )
            value = chance.randbytes(chance.choice((10, 300, 3000)))
            action = chance.choice(("put", "put", "match", "many", "delete", "delete_many"))
            if action == "many":
                # PostgreSQL takes its arrays apart: the same value for every key.
                rows = self._call(
                    cursor, "put_many", bucket, keys, [psycopg2.Binary(value) for _ in keys],
                    ["text/plain"] * len(keys), *self._nulls(len(keys)), False,
                )  # fmt: skip
                for row in rows:
                    assert row[1] in {"inserted", "updated"}, row
                    self._put_was(bucket, keys[row[0] - 1], row, value)
            elif action == "delete_many":
                rows = self._call(
                    cursor, "delete_many", bucket, keys, *self._nulls(len(keys), 3), True
                )
                for row in rows:
                    assert row[1] == (
                        "deleted" if self.states.get((bucket, keys[row[0] - 1])) else "missing"
                    )
                    self.states[bucket, keys[row[0] - 1]] = None
            elif action == "delete":
                (row,) = self._call(cursor, "delete", bucket, keys[0])
                assert row[1] == ("deleted" if self.states.get((bucket, keys[0])) else "missing"), (
                    row
                )
                self.states[bucket, keys[0]] = None
            else:
                known = self.states.get((bucket, keys[0]))
                match = f"{known.revision}-{known.hash}" if known and action == "match" else None
                absent = "*" if not known and action == "match" else None
                (row,) = self._call(
                    cursor, "put", bucket, keys[0], psycopg2.Binary(value), "text/plain", None,
                    match, absent,
                )  # fmt: skip
                assert row[1] == ("updated" if known else "inserted"), (row, known)
                self._put_was(bucket, keys[0], row, value)
            if chance.random() < 0.5:
                found = self._get(cursor, bucket, keys[0])
                state = self.states.get((bucket, keys[0]))
                assert found == state, (bucket, keys[0], found, state)

    def _put_was(self, bucket: str, key: str, row: Any, value: bytes) -> None:
        _, _, revision, digest, modified_at, *_ = row
        self.states[bucket, key] = Seen(revision, digest, modified_at, "text/plain", value)

    def _nulls(self, items: int, arrays: int = 3) -> list[list[None]]:
        return [[None] * items] * arrays

    def _count(self, cursor: Any, number: int) -> None:
        """Increment a shared counter under its entity tag: each success counts exactly once."""
        bucket = self.buckets[0]
        while not self._stop.is_set():
            seen = self._get(cursor, bucket, "counter")
            value = int(seen.value) if seen else 0
            match = (f"{seen.revision}-{seen.hash}", None) if seen else (None, "*")
            new = psycopg2.Binary(b"%d" % (value + 1))
            (row,) = self._call(cursor, "put", bucket, "counter", new, "text/plain", None, *match)
            if row[1] != "rejected":
                with self._lock:
                    self.counted += 1

    def _read(self, cursor: Any, number: int) -> None:
        """What no test touches is always there, whichever way it is asked for."""
        chance = random.Random(number)
        names = list(self.static)
        while names and not self._stop.is_set():
            bucket, key = chance.choice(names)
            found = self._get(cursor, bucket, key)
            assert found == self.static[bucket, key], (bucket, key, found)
            keys = [key for other, key in chance.sample(names, 5) if other == bucket]
            rows = self._call(cursor, "get_many", bucket, keys)
            assert {row[0] for row in rows} == set(keys), (bucket, keys)
            rows = self._call(cursor, "list", bucket, key, "", 1)
            assert [row[0] for row in rows] == [key], (bucket, key, rows)
