"""Answers without an end: their pieces are sent as they come, by whichever thread brings them.

A stream takes no thread and no memory while nothing is sent. Its client is gone when it closes its
half of the connection, or takes nothing for as long as the server waits.
"""

from __future__ import annotations

import math
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from poky.http.answers import Answer
from poky.http.compose import compose_stream
from poky.http.connection import CLOSED, SLOWEST_TRANSFER, WAIT_GONE, Connection

STREAM: Final = 7  # a state of a connection, besides those of `connection`


class Stream:
    """What is the body of an `Answer` that goes on.

    `drained()` is called when all that was written is sent, `closed()` once when nothing more can
    be, and `stop()` when the server stops: it should `end()`. They must not wait for anything.
    """

    __slots__ = ("_connection", "_is_sending", "_pieces", "closed", "drained", "is_over", "stop")

    def __init__(
        self,
        drained: Callable[[], None],
        closed: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        self.drained = drained
        self.closed = closed
        self.stop = stop
        self.is_over = False  # no piece will follow
        self._pieces: deque[bytes] = deque()
        self._is_sending = False
        self._connection: StreamingConnection | None = None

    @property
    def unsent(self) -> bool:
        """Whether something that was written has not been sent yet."""
        return self._is_sending or bool(self._pieces)

    def write(self, piece: bytes) -> None:
        """Send some bytes, not none."""
        self._pieces.append(piece)
        self._advance()

    def end(self) -> None:
        """Let nothing follow: the client learns that this was all."""
        self.is_over = True
        self._advance()

    def _advance(self) -> None:
        if self._connection is not None:
            self._connection.server.requests.resume(self._connection)

    # -- called by the connection

    def attach(self, connection: StreamingConnection) -> None:
        """Send by this connection from now on."""
        self._connection = connection

    def take(self) -> bytes:
        """All pieces that wait, as one."""
        self._is_sending = True
        pieces = []
        while self._pieces:
            pieces.append(self._pieces.popleft())
        return b"".join(pieces)

    def settle(self) -> None:
        """Note that all that was taken is sent."""
        self._is_sending = False


class StreamingConnection(Connection):
    """A connection whose answers may be streams."""

    stream: Stream | None = None
    _is_chunked = False

    def send_answer(self, answer: Answer) -> bool:
        """Send the answer that came later, or begin to."""
        if type(answer.body) is not Stream:
            return super().send_answer(answer)
        assert self._environ is not None
        self.later = None
        self.state = STREAM
        self._keep = False
        self._status = answer.status
        self.stream = answer.body
        self._is_chunked = self._environ["SERVER_PROTOCOL"] != "HTTP/1.0"
        head = compose_stream(
            answer.status, answer.headers, self.server.stamp(), is_chunked=self._is_chunked
        )
        self._put_out(head)
        self.stream.attach(self)
        return self.send_pieces()

    def send_pieces(self) -> bool:
        """Send what was written. True: wait for `events` again; False: close."""
        try:
            self._send_pieces()
        except OSError:  # the client has gone
            self.state = CLOSED
        return self.state != CLOSED

    @property
    def has_pieces(self) -> bool:
        """Whether `send_pieces` has something to do that no event tells of."""
        stream = self.stream
        is_idle = stream is not None and self.state == STREAM and not self._output
        return is_idle and (stream.unsent or stream.is_over)  # type: ignore[union-attr]

    def stop_waiting(self) -> None:
        """Have the answer ended soon: the server stops."""
        if self.stream is None:
            super().stop_waiting()
        else:
            self.stream.stop()

    def close(self) -> None:
        """Close the socket, and tell the stream."""
        super().close()
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.closed()

    def _proceed(self) -> None:
        if self.state != STREAM:
            super()._proceed()
        elif self._is_gone():
            self.state = CLOSED
        else:
            self._send_pieces()

    def _is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLRDHUP)
        return bool(poll.poll(0))

    def _send_pieces(self) -> None:
        stream = self.stream
        if stream is None or self.state != STREAM:
            return
        while True:
            if not self._output and not self._take_pieces(stream):
                return
            [rest] = self._output
            try:
                sent = self.socket.send(rest)
            except BlockingIOError:
                self._wait_for_room(len(rest))
                return
            self._sent += sent
            self.deadline = math.inf  # the time is for a client that takes nothing
            self._output = [rest[sent:]] if sent < len(rest) else []

    def _take_pieces(self, stream: Stream) -> bool:
        """Take the next pieces to be sent, if there are any; else wait, or finish."""
        is_over = stream.is_over
        body = stream.take()
        if self._is_chunked:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if is_over:
                body += b"0\r\n\r\n"
                self._is_chunked = False
        if body:
            self._put_out(body)
            return True
        if is_over:
            self._sent_all()
            return False
        self._memory.lower_to(0)
        self.events = WAIT_GONE
        self.deadline = math.inf
        stream.settle()
        if not stream.unsent:
            stream.drained()
        return False

    def _put_out(self, data: bytes) -> None:
        self._output = [memoryview(data)]
        self._limit = time.monotonic() + self.server.timeout + len(data) / SLOWEST_TRANSFER

    def _wait_for_room(self, size: int) -> None:
        self._memory.lower_to(size, exactly=True)
        self.events = WAIT_GONE | select.EPOLLOUT
        now = time.monotonic()
        if now >= self._limit:
            raise TimeoutError
        if self.deadline == math.inf:
            self.deadline = min(now + self.server.timeout, self._limit)
