"""The threads that work on connections, and the epoll set in which connections wait for one.

One thread at a time is in *front*: it waits in epoll, takes up to 32 ready connections, lets each
proceed and then calls `after_turn`, which makes in one statement what several of them asked for.
The others wait for its place. If a turn takes longer than 20 ms, another thread goes in front.
That is for speed alone: any number of threads may take turns at once.

Answers that another thread has completed are sent by the thread in front, between two turns: a
thread that sends has to win the interpreter's lock back after each call of the system, which takes
a millisecond each beside a busy thread. Only while the front waits for clients anyway, the
completing thread sends by itself.

cheroot calls this by the interface of its thread pool.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from poky.http.answers import Answer
from poky.http.connection import CLOSED
from poky.http.host import Host
from poky.http.stream import StreamingConnection as Connection

log = logging.getLogger(__name__)

QUIET_SECONDS: Final = 1.0
SWEEP_SECONDS: Final = 0.5
MOST_READY: Final = 32  # connections that one turn takes
LATE_SECONDS: Final = 0.02  # how long a turn may take before another thread goes in front
IDLE_CHECKS: Final = 25  # so many checks without a turn, and the watch sleeps


class Workers:
    """The threads, and the connections that wait for one (cheroot's thread pool interface).

    The thread that takes a connection out of `_waiting` owns it until it is put back; taking is
    one `dict.pop`, so no lock is needed.

    `after_turn(alone)` is called in front when all connections of a turn have proceeded; `alone`:
    there was one, the same as in the turn before (`poky.alone` in the environ of its requests).
    `late()` is called every 20 ms under load.
    """

    def __init__(
        self,
        server: Host,
        threads: int,
        after_turn: Callable[[bool], None] | None = None,
        late: Callable[[], None] | None = None,
    ) -> None:
        self.min = threads
        self.heartbeat = time.monotonic()
        self._server = server
        self._after_turn = after_turn
        self._late = late
        self._threads: list[threading.Thread] = []
        self._waiting: dict[int, Connection] = {}
        self._completed: deque[tuple[Connection, Answer]] = deque()
        self._ready: deque[int] = deque()  # descriptors that a turn has yet to come to
        self._next_sweep = 0.0
        self._stopping = False
        self._place = threading.Lock()  # held by the thread in front
        self._guard = threading.Lock()
        self._front = 0  # that thread's ident
        self._polling: set[int] = set()  # threads that wait for clients
        self._since: dict[int, float] = {}  # by thread: when its turn began; 0: between turns
        self._served_last = -1
        self._active = threading.Event()

    def start(self) -> None:
        """Start the threads."""
        self._epoll = select.epoll()
        self._wake = os.eventfd(0)
        self._epoll.register(self._wake, select.EPOLLIN)
        for number in range(self.min):
            thread = threading.Thread(target=self._work, name=f"http-{number}", daemon=True)
            thread.start()
            self._threads.append(thread)
        threading.Thread(target=self._watch, name="http-watch", daemon=True).start()

    @property
    def alive(self) -> int:
        """How many threads are running."""
        return sum(thread.is_alive() for thread in self._threads)

    def add(self, conn: Connection) -> None:
        """Take in a new connection."""
        # Not yet armed: no thread can be told of it before it waits.
        self._epoll.register(conn.fd, select.EPOLLONESHOT)
        self.put(conn)

    def put(self, conn: Connection) -> None:
        """Let a connection wait for its `events`."""
        self._waiting[conn.fd] = conn
        self._epoll.modify(conn.fd, conn.events)

    def complete(self, conn: Connection, answer: Answer) -> None:
        """Send the answer of a connection that the calling thread owns, or have it sent."""
        if threading.get_ident() == self._front:
            self.run(conn, lambda conn: conn.send_answer(answer))
            return
        self._completed.append((conn, answer))
        if self._polling:
            self._send_completed()

    def complete_watched(self, conn: Connection, answer: Answer) -> None:
        """The same for a connection that is watched meanwhile; nothing if its client is gone."""
        taken = self._waiting.pop(conn.fd, None)
        if taken is conn:
            self.complete(conn, answer)
        elif taken is not None:  # the number of its descriptor has gone to another one
            self.put(taken)

    def resume(self, conn: Connection) -> None:
        """Send what was written to a stream, unless the thread that owns it will."""
        taken = self._waiting.pop(conn.fd, None)
        if taken is conn:
            self.run(conn, Connection.send_pieces)
        elif taken is not None:
            self.put(taken)

    def stop(self, timeout: float = 5) -> None:
        """Finish the requests that have begun, close the rest, and end, all within `timeout`.

        An idle connection is closed once it has been quiet for a second. One in use is closed by
        its next answer, which says so: its client loses nothing.
        """
        end = time.monotonic() + timeout
        stopped: set[Connection] = set()
        while self._server.connections and time.monotonic() < end:
            for conn in self._server.busy - stopped:
                conn.stop_waiting()
                stopped.add(conn)
            self._take_each(lambda conn: conn.quiet_for(QUIET_SECONDS), Connection.expire)
            time.sleep(0.02)
        if self._server.busy:
            log.warning("stopped with %d requests unanswered", len(self._server.busy))
        self._stopping = True
        self._active.set()
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join(max(0.1, end - time.monotonic()))
        self._take_each(lambda conn: True, lambda conn: False)
        if not self.alive:
            self._epoll.close()
            os.close(self._wake)

    def run(self, conn: Connection, step: Callable[[Connection], bool]) -> None:
        """Take one step of a connection we own, then put it back, hand it over or close it."""
        try:
            if step(conn):
                if conn.later is None:
                    self.put(conn)
                    if conn.stream is not None and conn.has_pieces:  # written meanwhile
                        self.resume(conn)
                    return
            else:
                conn.close()
                return
        except Exception:
            log.exception("a connection failed")
            self._close(conn)
            return
        self._begin(conn)

    def _begin(self, conn: Connection) -> None:
        """Have the answer completed later; from here on the connection is no longer ours."""
        later, reply = conn.wait_for_answer()
        if later.watched:
            self.put(conn)
        try:
            later.begin(reply)
        except Exception as error:
            if later.watched and self._waiting.pop(conn.fd, None) is not conn:
                return
            failure = error
            self.run(conn, lambda conn: conn.fail(failure))
        else:
            if later.watched and conn.state == CLOSED:  # before there was anything to cancel
                later.cancel()

    def _close(self, conn: Connection) -> None:
        try:
            conn.close()
        except Exception:
            log.exception("a connection failed to close")

    # -- turns

    def _work(self) -> None:
        me = threading.get_ident()
        while not self._stopping:
            self._place.acquire()
            self._front = me
            while self._front == me and not self._stopping:
                self._turn(me)
            self._leave(me)

    def _leave(self, thread: int) -> None:
        """Have another thread go in front of this one, unless one has."""
        with self._guard:
            if self._front == thread:
                self._front = 0
                self._place.release()

    def _turn(self, me: int) -> None:
        self._polling.add(me)
        rest = self._ready
        wait = 0 if self._completed or rest else SWEEP_SECONDS
        for fd, _ in self._epoll.poll(wait, MOST_READY):
            rest.append(fd)
        self._polling.discard(me)
        self.heartbeat = now = time.monotonic()
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._sweep(now)
        if self._completed:
            self._send_completed()
        if not rest:
            return
        self._since[me] = now
        if not self._active.is_set():
            self._active.set()
        alone = len(rest) == 1 and rest[0] == self._served_last
        count = fd = 0
        # A thread that was late is no longer in front: the one that is takes the rest.
        while rest and count < MOST_READY and self._front == me:
            fd = rest.popleft()
            count += 1
            conn = self._waiting.pop(fd, None)
            if conn is not None:
                conn.alone = alone
                self.run(conn, Connection.communicate)
        self._served_last = fd
        if self._after_turn is not None:
            try:
                self._after_turn(alone)
            except Exception:
                log.exception("what was collected in a turn failed")
        self._since[me] = 0.0

    def _send_completed(self) -> None:
        while True:
            try:
                conn, answer = self._completed.popleft()
            except IndexError:
                return
            self.run(conn, lambda conn, answer=answer: conn.send_answer(answer))  # type: ignore[misc]

    def _watch(self) -> None:
        """Have another thread go in front when a turn takes long: it waits for something."""
        unused = 0
        while not self._stopping:
            self._active.wait()
            time.sleep(LATE_SECONDS)
            front = self._front
            since = self._since.get(front, 0.0)
            unused = 0 if since else unused + 1
            if since and since < time.monotonic() - LATE_SECONDS:
                self._leave(front)
            if self._late is not None:
                self._late()
            if unused > IDLE_CHECKS:
                unused = 0
                self._active.clear()
                if any(self._since.values()):  # a turn that began just now took it for set
                    self._active.set()

    def _sweep(self, now: float) -> None:
        self._take_each(lambda conn: conn.deadline <= now, Connection.expire)

    def _take_each(
        self, which: Callable[[Connection], bool], step: Callable[[Connection], bool]
    ) -> None:
        for fd, seen in self._waiting.copy().items():
            if which(seen):
                conn = self._waiting.pop(fd, None)
                if conn is not None:
                    self.run(conn, step if which(conn) else lambda conn: True)
