"""The store: every conversation of the running service with PostgreSQL.

One method per function of schema ``poky``, same verb, same order of arguments. Knows psycopg2 and
SQLSTATEs; knows nothing of HTTP headers, and builds no SQL beyond the name of what it calls.
"""

import contextlib
import logging
import os
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg2
import psycopg2.extensions

log = logging.getLogger("poky.store")

_GET = "SELECT revision, hash, modified_at, unchanged_since, content_type, value"
# Prepared once per connection: PostgreSQL parses and analyses each of them only once.
_STATEMENTS = {
    "get": f"(text, text) AS {_GET} FROM poky.get($1, $2)",
    "put": "(text, text, bytea, text, bigint, text, text) AS SELECT outcome, revision, hash,"
    " modified_at, outbox_id FROM poky.put($1, $2, $3, $4, $5, $6, $7)",
    "delete": "(text, text, text, text, bigint) AS SELECT outcome, outbox_id"
    " FROM poky.delete($1, $2, $3, $4, $5)",
    "get_many": "(text, text[]) AS SELECT key, revision, hash, modified_at, content_type, value"
    " FROM poky.get_many($1, $2)",
    "put_many": "(text, text[], bytea[], text[], bigint[], text[], text[], boolean) AS"
    " SELECT ordinal, outcome, revision, hash, modified_at, outbox_id"
    " FROM poky.put_many($1, $2, $3, $4, $5, $6, $7, $8)",
    "delete_many": "(text, text[], text[], text[], bigint[], boolean) AS"
    " SELECT ordinal, outcome, revision, hash, modified_at, outbox_id"
    " FROM poky.delete_many($1, $2, $3, $4, $5, $6)",
    "nodes": "AS SELECT name, url, generation, lease_seconds, leased_at, suspended_at, drained,"
    " held, purged_at FROM poky.nodes()",
    "list": "(text, text, text, integer) AS SELECT key, size, revision, hash, modified_at,"
    " content_type FROM poky.list($1, $2, $3, $4)",
}

_MAX_AGE = 1800.0
_MOST_READERS = 1000  # each costs PostgreSQL 50 kB per connection
_CONNECT_SECONDS = 3.0
# What a peer that vanished may cost, and the primary of several hosts; the DSN may say otherwise.
_DSN_DEFAULTS = {
    "connect_timeout": "3",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "target_session_attrs": "read-write",
    "application_name": "poky",
}
_ATTEMPTS = 3
# The statement did nothing and may be sent again: the deadlock's victim and the like were rolled
# back, the rest never started. FATAL is no such word: it also follows a commit.
_UNDONE = {"40001", "40P01", "26000", "0A000", "42883"}
# The bucket was dropped between two statements of a function: the next try says so (PK404).
_BUCKET_GONE = {"23514", "42P01"}
# After these the connection is not used again.
_UNFIT = {"08", "57", "0A", "26", "42"}
_BAD_INPUT = {"22021", "22P05", "54000"}


class StoreError(Exception):
    """PostgreSQL said no, or nothing: the HTTP status and a sentence of our own for the client.

    ``unknown`` is true when a change may have been made although nobody confirmed it.
    """

    def __init__(self, status: int, detail: str, *, unknown: bool = False) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.unknown = unknown


class Object(NamedTuple):
    """An object as it is stored; times are whole seconds since 1970.

    No copy older than this one can be dated later than ``unchanged_since``.
    """

    revision: int
    hash: str
    modified_at: int
    unchanged_since: int
    content_type: str
    value: bytes


class Found(NamedTuple):
    """An object as a batch finds it."""

    key: str
    revision: int
    hash: str
    modified_at: int
    content_type: str
    value: bytes


class Put(NamedTuple):
    """What a put came to: inserted, updated or rejected (then the rest is None)."""

    outcome: str
    revision: int
    hash: str
    modified_at: int
    outbox_id: int | None


