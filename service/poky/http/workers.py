"""The worker threads and their shared epoll set, behind cheroot's thread pool interface."""

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
    """A pool of threads that serve ready connections.

    `_waiting.pop` transfers ownership of a connection to the calling thread until it is put back or
    closed. It is atomic, so no lock is needed.
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
        # Registered without events: epoll cannot report it before `put` arms it.
        self._epoll.register(conn.fd, select.EPOLLONESHOT)
        self.put(conn)

    def put(self, conn: Connection) -> None:
        """Arm epoll for the connection's `events`."""
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
        """Finish running requests, close all connections, join the threads within `timeout`.

        An idle connection is closed after a second of silence. A busy one closes after its next
        answer, which carries `Connection: close`, so no client loses a request.
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
        """Run one step of an owned connection, then put it back or close it."""
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
