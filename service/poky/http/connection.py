"""HTTP/1.1 between a non-blocking socket and a WSGI application.

cheroot binds, listens and accepts, then calls its extension points: `ConnectionClass` (here) reads
and answers requests, `requests` (`workers`) is the pool of threads.

All workers share one epoll set. The next free worker takes a ready connection, does what needs no
waiting, and puts it back. A slow client, in either direction, therefore costs memory but no thread.

The application is called with the complete request, body included, and returns the complete answer:
a list of bytes, or an iterable that is joined before the first byte is sent. A single memoryview is
sent without a copy.
"""

from __future__ import annotations

import io
import logging
import math
import re
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from poky.http.answers import Answer, Refused, defect, refuse, too_slow
from poky.http.compose import Body, compose
from poky.http.head import REQUEST_LINE_BYTES, Environ, Headers, parse_head, path_of
from poky.http.host import Host
from poky.http.later import Later, Reply
from poky.http.memory import SMALL, Reservation, overload

log = logging.getLogger(__name__)

RECEIVE_BYTES: Final = 16384
REQUESTS_PER_TURN: Final = 8  # pipelined requests answered before others get their turn
SLOWEST_TRANSFER: Final = 262144  # bytes per second, below which a body or an answer is given up
JOINED_BYTES: Final = 16384  # a larger body is not copied behind its head, but sent as it is
PARTIAL_BYTES: Final = 2048  # an incomplete head above this is counted
HEAD_FACTOR: Final = 4  # what a head takes as an environ, in multiples of its length
LINGER_SECONDS: Final = 2.0
CLIENT_GONE: Final = 499  # nginx's number for a request whose client did not wait for the answer

WAIT_INPUT: Final = select.EPOLLIN | select.EPOLLONESHOT
WAIT_OUTPUT: Final = select.EPOLLOUT | select.EPOLLONESHOT
WAIT_GONE: Final = select.EPOLLRDHUP | select.EPOLLONESHOT

# What a connection waits for; LATER: for its answer. AGAIN: its request is to be tried again.
READ_HEAD, READ_BODY, SEND, LINGER, CLOSED, LATER, AGAIN = range(7)

_BARE_LF: Final = re.compile(rb"(?<!\r)\n")