class Delete(NamedTuple):
    """What a delete came to: deleted, missing or rejected."""

    outcome: str
    outbox_id: int | None


class Outcome(NamedTuple):
    """What one item of a batch came to; ``ordinal`` counts from 1."""

    ordinal: int
    outcome: str
    revision: int | None
    hash: str | None
    modified_at: int | None
    outbox_id: int | None


class Listed(NamedTuple):
    """An object as a listing shows it: everything but the value."""

    key: str
    size: int
    revision: int
    hash: str
    modified_at: int
    content_type: str


class Bucket(NamedTuple):
    """A bucket with PostgreSQL's estimate of its rows, and its bytes on disk."""

    name: str
    kind: str
    estimated_rows: int
    bytes: int


class Node(NamedTuple):
    """A cache; times are whole seconds since 1970.

    ``suspended_at`` is None while it takes part. ``drained``: its leases from before have run out.
    """

    name: str
    url: str
    generation: str
    lease_seconds: float
    leased_at: int | None
    suspended_at: int | None
    drained: bool
    held: bool
    purged_at: int | None


class Change(NamedTuple):
    """A change that a cache may not have heard of; an empty key stands for the whole bucket."""

    id: int
    bucket: str
    key: str


# Named here: within Store, "list" is the verb.
Rows = list[tuple[Any, ...]]
Outcomes = list[Outcome]
ListedObjects = list[Listed]
Buckets = list[Bucket]
Nodes = list[Node]
Changes = list[Change]


