"""The store: every conversation of the running service with PostgreSQL.

One method per function of schema ``poky``, same verb, same order of arguments. Knows psycopg2 and
SQLSTATEs; knows nothing of HTTP headers, and builds no SQL beyond the name of what it calls.
"""

import binascii
import contextlib
import hashlib
import logging
import os
import queue
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import psycopg2
import psycopg2.extensions

log = logging.getLogger("poky.store")

# What a bucket's own functions are called with, and what is read of their answers.
_OWN = {
    "get": "(text) AS SELECT revision, hash, modified_at, unchanged_since, content_type, value"
    " FROM poky.{}($1)",
    "put": "(text, bytea, text, bigint, text, text, text) AS SELECT outcome, revision, hash,"
    " modified_at, outbox_id FROM poky.{}($1, $2, $3, $4, $5, $6, $7)",
    "delete": "(text, text, text, bigint) AS SELECT outcome, outbox_id"
    " FROM poky.{}($1, $2, $3, $4)",
}
_PLACES = {"get": "(%s)", "put": "(%s, %s, %s, %s, %s, %s, %s)", "delete": "(%s, %s, %s, %s)"}
# Prepared once per connection: PostgreSQL parses and analyses each of them only once.
_STATEMENTS = {
    "get": "(text, text) AS SELECT revision, hash, modified_at, unchanged_since, content_type,"
    " value FROM poky.get($1, $2)",
    "put": "(text, text, bytea, text, bigint, text, text, text) AS SELECT outcome, revision, hash,"
    " modified_at, outbox_id FROM poky.put($1, $2, $3, $4, $5, $6, $7, $8)",
    "delete": "(text, text, text, text, bigint) AS SELECT outcome, outbox_id"
    " FROM poky.delete($1, $2, $3, $4, $5)",
    "get_many": "(text, text[]) AS SELECT key, revision, hash, modified_at, content_type, value"
    " FROM poky.get_many($1, $2)",
    "put_many": "(text, text[], bytea[], text[], bigint[], text[], text[], boolean, text[]) AS"
    " SELECT ordinal, outcome, revision, hash, modified_at, outbox_id"
    " FROM poky.put_many($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    "delete_many": "(text, text[], text[], text[], bigint[], boolean) AS"
    " SELECT ordinal, outcome, revision, hash, modified_at, outbox_id"
    " FROM poky.delete_many($1, $2, $3, $4, $5, $6)",
    "nodes": "AS SELECT name, url, generation, lease_seconds, leased_at, suspended_at, drained,"
    " held, purged_at FROM poky.nodes()",
    "list": "(text, text, text, integer) AS SELECT key, size, revision, hash, modified_at,"
    " content_type FROM poky.list($1, $2, $3, $4)",
}

_MAX_AGE = 1800.0
# How many buckets are read, written to, and deleted from by functions of their own: each costs
# PostgreSQL memory in every connection, and other buckets are served as well, at a higher cost.
_MOST_OWN = {"get": 1000, "put": 100, "delete": 100}
# With more than so many, their plans push each other out of the processor's caches, and for a put
# without If-Match the one plan that poky.put has for all buckets is faster.
_FEW = 10
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
    "client_encoding": "UTF8",
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
    value: memoryview  #: not copied: that would be a tenth of what a large one costs to read


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
    own: set[str]  #: the buckets' own functions that are prepared
    takes_text: bool  #: whether UTF-8 arrives as it is sent
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
        self.own = set()
        encodings = {self.get_parameter_status(f"{side}_encoding") for side in ("client", "server")}
        self.takes_text = encodings == {"UTF8"}

    def prepare_own(self, name: str) -> None:
        """Prepare a bucket's own function."""
        verb = name.partition("_")[0]
        self.statement.execute(f"PREPARE poky_{name} {_OWN[verb].format(name)}")
        self.own.add(name)

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


class _Value:
    """A value as a literal, as short as may be: the server scans it byte by byte.

    psycopg2's Binary has two characters for every byte. Text needs little more than one.
    """

    __slots__ = ("_connection", "_value")

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __conform__(self, protocol: object) -> Self:
        return self

    def prepare(self, connection: _Connection) -> None:
        self._connection = connection

    def getquoted(self) -> bytes:
        """Text in bytea's escape format, where only the backslash has a meaning; or base 64."""
        value = self._value
        if _is_text(value) and (self._connection.takes_text or value.isascii()):
            # Doubled backslashes and quotes: safe whatever standard_conforming_strings says.
            return b"'%b'::bytea" % value.replace(b"\\", b"\\\\").replace(b"'", b"''")
        return b"decode('%b','base64')" % binascii.b2a_base64(value, newline=False)


def _is_text(value: bytes) -> bool:
    """Whether PostgreSQL takes this for text: UTF-8 without NUL."""
    if b"\0" in value:
        return False
    try:
        return value.isascii() or bool(value.decode())
    except UnicodeDecodeError:
        return False