class Connection:
    """One client's socket. Only the thread that took it out of `Workers` may touch it."""

    def __init__(self, server: Host, sock: socket.socket, makefile: object = None) -> None:
        sock.setblocking(False)
        self.server, self.socket, self.fd = server, sock, sock.fileno()
        self.remote_addr: str | None = None  # cheroot sets these three after accepting
        self.remote_port: int | None = None
        self.ssl_env: dict[str, str] = {}
        self.state = READ_HEAD
        self.events = WAIT_INPUT
        self.deadline = time.monotonic() + server.timeout
        self._limit = 0.0  # the latest end of the current transfer, however steady
        self._buffer = b""
        self._partial = False  # part of a head is in the buffer
        self._environ: Environ | None = None  # of the current request
        self._body: io.BytesIO | None = None
        self._received = 0
        self._memory = Reservation(server.budget)
        self._keep = False
        self._status: str | None = None
        self._headers: Headers = []
        self._written: list[bytes] = []
        self._output: list[memoryview] = []
        self._sent = 0
        self._started = 0.0
        self.alone = False  # no other client has been served lately
        self.later: Later | None = None  # completes the answer to the request at hand, or
        self._again: Callable[[], None] = lambda: None  # has the request tried again
        self._is_unread = False  # it decides before the body is read
        server.connections.add(self)

    # -- called by workers

    def communicate(self) -> bool:
        """Read, answer and send until the socket would block. True: wait again; False: close."""
        try:
            self._proceed()
        except Refused as refused:
            return self.refuse(refused.answer)
        except OSError:  # the client has gone; errors of the application are caught in _answer
            self.state = CLOSED
        return self.state != CLOSED

    def wait_for_answer(self) -> tuple[Later, Reply]:
        """What completes the answer, and how. The connection belongs to `Later` from then on."""
        assert self.later is not None
        if not self.later.watched:
            return self.later, self._reply
        self.events = WAIT_GONE
        self.deadline = math.inf
        return self.later, self._reply_watched

    def _reply(self, answer: Answer | None) -> None:
        if answer is None:
            self.state = AGAIN
            self.events = WAIT_OUTPUT  # true at once
            self.server.requests.put(self)
        else:
            self.server.requests.complete(self, answer)

    def _reply_watched(self, answer: Answer | None) -> None:
        assert answer is not None
        self.server.requests.complete_watched(self, answer)

    def send_answer(self, answer: Answer) -> bool:
        """Send the answer that came later. True: wait for `events` again; False: close."""
        self.later = None
        self.state = READ_HEAD
        self.events = WAIT_INPUT
        if self._is_unread:
            return self.refuse(answer)
        try:
            try:
                self._status = answer.status
                head, body = self._compose(*answer)
                self._reserve(body)
            except Refused:
                raise
            except Exception:
                log.exception("an answer could not be composed")
                raise defect() from None
            self._send(head, body)
        except Refused as refused:
            return self.refuse(refused.answer)
        except OSError:
            self.state = CLOSED
        if self.state == READ_HEAD and self._buffer:
            self.events = WAIT_OUTPUT  # the next request is here already
        return self.state != CLOSED

    def fail(self, error: Exception) -> bool:
        """Answer in place of a `Later` that could not begin."""
        if isinstance(error, Refused):
            return self.send_answer(error.answer)
        log.error("an answer that was to come later failed", exc_info=error)
        self.later = None
        self.state = READ_HEAD
        return self.refuse(defect().answer)

    def stop_waiting(self) -> None:
        """Have an answer that is waited for completed soon: the server stops."""
        later = self.later
        if later is not None:
            later.stop()

    def expire(self) -> bool:
        """Time out: `deadline` has passed. True: wait again; False: close."""
        if self.state != LINGER and self._ready():
            return True  # data has arrived: the workers are late, not the client
        if self.state == READ_BODY or self._partial:
            return self.refuse(too_slow().answer)
        return False

    def refuse(self, answer: Answer) -> bool:
        """Answer in place of the application. True: wait for the client's end; False: close."""
        try:
            self._refuse(answer)
        except OSError:
            self.state = CLOSED
        return self.state != CLOSED

    def close(self) -> None:
        """Close the socket; report a request that got no answer as status 499."""
        self.state = CLOSED
        self.server.connections.discard(self)
        self._output = []
        self.socket.close()
        self._settle()
        self._memory.lower_to(0)

    def quiet_for(self, seconds: float) -> bool:
        """Whether the connection has been idle for `seconds` since its last answer."""
        idle = self.state == READ_HEAD and not self._buffer
        return idle and self.deadline - self.server.timeout <= time.monotonic() - seconds

    def _ready(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, self.events & (select.POLLIN | select.POLLOUT))
        return bool(poll.poll(0))

    # -- reading

    def _proceed(self) -> None:
        """Continue the current transfer, then serve the requests that are in the buffer."""
        if self.state == LATER:  # the client has gone
            assert self.later is not None
            self.state = CLOSED
            self.later.cancel()
        elif self.state == READ_HEAD:
            if self.events == WAIT_INPUT:
                self._receive_head()
        elif self.state == AGAIN:
            self.later, self._is_unread = None, False
            self.state, self.events = READ_HEAD, WAIT_INPUT
            self._again()
        elif self.state == READ_BODY:
            self._receive_body()
        elif self.state == SEND:
            self._send_more()
        else:
            self._discard()
        if self.state == READ_HEAD:
            self.events = WAIT_INPUT
            for _ in range(REQUESTS_PER_TURN):
                if not (self._buffer and self._take_request() and self.state == READ_HEAD):
                    return
            if self._buffer:
                self.events = WAIT_OUTPUT  # true at once: requeue behind the other ready ones

    def _receive_head(self) -> None:
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        if data:
            self._buffer = self._buffer + data if self._buffer else data
        elif self._buffer:
            raise refuse(
                400, "request_malformed", "Send the whole head of the request before closing."
            )
        else:
            self.state = CLOSED

    def _take_request(self) -> bool:
        """Start the first request in the buffer; False if its head is incomplete."""
        buffer = self._buffer
        if buffer[:2] == b"\r\n":  # RFC 9112, 2.2: one empty line is no request
            buffer = self._buffer = buffer[2:]
        server = self.server
        end = buffer.find(b"\r\n\r\n", 0, server.max_header_bytes + 4)
        if end < 0:
            self._await_head(buffer)
            return False
        self._partial = False
        self._started = time.monotonic()
        environ = self._new_environ()
        length, self._keep, expects = parse_head(buffer[:end], environ, server.max_headers)
        server.busy.add(self)
        self._buffer = buffer[end + 4 :]
        if length:
            self._begin_body(environ, length, expects, end)
        else:
            environ["wsgi.input"] = io.BytesIO()
            self._answer(environ)
        return True

    def _new_environ(self) -> Environ:
        self._environ = environ = self.server.environ.copy()
        environ["REMOTE_ADDR"] = self.remote_addr or ""
        environ["poky.memory"] = self._memory
        environ["poky.alone"] = self.alone
        self._status = None
        self._sent = 0
        return environ

    def _await_head(self, buffer: bytes) -> None:
        """Refuse what cannot become a request; else wait, without extending the deadline."""
        if buffer and (not b"A" <= buffer[:1] <= b"Z" or _BARE_LF.search(buffer)):
            if buffer != b"\r":
                raise refuse(
                    400,
                    "request_malformed",
                    "Send an HTTP/1.1 request, its lines ended with CR LF.",
                )
        elif len(buffer) >= self.server.max_header_bytes:
            if b"\r\n" in buffer:
                raise refuse(
                    431,
                    "head_too_large",
                    f"Send at most {self.server.max_header_bytes} bytes of headers.",
                )
            raise refuse(
                414, "head_too_large", f"Send a request line of at most {REQUEST_LINE_BYTES} bytes."
            )
        if len(buffer) > PARTIAL_BYTES and not self._memory.raise_to(len(buffer)):
            raise overload()
        if buffer and not self._partial:
            self._partial = True
            self.deadline = time.monotonic() + self.server.timeout
        elif buffer and time.monotonic() >= self.deadline:
            raise too_slow()

    def _begin_body(self, environ: Environ, length: int, expects: bool, head: int) -> None:
        server = self.server
        if length > server.max_body_bytes:
            raise refuse(
                413, "body_too_large", f"Send a body of at most {server.max_body_bytes} bytes."
            )
        here = self._buffer[:length]
        if len(here) < length and server.check is not None and (answer := server.check(environ)):
            if not isinstance(answer, Later):
                raise Refused(answer)
            self._is_unread = True
            self._wait(answer, lambda: self._begin_body(environ, length, expects, head))
            return
        self._buffer = self._buffer[length:]
        if len(here) == length:
            environ["wsgi.input"] = io.BytesIO(here)
            self._answer(environ)
            return
        if not self._memory.admit(length, head * HEAD_FACTOR):
            raise overload()
        if expects and not here:
            self.socket.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        # The kernel allocates zeroed pages only as the body arrives in them; read() of the whole
        # buffer makes no copy.
        self._body = io.BytesIO(bytes(length))
        self._body.getbuffer()[: len(here)] = here
        self._received = len(here)
        self._limit = self._started + server.timeout + length / SLOWEST_TRANSFER
        self.deadline = self._started + server.timeout
        self.state = READ_BODY

    def _receive_body(self) -> None:
        assert self._body is not None
        assert self._environ is not None
        with self._body.getbuffer() as view:
            try:
                count = self.socket.recv_into(view[self._received :])
            except BlockingIOError:
                return
            self._received += count
            missing = len(view) - self._received
        if not count:
            raise refuse(
                400,
                "body_incomplete",
                f"Send the {missing} bytes which Content-Length announces as well.",
            )
        if missing:
            now = time.monotonic()
            if now >= self._limit:  # a trickling client would pass every sweep
                raise too_slow()
            self.deadline = min(now + self.server.timeout, self._limit)
            return
        self._environ["wsgi.input"], self._body = self._body, None
        self.state = READ_HEAD
        if self._received > SMALL and not self._memory.answer(self._received):
            raise overload()
        self._answer(self._environ)

    def _discard(self) -> None:
        """Discard input: closing a socket with unread data resets it and loses the answer."""
        if not self.socket.recv(RECEIVE_BYTES):
            self.state = CLOSED

    # -- answering

    def _answer(self, environ: Environ) -> None:
        """Call the application and send its answer."""
        try:
            result = self.server.wsgi_app(environ, self._start_response)
            if type(result) is Later:
                self._wait(result, lambda: self._answer(environ))
                return
            try:
                body = result[0] if type(result) is list and len(result) == 1 else b"".join(result)
            finally:
                if hasattr(result, "close"):
                    result.close()
            if self._written:
                body = b"".join([*self._written, body])
                self._written = []
            if type(body) is memoryview:
                body = body.cast("B")  # so that its length is that of what is sent
            if self._status is None or type(body) not in (bytes, memoryview):
                raise TypeError("the application must call start_response and return bytes")
            head, body = self._compose(self._status, self._headers, body)
            environ.pop("wsgi.input", None)  # neither the body is needed now
            self._reserve(body)
        except Refused:
            raise
        except BaseException:  # also SystemExit: a request must not end a worker
            log.exception("%s %s failed", environ["REQUEST_METHOD"], path_of(environ))
            raise defect() from None
        self._send(head, body)

    def _wait(self, later: Later, again: Callable[[], None]) -> None:
        self.later = later
        self.state = LATER
        self._again = again

    def _reserve(self, body: Body) -> None:
        """Refuse a read whose answer has no room. What a write has changed is always told."""
        assert self._environ is not None
        if len(body) > JOINED_BYTES and self._environ["REQUEST_METHOD"] == "GET":
            self._memory.need(len(body))

    def _start_response(
        self, status: str, headers: Headers, exc_info: object = None
    ) -> Callable[[bytes], None]:
        if self._status is not None and exc_info is None:
            raise AssertionError("start_response was called twice without exc_info")
        self._status = status
        self._headers = headers
        return self._written.append

    def _refuse(self, answer: Answer) -> None:
        if self._environ is None:
            self._started = time.monotonic()
            self._new_environ()
        self._keep = False
        self._written = []
        self._status = answer.status
        self._buffer = self._buffer or b"?"  # more input may follow: linger before closing
        self._send(*self._compose(*answer))

    def _compose(self, status: str, headers: Headers, body: Body) -> tuple[bytes, Body]:
        assert self._environ is not None
        keep = self._keep and not self.server.closing
        stamp = self.server.stamp()
        head, body, self._keep = compose(self._environ, status, headers, body, stamp, keep)
        return head, body

    def _send(self, head: bytes, body: Body) -> None:
        try:
            if len(body) <= JOINED_BYTES:
                sent = self.socket.send(head + body)
            else:
                sent = self.socket.sendmsg((head, body))
        except BlockingIOError:
            sent = 0
        self._sent = max(sent - len(head), 0)
        if sent == len(head) + len(body):
            self._sent_all()
            return
        self._output = [memoryview(head)[sent:], memoryview(body)[max(sent - len(head), 0) :]]
        # An answer that has begun is finished: it counts, whether or not there is room.
        self._memory.lower_to(len(head) * HEAD_FACTOR + len(body), exactly=True)
        self.state = SEND
        self.events = WAIT_OUTPUT
        now = time.monotonic()
        self._limit = now + self.server.timeout + len(body) / SLOWEST_TRANSFER
        self.deadline = now + self.server.timeout

    def _send_more(self) -> None:
        try:
            sent = self.socket.sendmsg(self._output)
        except BlockingIOError:
            return
        head, body = self._output
        self._output = [head[sent:], body[max(sent - len(head), 0) :]]
        self._sent += len(body) - len(self._output[1])
        if self.unsent:
            now = time.monotonic()
            if now >= self._limit:
                raise TimeoutError
            self.deadline = min(now + self.server.timeout, self._limit)
        else:
            self._output = []
            self._sent_all()

    def _sent_all(self) -> None:
        self._settle()
        if self._keep:
            self.state = READ_HEAD
            self.events = WAIT_INPUT
            self.deadline = time.monotonic() + self.server.timeout
        elif self._buffer:
            self.socket.shutdown(socket.SHUT_WR)
            self._buffer = b""
            self._partial = False
            self.state = LINGER
            self.events = WAIT_INPUT
            self.deadline = time.monotonic() + LINGER_SECONDS
        else:
            self.state = CLOSED

    @property
    def unsent(self) -> int:
        """Bytes of the answer that the socket has not accepted yet."""
        return sum(map(len, self._output))

    def _settle(self) -> None:
        """Finish the current request exactly once: release its bytes, report its status."""
        environ, self._environ = self._environ, None
        if environ is None:
            return
        self._body = None
        environ.pop("wsgi.input", None)  # the application may keep the environ
        self.server.busy.discard(self)
        self._memory.lower_to(0)
        if self.server.on_response is not None:
            code = int(self._status[:3]) if self._status else CLIENT_GONE
            seconds = time.monotonic() - self._started
            self.server.on_response(environ, code, self._sent, seconds)
