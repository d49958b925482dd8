"""The pool: a bounded number of connections, every wait bounded, every failure a StoreError.

Knows psycopg2 and connections; knows no function of schema ``poky`` beyond the name it is given.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import psycopg2
import psycopg2.extensions

from poky.store.counts import Counts
from poky.store.errors import (
    StoreError,
    cannot_connect,
    first_line,
    is_fit_after,
    is_policy_changed,
    is_read_only,
    is_undefined,
    may_retry,
    refuse_unreplicated,
    translated,
)
from poky.store.hosts import one_per_host
from poky.store.literals import compose
from poky.store.rows import CopiedRows
from poky.store.statements import BUCKET_FUNCTIONS, FUNCTIONS
from poky.store.under import Guard, Under

log = logging.getLogger("poky.store")

Rows = list[tuple[Any, ...]]
Held = tuple[str, Callable[[str], str] | None]  #: a policy, and how to decide anew

_MAX_AGE = 1800.0
_CONNECT_SECONDS = 3.0
_ATTEMPTS = 3
# A server that has refused all connections for so long is asked by one thread, with rests of a
# quarter of the time since, up to four times a second in the end: a connection for each request
# would leave it, and this process, no time for anything else.
_FAILING_SECONDS = 0.05
_REST_SECONDS = 0.25
_RECENT_SECONDS = 2.0  # an older failure says nothing of the server as it is now
_WATCH_SECONDS = 0.25
# What a busy machine still does in a second; docs/configuration.md says so.
_ITEMS_PER_SECOND = 2000
_BYTES_PER_SECOND = 2 * 1024 * 1024
# libpq's buffers grow to the largest message and never shrink: a connection that has carried more
# is closed, not kept.
_KEPT_BYTES = 2 * 1024 * 1024


class Connection(psycopg2.extensions.connection):
    """A connection with a deadline for its statement, and a cheap check that it is alive."""

    statement: psycopg2.extensions.cursor
    bucket_functions: set[tuple[str, int]]  #: those that are prepared
    takes_text: bool  #: whether UTF-8 arrives as it is sent
    host: str  #: the DSN of its host alone
    was_cut = False
    extra = 0.0  # seconds above the usual statement timeout

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.born = time.monotonic()
        self.deadline = self.born + _CONNECT_SECONDS
        # A duplicate descriptor, closed here: cut() must never act on a number that was reused.
        self._socket = socket.socket(fileno=os.dup(self.fileno()))
        self._guard = threading.Lock()
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def prepare(self, settings: str) -> None:
        """Make a new connection ready for use."""
        self.autocommit = True
        self.statement = self.cursor()
        self.statement.execute(settings)
        self.bucket_functions = set()
        encodings = {self.get_parameter_status(f"{side}_encoding") for side in ("client", "server")}
        self.takes_text = encodings == {"UTF8"}

    def prepare_bucket_function(self, verb: str, number: int) -> None:
        """Prepare a bucket's own function."""
        self.statement.execute(BUCKET_FUNCTIONS[verb].prepare(f"{verb}_{number}"))
        self.bucket_functions.add((verb, number))

    def is_lost(self) -> bool:
        """Whether the server has closed it: a poll of the socket, 1 us."""
        return bool(self._poll.poll(0))

    def cut(self) -> None:
        """From another thread: end the wait for the server's answer with an error."""
        self.was_cut = True
        with self._guard, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it, in whatever state it is."""
        with self._guard:
            self._socket.close()
        super().close()
        self.__dict__.pop("statement", None)  # a cycle, which would keep the last query


class Pool:
    """A bounded pool of connections that executes statements, with retries and a watchdog."""

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int = 6,
        pool_timeout: float = 2.0,
        statement_timeout: float = 4.0,
        lock_timeout: float = 1.5,
        name: str = "poky",
    ) -> None:
        self.dsn = dsn
        self.pool_size = pool_size
        self._dsns = one_per_host(dsn, name)
        self._takes_text = False  # until a connection has said so
        self._pool_timeout = pool_timeout
        # More than the server's own limit, which ends a statement without a doubt.
        self._seconds = statement_timeout
        self._patience = statement_timeout + 1.0
        self._read_seconds = statement_timeout + 0.5
        self._settings = (
            # Generic plans: all that is kept is looked up by key, and with many buckets the five
            # plans that "auto" makes first would be most of the work.
            "SET standard_conforming_strings = on; SET timezone = 'UTC';"
            " SET plan_cache_mode = force_generic_plan;"
            " SET synchronous_commit = on;"
            f" SET statement_timeout = {int(statement_timeout * 1000)};"
            f" SET lock_timeout = {int(lock_timeout * 1000)};"
            " SET idle_in_transaction_session_timeout = 5000;"
            + "".join(function.prepare(name) for name, function in FUNCTIONS.items())
        )
        # Not a SimpleQueue: up to Python 3.12, who loses the race for an item in the moment its
        # time ends waits for the next one without end.
        self._places = threading.Semaphore(pool_size)
        self._idle: deque[Connection] = deque()
        self._busy: set[Connection] = set()
        self._rests_until = 0.0
        self._failed_at = 0.0
        self._trying = threading.Lock()  # who tries to connect where that has failed for a while
        self._refusal = ("database_unavailable", "")  # what rests are ended with
        self.guard = Guard()
        self.counts = Counts()
        self._closed = threading.Event()
        threading.Thread(target=self._cut_overdue, name="poky-overdue", daemon=True).start()

    def close(self) -> None:
        """Close every idle connection, and watch the others no longer."""
        self._closed.set()
        while self._idle:
            self._idle.pop().close()

    @property
    def connections(self) -> tuple[int, int]:
        """How many connections are busy and how many idle."""
        return len(self._busy), len(self._idle)

    def _read(self, statement: str, parameters: Sequence[Any], items: int = 1) -> Rows:
        return self._execute(statement, parameters, is_write=False, extra=_extra(items))

    def _write(self, statement: str, parameters: Sequence[Any], items: int = 1) -> Rows:
        return self._execute(statement, parameters, is_write=True, extra=_extra(items))

    def _write_large(
        self, statement: str, parameters: Sequence[Any], size: int, items: int = 1
    ) -> Rows:
        """A write with large values, which are forgotten as soon as they are in the statement."""
        query = compose(statement, parameters, takes_text=self._takes_text)
        return self._execute(query, None, is_write=True, extra=_extra(items, size))

    def _copy(
        self,
        statement: str,
        parameters: Sequence[Any],
        rows: CopiedRows,
        size: int,
        items: int = 1,
    ) -> None:
        """Read rows that may be large, by COPY: in three fifths of the memory of a fetch."""
        extra = _extra(items, size)
        self._execute(statement, parameters, is_write=False, copied=rows, extra=extra)

    def held_policy(self) -> Held | None:
        """What this thread's statements are done under, for `under` in another thread."""
        policy = self.guard.policy
        return None if policy is None else (policy, self.guard.renew)

    def under(
        self,
        policy: str | None,
        renew: Callable[[str], str] | None = None,
        since: float = 0.0,
    ) -> Under:
        """Let this thread's statements be done only under this policy (None: any).

        PostgreSQL refuses a statement that comes under another one, and it did nothing then:
        ``renew(policy)`` decides anew, and either raises or gives the policy to try it under.
        ``since``: when the request came, from which its time is counted (time.monotonic()).
        """
        return Under(self.guard, policy, renew, since)

    # What follows a change (nodes, purges) must not fail because tokens have changed since.

    def _read_freely(self, statement: str, parameters: Sequence[Any]) -> Rows:
        with self.under(None):
            return self._read(statement, parameters)

    def _write_freely(self, statement: str, parameters: Sequence[Any]) -> Rows:
        with self.under(None):
            return self._write(statement, parameters)

    def _execute(
        self,
        statement: str | bytes,
        parameters: Sequence[Any] | None,
        *,
        is_write: bool,
        bucket_function: tuple[str, int] | None = None,
        copied: CopiedRows | None = None,
        extra: float = 0.0,
    ) -> Rows:
        attempt = 1
        # A read's time is counted from when its request came. A write is in doubt once it is cut:
        # it has half of its time at least, counted from here.
        since, now = self.guard.since, time.monotonic()
        deadline = (since or now) + self._read_seconds + extra
        if is_write and since:
            deadline = max(deadline, now + self._read_seconds / 2 + extra)
        while True:
            try:
                # A read whose connection is lost is retried, so its first attempt skips the check.
                check_alive = is_write or attempt > 1
                return self._execute_once(
                    statement,
                    parameters,
                    is_write=is_write,
                    check_alive=check_alive,
                    deadline=None if is_write and not since else deadline,
                    bucket_function=bucket_function,
                    copied=copied,
                    extra=extra,
                )
            except (psycopg2.Error, ValueError) as error:
                self.counts.add_error(error)
                if bucket_function and is_undefined(error):
                    raise
                if is_policy_changed(error) and attempt < _ATTEMPTS and self.guard.renew:
                    self.guard.policy = self.guard.renew(str(self.guard.policy))
                    attempt += 1
                    continue
                is_last = attempt >= _ATTEMPTS or time.monotonic() > deadline
                if is_last or not may_retry(error, is_write=is_write):
                    raise translated(error, is_write=is_write) from error
                log.info("trying again after: %s", first_line(error))
                self.counts.add("retries")
                attempt += 1

    def _execute_once(
        self,
        statement: str | bytes,
        parameters: Sequence[Any] | None,
        *,
        is_write: bool,
        check_alive: bool,
        deadline: float | None,
        bucket_function: tuple[str, int] | None,
        copied: CopiedRows | None,
        extra: float,
    ) -> Rows:
        if not self._places.acquire(blocking=False):
            self._wait_for_place(deadline)
        try:
            connection = self._check_out(check_alive, deadline, extra)
            policy = self.guard.policy
            is_fit = False
            try:
                if connection.extra != extra:
                    connection.statement.execute(
                        "SET statement_timeout = %s", (int((self._seconds + extra) * 1000),)
                    )
                    connection.extra = extra
                if bucket_function and bucket_function not in connection.bucket_functions:
                    connection.prepare_bucket_function(*bucket_function)
                if copied is None:
                    connection.statement.execute(
                        statement if policy is None else _guarded(policy, statement), parameters
                    )
                    rows = connection.statement.fetchall()
                    is_fit = len(statement) <= _KEPT_BYTES
                else:
                    copied.clear()
                    if policy is not None:
                        connection.statement.execute(_guarded(policy, ""))
                    query = connection.statement.mogrify(statement, parameters)
                    connection.statement.copy_expert(query, copied)
                    rows = []
                    is_fit = copied.largest <= _KEPT_BYTES
                if is_write and connection.notices:
                    refuse_unreplicated(connection.notices)
                return rows
            except psycopg2.Error as error:
                is_fit = self._is_fit_after(connection, error, is_write)
                raise
            except ValueError:  # a text that psycopg2 would not send
                is_fit = copied is None
                raise
            finally:
                self._busy.discard(connection)
                if is_fit and not connection.closed:
                    self._idle.append(connection)
                else:
                    connection.close()
        finally:
            self._places.release()

    def _wait_for_place(self, deadline: float | None) -> None:
        began = time.monotonic()
        patience = self._pool_timeout
        if deadline is not None:
            patience = min(patience, max(deadline - began, 0.01))
        has_place = self._places.acquire(timeout=patience)
        self.counts.add("waits")
        self.counts.add("wait_seconds", time.monotonic() - began)
        if not has_place:
            self.counts.add("timeouts")
            raise StoreError(
                503, "All connections to the database are busy. Try again shortly.", code="busy"
            )

    def _is_fit_after(self, connection: Connection, error: psycopg2.Error, is_write: bool) -> bool:
        """Whether the connection can be used again. StoreError: no other attempt, time is up."""
        if connection.was_cut or is_read_only(error):
            self._distrust(connection.host)
        if connection.was_cut:
            raise StoreError(
                503,
                "The database does not answer. Try again shortly.",
                code="outcome_unknown" if is_write else "database_unavailable",
                unknown=is_write,
            ) from error
        return is_fit_after(error)

    def _distrust(self, host: str) -> None:
        """A host hangs or leads no more: its idle connections are of no use, others come first."""
        self._put_last(host)
        for _ in range(len(self._idle)):
            try:
                connection = self._idle.popleft()
            except IndexError:
                return
            if connection.host == host:
                connection.close()
            else:
                self._idle.append(connection)

    def _put_last(self, host: str) -> None:
        self._dsns = [*(each for each in self._dsns if each != host), host]

    def _check_out(self, check_alive: bool, deadline: float | None, extra: float) -> Connection:
        """An idle connection or a new one; the watchdog has its deadline."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                connection = self._connect(deadline)
                connection.deadline = deadline or time.monotonic() + self._patience + extra
                return connection
            now = time.monotonic()
            if now - connection.born <= _MAX_AGE and not (check_alive and connection.is_lost()):
                connection.deadline = deadline or now + self._patience + extra
                self._busy.add(connection)
                return connection
            connection.close()

    def _connect(self, deadline: float | None) -> Connection:
        """A new connection. While none can be made one thread tries, and all others are refused."""
        is_failing = self._is_failing
        if time.monotonic() < self._rests_until or (
            is_failing and not self._trying.acquire(blocking=False)
        ):
            code, detail = self._refusal
            raise StoreError(503, detail, code=code)
        try:
            return self._connect_to_any(deadline)
        finally:
            if is_failing:
                self._trying.release()

    def _connect_to_any(self, deadline: float | None) -> Connection:
        began = time.monotonic()
        self.counts.add("connects")
        # The first one twice: a connection may be ended while it is made.
        for number, dsn in enumerate((*self._dsns, self._dsns[0])):
            if number == len(self._dsns) and (self._is_failing or time.monotonic() - began > 1):
                break
            try:
                connection: Connection = psycopg2.connect(
                    dsn, connection_factory=Connection, **_connect_options(deadline)
                )
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
                self._put_last(dsn)
            except psycopg2.Error as error:
                failure = error
                break
            else:
                connection.deadline = time.monotonic() + self._patience
                self._takes_text = connection.takes_text
                connection.host = dsn
                self.counts.connected(True)
                return connection
        log.warning("cannot use the database: %s", first_line(failure))
        self.counts.add_error(failure)
        self.counts.connected(False)
        self._failed_at = time.monotonic()
        refusal = cannot_connect(failure)
        self._refusal = refusal.code, refusal.detail
        # One that hangs, or is far away, takes its time by itself.
        if self._is_failing and time.monotonic() - began < _REST_SECONDS:
            self._rests_until = time.monotonic() + min(self._failing_for / 4, _REST_SECONDS)
        raise refusal from failure

    @property
    def _is_failing(self) -> bool:
        is_recent = time.monotonic() - self._failed_at < _RECENT_SECONDS or self._trying.locked()
        return is_recent and self._failing_for > _FAILING_SECONDS

    @property
    def _failing_for(self) -> float:
        since = self.counts.failing_since
        return 0.0 if since is None else time.time() - since

    def _cut_overdue(self) -> None:
        """Cut connections past their deadline: there even the statement timeout did not end it."""
        while not self._closed.wait(_WATCH_SECONDS):
            now = time.monotonic()
            for connection in self._busy.copy():
                if connection.deadline < now:
                    log.warning("a statement got no answer from the database and was given up")
                    connection.cut()


def _connect_options(deadline: float | None) -> dict[str, Any]:
    """A shorter wait for a host if a request has little time left; two seconds at least."""
    is_short = deadline is not None and deadline - time.monotonic() < _CONNECT_SECONDS
    return {"connect_timeout": 2} if is_short else {}


def _extra(items: int, size: int = 0) -> float:
    """Seconds that a statement may take above the usual, for its items and their bytes."""
    return round(max(items - 1, 0) / _ITEMS_PER_SECOND + size / _BYTES_PER_SECOND, 1)


def _guarded(policy: str, statement: Any) -> Any:
    """The statement behind the guard, in one message and one transaction."""
    guard = f"EXECUTE poky_require_policy('{policy}');"  # a UUID
    return guard.encode() + statement if isinstance(statement, bytes) else guard + statement
