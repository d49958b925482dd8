"""The threads that work on connections, and the epoll set in which connections wait for one.

cheroot calls this by the interface of its thread pool.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

from poky.http.connection import Connection, Host

log = logging.getLogger(__name__)

QUIET_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 0.5


class Workers:
    """The threads, and the connections that wait for one (cheroot's thread pool interface).

    Whoever takes a connection out of `_waiting` owns it until it is put back or closed; taking is
    one `dict.pop`, so no lock is needed.
    """

    def __init__(self, server: Host, threads: int) -> None:
        self.min = threads
        self.heartbeat = time.monotonic()
        self._server = server
        self._threads: list[threading.Thread] = []
        self._waiting: dict[int, Connection] = {}
        self._next_sweep = 0.0
        self._stopping = False

    def start(self) -> None:
        """Start the threads."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0)
        self._epoll.register(self._wake, select.EPOLLIN)
        for number in range(self.min):
            thread = threading.Thread(target=self._work, name=f"http-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def alive(self) -> int:
        """How many threads are running."""
        return sum(thread.is_alive() for thread in self._threads)

    def add(self, conn: Connection) -> None:
        """Take in a new connection."""
        # Not yet armed: nobody can be told of it before it waits.
        self._epoll.register(conn.fd, select.EPOLLONESHOT)
        self.put(conn)

    def put(self, conn: Connection) -> None:
        """Let a connection wait for its `events`."""
        self._waiting[conn.fd] = conn
        self._epoll.modify(conn.fd, conn.events)

    def get(self) -> Connection | None:
        """Wait for a ready connection and take it; None to stop."""
        while not self._stopping:
            ready = self._epoll.poll(SWEEP_SECONDS, 1)
            self.heartbeat = now = time.monotonic()
            if now >= self._next_sweep:
                self._next_sweep = now + SWEEP_SECONDS
                self._sweep(now)
            for fd, _ in ready:
                conn = self._waiting.pop(fd, None)
                if conn is not None:
                    return conn
        return None

    def stop(self, timeout: float = 5) -> None:
        """Finish the requests that have begun, close the rest, and end, all within `timeout`.

        An idle connection is closed once it has been quiet for a second. One in use is closed by
        its next answer, which says so: its client loses nothing.
        """
        end = time.monotonic() + timeout
        while self._server.connections and (now := time.monotonic()) < end:
            self._take_each(lambda conn: conn.quiet_for(QUIET_SECONDS), Connection.expire)
            self._sweep(now)
            time.sleep(0.02)
        if self._server.busy:
            log.warning("stopped with %d requests unanswered", len(self._server.busy))
        self._stopping = True
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join(max(0.1, end - time.monotonic()))
        self._take_each(lambda conn: True, lambda conn: False)
        if not self.alive:
            self._epoll.close()
            os.close(self._wake)

    def _work(self) -> None:
        while (conn := self.get()) is not None:
            self._run(conn, Connection.communicate)

    def _run(self, conn: Connection, step: Callable[[Connection], bool]) -> None:
        """Take one step of a connection we own, then put it back or close it."""
        try:
            if step(conn):
                self.put(conn)
                return
        except Exception:
            log.exception("a connection failed")
        try:
            conn.close()
        except Exception:
            log.exception("a connection failed to close")

    def _sweep(self, now: float) -> None:
        self._take_each(lambda conn: conn.deadline <= now, Connection.expire)

    def _take_each(
        self, which: Callable[[Connection], bool], step: Callable[[Connection], bool]
    ) -> None:
        for fd, seen in self._waiting.copy().items():
            if which(seen):
                conn = self._waiting.pop(fd, None)
                if conn is not None:
                    self._run(conn, step if which(conn) else lambda conn: True)