def _hash(value: bytes) -> str:
    """What poky.put would compute itself, at a higher cost."""
    return hashlib.sha256(value).hexdigest()[:8]


def _array(texts: Sequence[str]) -> str:
    """An array as one text: one literal for PostgreSQL to parse, not one for each element."""
    escaped = [each.replace("\\", "\\\\").replace('"', '\\"') for each in texts]
    return '{"' + '","'.join(escaped) + '"}' if escaped else "{}"


def _unless_empty(items: Sequence[Any]) -> list[Any] | None:
    """None, which is as good and cheaper, where no item has any."""
    return None if items.count(None) == len(items) else list(items)


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
            "SET standard_conforming_strings = on; SET timezone = 'UTC';"
            " SET plan_cache_mode = force_generic_plan;"
            " SET synchronous_commit = on;"
            f" SET statement_timeout = {int(statement_timeout * 1000)};"
            f" SET lock_timeout = {int(lock_timeout * 1000)};"
            " SET idle_in_transaction_session_timeout = 5000;"
            + "".join(f"PREPARE poky_{name} {rest};" for name, rest in _STATEMENTS.items())
        )
        self._own: dict[str, dict[str, str]] = {verb: {} for verb in _OWN}  # names by bucket
        # A semaphore in C: threading's own, in Python, would cost as much as parsing a request.
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
        rows = self._ask("get", bucket, (key,), is_write=False)
        if rows is None:
            rows = self._read("EXECUTE poky_get(%s, %s)", (bucket, key))
        if not rows:
            return None
        *facts, value = rows[0]
        return Object._make((*facts, value.cast("B")))

    def reader(self, bucket: str) -> str | None:
        """The name of this bucket's own poky.get; empty: it has none; None: there is no bucket."""
        return self._name("SELECT poky.reader(%s)", (bucket,))

    def writer(self, bucket: str, verb: str) -> str | None:
        """The name of this bucket's own poky.put or poky.delete; as reader."""
        return self._name("SELECT poky.writer(%s, %s)", (bucket, verb))

    def _name(self, statement: str, parameters: Sequence[str]) -> str | None:
        try:
            rows = self._try(statement, parameters, is_write=False, look=True)
        except (psycopg2.Error, ValueError):
            return ""  # whoever comes next, poky.get or poky.put, will say what is wrong
        name: str | None = rows[0][0]
        return name

    def _ask(
        self, verb: str, bucket: str, parameters: Sequence[Any], *, is_write: bool
    ) -> Rows | None:
        """What the bucket's own function says; None if the one for all is to have the last word."""
        own = self._own[verb]
        name = own.get(bucket)
        if name is None:
            if len(own) >= _MOST_OWN[verb]:
                return None
            name = self.writer(bucket, verb) if is_write else self.reader(bucket)
            if name is None:
                return None
            own[bucket] = name
        if not name:
            return None
        try:
            statement = f"EXECUTE poky_{name}{_PLACES[verb]}"
            return self._try(statement, parameters, is_write=is_write, look=is_write, own=name)
        except (psycopg2.Error, ValueError) as error:
            own.pop(bucket, None)
            code = getattr(error, "pgcode", None)
            if code == "57014" or (is_write and not _may_retry(error, is_write=True)):
                raise _translated(error, is_write=is_write) from error
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
        given = (
            key, _Value(value), content_type, modified_at, if_match, if_none_match, _hash(value)
        )  # fmt: skip
        rows = None
        if if_match is not None or len(self._own["put"]) <= _FEW:
            rows = self._ask("put", bucket, given, is_write=True)
        if rows is None:
            rows = self._write("EXECUTE poky_put(%s, %s, %s, %s, %s, %s, %s, %s)", (bucket, *given))
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
        given = key, if_match, if_none_match, unmodified_since
        rows = self._ask("delete", bucket, given, is_write=True)
        if rows is None:
            rows = self._write("EXECUTE poky_delete(%s, %s, %s, %s, %s)", (bucket, *given))
        return Delete(*rows[0])

    def get_many(self, bucket: str, keys: Sequence[str]) -> dict[str, Found]:
        """Those of the objects that are there, by key."""
        rows = self._read("EXECUTE poky_get_many(%s, %s)", (bucket, _array(keys)))
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
            "EXECUTE poky_put_many(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (
                bucket,
                _array(keys),
                [_Value(value) for value in values],
                _array(content_types),
                _unless_empty(modified_at),
                _unless_empty(if_match),
                _unless_empty(if_none_match),
                atomic,
                _array([_hash(value) for value in values]),
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
                _array(keys),
                _unless_empty(if_match),
                _unless_empty(if_none_match),
                _unless_empty(unmodified_since),
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
        own: str = "",
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
                if own and own not in connection.own:
                    connection.prepare_own(own)
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
                for own in self._own.values():
                    own.clear()  # what is known may be old: a flat schema is flat no longer
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
