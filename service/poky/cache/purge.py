"""The wire to the caches: PURGE, told to all of them at once, and believed only when confirmed.

A cache confirms by answering 200 with its own name (``Poky-Node``): an answer under another name,
such as that of a cache that took over the address, is no confirmation. Knows sockets and HTTP's
answers; knows nothing of leases or PostgreSQL, and imports nothing of ours.
"""

import os
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

_RECEIVE_BYTES = 65536
_IDLE_CONNECTIONS = 64
_LARGE_BATCH = 1000  # keys: for each further batch the exchange may take the timeout once more

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*\r\n", re.IGNORECASE)
_NODE = re.compile(rb"\r\npoky-node:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)


class NotConfirmed(Exception):
    """A cache did not confirm; the message says why, to follow "the cache NAME"."""


class _Silent(NotConfirmed):
    pass


def _unobserved(node: str, outcome: str, seconds: float) -> None:
    pass


class PurgeClient:
    """Kept-alive connections to purge listeners. Any thread may use it at any time.

    ``observe(node, outcome, seconds)`` is called after each exchange of a purge; outcomes:
    confirmed, refused (another answer), silent, unreachable.
    """

    def __init__(
        self, timeout: float, observe: Callable[[str, str, float], None] = _unobserved
    ) -> None:
        self._timeout = timeout
        self._observe = observe
        self._idle: dict[str, deque[socket.socket]] = {}

    def purge(self, nodes: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
        """Purge the paths at all nodes (name: URL) at once; those that did not confirm, and why.

        Takes at most the timeout, or as often as long as there are thousands of paths.
        """
        requests = "".join(f"PURGE {path} HTTP/1.1\r\nHost: poky\r\n\r\n" for path in paths)
        return self._tell(nodes, requests.encode(), len(paths), self._observe)

    def probe(self, nodes: Mapping[str, str]) -> dict[str, str]:
        """Ask all nodes (name: URL) for their names at once; those that did not tell, and why."""
        return self._tell(nodes, b"GET /node HTTP/1.1\r\nHost: poky\r\n\r\n", 1)

    def name_of(self, url: str) -> str:
        """The name of the cache that listens there; raises NotConfirmed."""
        exchange = _Exchange("", url, b"GET /node HTTP/1.1\r\nHost: poky\r\n\r\n", 1, deque())
        failures = self._run([exchange], 1)
        if failures or not exchange.answered_as:
            raise NotConfirmed(failures.get("") or "did not tell its name")
        return exchange.answered_as

    def close(self) -> None:
        """Close all idle connections."""
        for idle in self._idle.values():
            while idle:
                idle.pop().close()

    def _tell(
        self,
        nodes: Mapping[str, str],
        requests: bytes,
        count: int,
        observe: Callable[[str, str, float], None] = _unobserved,
    ) -> dict[str, str]:
        if not nodes or not count:
            return {}
        return self._run(
            [
                _Exchange(name, url, requests, count, self._idle.setdefault(url, deque()))
                for name, url in nodes.items()
            ],
            count,
            observe,
        )

    def _run(
        self,
        exchanges: Sequence["_Exchange"],
        count: int,
        observe: Callable[[str, str, float], None] = _unobserved,
    ) -> dict[str, str]:
        failures: dict[str, str] = {}
        began = time.monotonic()
        end = began + self._timeout * (1 + (count - 1) // _LARGE_BATCH)
        waiting = ready = set(exchanges)
        while waiting:
            for exchange in tuple(waiting):
                try:
                    if exchange in ready:
                        exchange.proceed(time.monotonic() + self._timeout)
                    elif time.monotonic() >= min(exchange.deadline, end):
                        raise _Silent(f"did not answer within {self._timeout:g} s")
                except (NotConfirmed, OSError) as error:
                    failures[exchange.name] = _reason(error)
                    exchange.close()
                    exchange.outcome = _outcome(error)
                if exchange.socket is None:
                    waiting = waiting - {exchange}
                    observe(exchange.name, exchange.outcome, time.monotonic() - began)
            ready = _wait(waiting, min([end, *(exchange.deadline for exchange in waiting)]))
        return failures


def _wait(exchanges: Iterable["_Exchange"], end: float) -> set["_Exchange"]:
    """Those of the exchanges that can go on, as soon as there are any, or none at the end."""
    poll = select.poll()
    by_descriptor = {}
    for exchange in exchanges:
        assert exchange.socket is not None
        by_descriptor[exchange.socket.fileno()] = exchange
        poll.register(exchange.socket, exchange.events)
    if not by_descriptor:
        return set()
    events = poll.poll(max(end - time.monotonic(), 0) * 1000)
    return {by_descriptor[descriptor] for descriptor, _ in events}


class _Exchange:
    """One node's share: requests that are sent in one go, and their answers in the same order."""

    def __init__(
        self, name: str, url: str, requests: bytes, count: int, idle: deque[socket.socket]
    ) -> None:
        self.name = name
        self.answered_as = ""
        self.outcome = "confirmed"
        self.socket: socket.socket | None = None  # None before the start and after the end
        self.deadline = 0.0
        self._url = url
        self._requests = requests
        self._count = count
        self._idle = idle
        self._is_fresh = False

    @property
    def events(self) -> int:
        """What to poll for."""
        return select.POLLIN | select.POLLOUT if self._unsent else select.POLLIN

    def proceed(self, deadline: float) -> None:
        """Send and receive what can be without waiting; the end is when ``socket`` is None.

        Takes the later deadline when something moved. A kept connection that the cache has
        closed meanwhile is replaced: telling a cache twice does no harm.
        """
        if self.socket is None:
            self._open()
            self.deadline = deadline
        try:
            moved = self._send() + self._receive()
        except OSError:
            if self._is_fresh:
                raise
            self.close()
            self.proceed(deadline)
            return
        if moved:
            self.deadline = deadline
        if not self._due:
            self._keep()

    def close(self) -> None:
        """Give the connection up."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def _open(self) -> None:
        self._unsent = memoryview(self._requests)
        self._due = self._count
        self._buffer = b""
        self._is_fresh = False
        try:
            self.socket = self._idle.pop()
        except IndexError:
            self._is_fresh = True
            self._connect()

    def _connect(self) -> None:
        parts = urlsplit(self._url)
        family, kind, protocol, _, address = socket.getaddrinfo(
            parts.hostname, parts.port, type=socket.SOCK_STREAM
        )[0]
        self.socket = socket.socket(family, kind, protocol)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            self.socket.connect(address)

    def _send(self) -> int:
        assert self.socket is not None
        if not self._unsent:
            return 0
        try:
            sent = self.socket.send(self._unsent)
        except BlockingIOError:  # also: the connection is not there yet
            return 0
        self._unsent = self._unsent[sent:]
        return sent

    def _receive(self) -> int:
        assert self.socket is not None
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            raise ConnectionResetError("closed the connection")
        buffer = self._buffer + data
        start = 0
        while (end := buffer.find(b"\r\n\r\n", start)) >= 0:
            body = self._check(buffer[start : end + 2])
            if len(buffer) < end + 4 + body:
                break
            start = end + 4 + body
            self._due -= 1
            if self._due < 0:
                raise NotConfirmed("answered more than it was asked")
        self._buffer = buffer[start:]
        return len(data)

    def _check(self, head: bytes) -> int:
        """The length of the body that follows; raises NotConfirmed unless it is a confirmation."""
        status, _, _ = head.partition(b"\r\n")
        if not status.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 ")):
            raise NotConfirmed(f"answered {status[:60].decode('latin-1')}")
        node = _NODE.search(head)
        self.answered_as = node[1].decode("latin-1") if node else ""
        if self.name and self.answered_as != self.name:
            raise NotConfirmed(f"calls itself {self.answered_as or 'nothing'}")
        length = _LENGTH.search(head)
        return int(length[1]) if length else 0

    def _keep(self) -> None:
        assert self.socket is not None
        if self._buffer or self._unsent or len(self._idle) >= _IDLE_CONNECTIONS:
            self.close()
        else:
            self._idle.append(self.socket)
            self.socket = None


def _outcome(error: Exception) -> str:
    if isinstance(error, _Silent):
        return "silent"
    return "refused" if isinstance(error, NotConfirmed) else "unreachable"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return f"cannot be reached: {os.strerror(error.errno)}"
    return str(error)