class _Connection(psycopg2.extensions.connection):
    """A connection that knows whether it is still alive and how long its statement may take."""

    statement: psycopg2.extensions.cursor
    readers: set[str]  #: those that are prepared
    was_cut = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.born = time.monotonic()
        self.deadline = self.born + _CONNECT_SECONDS
        # A second descriptor, which is ours to close: cut() must not meet another file's number.
        self._socket = socket.socket(fileno=os.dup(self.fileno()))
        self._guard = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def prepare(self, settings: str) -> None:
        """Make a new connection ready for use."""
        self.autocommit = True
        self.statement = self.cursor()
        self.statement.execute(settings)
        self.readers = set()

    def prepare_reader(self, reader: str) -> None:
        """Prepare a bucket's own poky.get."""
        self.statement.execute(f"PREPARE poky_{reader} (text) AS {_GET} FROM poky.{reader}($1)")
        self.readers.add(reader)

    def is_old(self) -> bool:
        """Whether it is due for replacement."""
        return time.monotonic() - self.born > _MAX_AGE

    def is_lost(self) -> bool:
        """Whether the server has closed it; asks no one, costs 1 us."""
        return bool(self._poll.poll(0))

    def cut(self) -> None:
        """From another thread: make whoever waits for the server fail now."""
        self.was_cut = True
        with self._guard, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, in whatever state it is."""
        with self._guard:
            self._socket.close()
        super().close()


class Store:
    """A bounded pool of connections and the interface of schema ``poky`` on top of it.

    Never hands out a connection that the server has closed; every wait is bounded; a statement
    that cannot be confirmed raises StoreError, and one that surely did nothing is tried again.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 6,
        pool_timeout: float = 2.0,
        statement_timeout: float = 4.0,
        lock_timeout: float = 1.5,
    ) -> None:
        self.dsn = dsn
        self.pool_size = pool_size
        self._dsns = _one_per_host(dsn)
        self._pool_timeout = pool_timeout
        self._patience = statement_timeout + 1.0
        self._settings = (
            # Generic plans: all that is kept is looked up by key, and with many buckets the five
            # plans that "auto" makes first would be most of the work.
            "SET timezone = 'UTC'; SET plan_cache_mode = force_generic_plan;"
            " SET synchronous_commit = on;"
            f" SET statement_timeout = {int(statement_timeout * 1000)};"
            f" SET lock_timeout = {int(lock_timeout * 1000)};"
            " SET idle_in_transaction_session_timeout = 5000;"
            + "".join(f"PREPARE poky_{name} {rest};" for name, rest in _STATEMENTS.items())
        )
        # A semaphore in C: threading's own, in Python, would cost as much as parsing a request.
        self._readers: dict[str, str] = {}  # by bucket
        self._places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(pool_size):
            self._places.put(None)
        self._idle: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()
        self._closed = threading.Event()
        threading.Thread(target=self._cut_overdue, name="poky-overdue", daemon=True).start()

    # The interface of schema poky.

    def get(self, bucket: str, key: str) -> Object | None:
        """The object, or None when there is none."""
        reader = self._readers.get(bucket)
        if reader is None:
            reader = self.reader(bucket)
        rows = self._ask(reader, bucket, key) if reader else None
        if rows is None:
            rows = self._read("EXECUTE poky_get(%s, %s)", (bucket, key))
        if not rows:
            return None
        *facts, value = rows[0]
        return Object._make((*facts, bytes(value)))

    def reader(self, bucket: str) -> str:
        """The function that reads this bucket alone, at half the cost; empty if there is none."""
        if len(self._readers) >= _MOST_READERS:
            return ""
        try:
            rows = self._try("SELECT poky.reader(%s)", (bucket,), is_write=False, look=False)
        except (psycopg2.Error, ValueError):
            rows = [("",)]  # poky.get will say what is wrong
        reader: str | None = rows[0][0]
        if reader is not None:
            self._readers[bucket] = reader
        return reader or ""

    def _ask(self, reader: str, bucket: str, key: str) -> Rows | None:
        """What a bucket's own function says; None if poky.get is to have the last word."""
        try:
            return self._try(
                f"EXECUTE poky_{reader}(%s)", (key,), is_write=False, look=False, reader=reader
            )
        except (psycopg2.Error, ValueError) as error:
            self._readers.pop(bucket, None)
            if getattr(error, "pgcode", None) == "57014":
                raise _translated(error, is_write=False) from error
            return None

    def put(
        self,
        bucket: str,
        key: str,
        value: bytes,
        content_type: str,
        modified_at: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Put:
        """Store an object if its conditions hold and nothing newer than ``modified_at`` is there.

        A refusal for a condition is an answer (``rejected``), an unknown bucket a StoreError.
        """
        rows = self._write(
            "EXECUTE poky_put(%s, %s, %s, %s, %s, %s, %s)",
            (
                bucket,
                key,
                psycopg2.Binary(value),
                content_type,
                modified_at,
                if_match,
                if_none_match,
            ),
        )
        return Put(*rows[0])

    def delete(
        self,
        bucket: str,
        key: str,
        if_match: str | None = None,
        if_none_match: str | None = None,
        unmodified_since: int | None = None,
    ) -> Delete:
        """Delete an object if its conditions hold."""
        rows = self._write(
            "EXECUTE poky_delete(%s, %s, %s, %s, %s)",
            (bucket, key, if_match, if_none_match, unmodified_since),
        )
        return Delete(*rows[0])

    def get_many(self, bucket: str, keys: Sequence[str]) -> dict[str, Found]:
        """Those of the objects that are there, by key."""
        rows = self._read("EXECUTE poky_get_many(%s, %s)", (bucket, list(keys)))
        return {key: Found._make((key, *facts, bytes(value))) for key, *facts, value in rows}

    def put_many(
        self,
        bucket: str,
        keys: Sequence[str],
        values: Sequence[bytes],
        content_types: Sequence[str],
        modified_at: Sequence[int | None],
        if_match: Sequence[str | None],
        if_none_match: Sequence[str | None],
        atomic: bool,
    ) -> Outcomes:
        """Store objects in one transaction; one outcome per item, by position.

        ``atomic``: if any is rejected nothing is written, and no outcome has a revision.
        """
        rows = self._write(
            "EXECUTE poky_put_many(%s, %s, %s, %s, %s, %s, %s, %s)",
            (
                bucket,
                list(keys),
                [psycopg2.Binary(value) for value in values],
                list(content_types),
                list(modified_at),
                list(if_match),
                list(if_none_match),
                atomic,
            ),
        )
        return sorted(Outcome(*row) for row in rows)

    def delete_many(
        self,
        bucket: str,
        keys: Sequence[str],
        if_match: Sequence[str | None],
        if_none_match: Sequence[str | None],
        unmodified_since: Sequence[int | None],
        atomic: bool,
    ) -> Outcomes:
        """Delete objects in one transaction; one outcome per item, by position."""
        rows = self._write(
            "EXECUTE poky_delete_many(%s, %s, %s, %s, %s, %s)",
            (
                bucket,
                list(keys),
                list(if_match),
                list(if_none_match),
                list(unmodified_since),
                atomic,
            ),
        )
        return sorted(Outcome(*row) for row in rows)

    def list(
        self, bucket: str, prefix: str = "", after: str = "", limit: int = 100
    ) -> ListedObjects:
        """Up to ``limit`` objects by key, from just after ``after``."""
        rows = self._read("EXECUTE poky_list(%s, %s, %s, %s)", (bucket, prefix, after, limit))
        return [Listed(*row) for row in rows]

    def buckets(self) -> Buckets:
        """All buckets, by name."""
        rows = self._read(
            "SELECT name, kind, estimated_rows, bytes FROM poky.buckets() ORDER BY name", ()
        )
        return [Bucket(*row) for row in rows]

    def ensure_bucket(self, bucket: str) -> bool:
        """Create a bucket unless it is there; whether it was created."""
        return bool(self._write("SELECT poky.ensure_bucket(%s)", (bucket,))[0][0])

    def drop_bucket(self, bucket: str, keys: bool = False) -> int | None:
        """Drop a bucket, with its keys only if ``keys``; else StoreError 409 when it has any.

        The outbox_id, or None where no cache must hear of it.
        """
        rows = self._write("SELECT poky.drop_bucket(%s, %s)", (bucket, keys))
        return None if rows[0][0] is None else int(rows[0][0])

    def migrations(self) -> tuple[str, Sequence[str]]:
        """The kind of the schema and the names of its migrations; StoreError 503 without one."""
        kind, migrations = self._read("SELECT kind, migrations FROM poky.status()", ())[0]
        return kind, migrations or []

    # The caches.

    def nodes(self) -> Nodes:
        """All caches, by name: to be asked after a commit, never before."""
        return [Node(*row) for row in self._read("EXECUTE poky_nodes", ())]

    def register_node(self, node: str, url: str) -> bool:
        """Make a cache known, or its new address; it starts suspended. Whether anything changed."""
        return bool(self._write("SELECT poky.register_node(%s, %s)", (node, url))[0][0])

    def lease(self, node: str, seconds: float) -> str | None:
        """The generation under which a cache may use its copies from when it asked; None is no."""
        generation: str | None = self._write("SELECT poky.lease(%s, %s)", (node, seconds))[0][0]
        return generation

    def suspend_node(self, node: str, hold: bool = False) -> Node | None:
        """Grant a cache no more leases, whoever did it first; None if there is no such cache."""
        rows = self._write("SELECT * FROM poky.suspend_node(%s, %s)", (node, hold))
        return Node(*rows[0]) if rows else None

    def drain_node(self, node: str, generation: str) -> bool:
        """Say that the leases of a suspended cache have certainly run out."""
        return bool(self._write("SELECT poky.drain_node(%s, %s)", (node, generation))[0][0])

    def reinstate_node(self, node: str, generation: str) -> bool:
        """Let a cache take part again, unless its pause is not over; whether it does now."""
        return bool(self._write("SELECT poky.reinstate_node(%s, %s)", (node, generation))[0][0])

    def resume_node(self, node: str) -> bool:
        """Hold a cache no longer; False if there is no such cache."""
        return bool(self._write("SELECT poky.resume_node(%s)", (node,))[0][0])

    def remove_node(self, node: str) -> bool:
        """Forget a cache that is suspended and drained; StoreError 409 if it may hold a lease."""
        return bool(self._write("SELECT poky.remove_node(%s)", (node,))[0][0])

    def renew_generations(self) -> float:
        """Let every cache forget all it has; after so many seconds nobody uses an old copy."""
        return float(self._write("SELECT poky.renew_generations()", ())[0][0])

    def unconfirmed(self, seconds: float, limit: int) -> Changes:
        """The oldest changes that nobody has confirmed to be purged for so many seconds."""
        rows = self._read("SELECT id, bucket, key FROM poky.unconfirmed(%s, %s)", (seconds, limit))
        return [Change(*row) for row in rows]

    def confirm(self, ids: Sequence[int]) -> None:
        """Every cache has heard of these changes, or was suspended since."""
        self._write("SELECT poky.confirm(%s)", (list(ids),))

    # The pool.

    def close(self) -> None:
        """Close every idle connection, and watch the others no longer."""
        self._closed.set()
        while self._idle:
            self._idle.pop().close()

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are busy and how many idle."""
        return len(self._busy), len(self._idle)

    def _read(self, statement: str, parameters: Sequence[Any]) -> Rows:
        return self._execute(statement, parameters, is_write=False)

    def _write(self, statement: str, parameters: Sequence[Any]) -> Rows:
        return self._execute(statement, parameters, is_write=True)

    def _execute(self, statement: str, parameters: Sequence[Any], *, is_write: bool) -> Rows:
        attempt = 1
        while True:
            try:
                # A read that finds its connection lost is asked again, so it need not look first.
                look = is_write or attempt > 1
                return self._try(statement, parameters, is_write=is_write, look=look)
            except (psycopg2.Error, ValueError) as error:
                if attempt >= _ATTEMPTS or not _may_retry(error, is_write=is_write):
                    raise _translated(error, is_write=is_write) from error
                log.info("trying again after: %s", _first_line(error))
                attempt += 1

    def _try(
        self,
        statement: str,
        parameters: Sequence[Any],
        *,
        is_write: bool,
        look: bool,
        reader: str = "",
    ) -> Rows:
        try:
            self._places.get(timeout=self._pool_timeout)
        except queue.Empty:
            raise StoreError(
                503, "All connections to the database are busy. Try again shortly."
            ) from None
        try:
            connection = self._checked_out(look)
            is_fit = False
            try:
                if reader and reader not in connection.readers:
                    connection.prepare_reader(reader)
                connection.statement.execute(statement, parameters)
                rows = connection.statement.fetchall()
                is_fit = True
                if is_write and connection.notices:
                    _refuse_unreplicated(connection.notices)
                return rows
            except psycopg2.Error as error:
                if connection.was_cut:  # its time is up: no other attempt
                    raise StoreError(
                        503, "The database does not answer. Try again shortly.", unknown=is_write
                    ) from error
                # A statement that PostgreSQL refused leaves the connection fit for use.
                is_fit = error.pgcode is not None and error.pgcode[:2] not in _UNFIT
                raise
            except ValueError:  # a text that psycopg2 would not send
                is_fit = True
                raise
            finally:
                self._busy.discard(connection)
                if is_fit and not connection.closed:
                    self._idle.append(connection)
                else:
                    connection.close()
        finally:
            self._places.put(None)

    def _checked_out(self, look: bool) -> _Connection:
        """A connection that is being watched; one that was idle, or else a new one."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connected()
            if not connection.is_old() and not (look and connection.is_lost()):
                connection.deadline = time.monotonic() + self._patience
                self._busy.add(connection)
                return connection
            connection.close()

    def _connected(self) -> _Connection:
        began = time.monotonic()
        # The first one twice: a connection may be ended while it is made.
        for number, dsn in enumerate((*self._dsns, self._dsns[0])):
            if number == len(self._dsns) and time.monotonic() - began > 1:
                break
            try:
                connection = psycopg2.connect(dsn, connection_factory=_Connection)
                self._busy.add(connection)
                try:
                    connection.prepare(self._settings)
                except BaseException:
                    self._busy.discard(connection)
                    connection.close()
                    raise
            except psycopg2.OperationalError as error:
                failure: psycopg2.Error = error
                # The next connection begins with a host that answered.
                self._dsns = [*(each for each in self._dsns if each != dsn), dsn]
            except psycopg2.Error as error:
                failure = error
                break
            else:
                connection.deadline = time.monotonic() + self._patience
                self._readers.clear()  # what is known may be old: a flat schema is flat no longer
                return connection
        log.warning("cannot use the database: %s", _first_line(failure))
        if failure.pgcode in ("3F000", "42883", "42704"):
            raise StoreError(
                503, "The database has no schema that suits this release. Run poky migrate."
            ) from failure
        raise StoreError(503, "The database cannot be reached. Try again shortly.") from failure

    def _cut_overdue(self) -> None:
        """The server ends a slow statement; this ends the wait for a server that says nothing."""
        while not self._closed.wait(0.5):
            now = time.monotonic()
            for connection in self._busy.copy():
                if connection.deadline < now:
                    log.warning("a statement got no answer from the database and was given up")
                    connection.cut()


def _one_per_host(dsn: str) -> list[str]:
    """A DSN for each of the hosts it names: one that is silent must not keep from the next."""
    parts = {**_DSN_DEFAULTS, **psycopg2.extensions.parse_dsn(dsn)}
    lists = {
        name: parts.pop(name).split(",") for name in ("host", "hostaddr", "port") if name in parts
    }
    dsns = []
    for number in range(max(map(len, lists.values()), default=1)):
        # One port, or as many as there are hosts (libpq's rule).
        one = {name: each[number if len(each) > 1 else 0] for name, each in lists.items()}
        dsns.append(psycopg2.extensions.make_dsn(**parts, **one))
    return dsns


def _may_retry(error: Exception, *, is_write: bool) -> bool:
    if not isinstance(error, psycopg2.Error):
        return False
    if error.pgcode in _UNDONE or error.pgcode in _BUCKET_GONE:
        return True
    # A lost connection: a read can be asked again, a write may have been done.
    return not is_write and error.pgcode is None and isinstance(error, psycopg2.DatabaseError)


def _translated(error: Exception, *, is_write: bool) -> StoreError:
    if isinstance(error, ValueError):
        return StoreError(400, "A text has a character that cannot be stored, such as NUL.")
    code = getattr(error, "pgcode", None) or ""
    if code.startswith("PK"):
        return StoreError(int(code[2:]), _first_line(error))
    if code in _BUCKET_GONE:
        return StoreError(404, "The bucket was dropped meanwhile.")
    if code in _BAD_INPUT:
        return StoreError(400, "The request has a text that PostgreSQL cannot store.")
    log.error("the database failed: %s %s", code, _first_line(error))
    if code == "57014":
        return StoreError(503, "The database took too long. Try again shortly.")
    if code == "55P03":
        return StoreError(503, "The object is locked by another transaction. Try again shortly.")
    # No SQLSTATE, or a crash of the server: the change may have been committed before.
    unknown = is_write and (not code or code in ("57P02", "08007") or code.startswith("08"))
    return StoreError(503, "The database failed. Try again shortly.", unknown=unknown)


def _refuse_unreplicated(notices: Any) -> None:
    """PostgreSQL warns, and says COMMIT all the same, when a wait for the standby is cancelled.

    FATAL is no doubt: the server answered, and then went.
    """
    said = " ".join(notice for notice in notices if not notice.startswith("FATAL:")).strip()
    del notices[:]
    if not said:
        return
    log.error("a write was not confirmed: %s", said)
    raise StoreError(503, "The change is not confirmed by the standby.", unknown=True)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix("ERROR:  ") if lines else type(error).__name__
