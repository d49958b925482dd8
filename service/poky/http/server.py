"""The server: a WSGI server on cheroot's listening socket, with our connections and workers."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from typing import Any

from cheroot import wsgi

from poky.http.head import Environ
from poky.http.host import Check, OnResponse
from poky.http.memory import Budget, overload
from poky.http.stream import StreamingConnection
from poky.http.workers import Workers

log = logging.getLogger(__name__)


class CannotListen(Exception):
    """An address that cannot be listened on; its cause is the system's error."""


class _ErrorLog:
    """The `wsgi.errors` of PEP 3333, written to the log."""

    def write(self, text: str) -> int:
        if text.strip():
            log.error("%s", text.rstrip())
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        pass


class Server(wsgi.Server):
    """A WSGI server: `prepare()` binds, `serve()` runs until `stop()` is called elsewhere.

    `bind_addr` is (host, port) or the path of a Unix socket, as in cheroot; after `prepare()` it
    is the real one. Times are in seconds.

    `check(environ)` is called before a body that has not come yet is read, and may return an answer
    that refuses the request, or a `Later`; it must not change anything.

    `budget` counts the memory of requests and answers: a request that has no room gets 503. An
    application that is about to use much asks `environ["poky.memory"]`, the request's reservation.
    `on_response(environ, status, body_bytes_sent, seconds)` is called after every answer, including
    refusals of this package, where REQUEST_METHOD and REQUEST_URI are "-" unless the head could be
    read. Status 499 means that the client closed first. It must be quick and must not raise.
    """

    ConnectionClass = StreamingConnection

    def __init__(
        self,
        bind_addr: tuple[str, int] | str,
        wsgi_app: Callable[..., Any],
        *,
        max_body_bytes: int,
        threads: int = 4,
        max_header_bytes: int = 16384,
        max_headers: int = 100,
        max_connections: int = 4096,
        timeout: float = 10,
        shutdown_timeout: float = 30,
        backlog: int = 512,
        server_name: str = "poky",
        check: Check | None = None,
        budget: Budget | None = None,
        on_response: OnResponse | None = None,
        after_turn: Callable[[bool], None] | None = None,
        late: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            bind_addr,
            wsgi_app,
            server_name=server_name,
            request_queue_size=backlog,
            timeout=timeout,  # type: ignore[arg-type]  # the stubs say int, the code takes both
            shutdown_timeout=shutdown_timeout,  # type: ignore[arg-type]
        )
        self.requests: Workers = Workers(self, threads, after_turn, late)
        self.max_body_bytes = max_body_bytes
        self.max_header_bytes = max_header_bytes
        self.max_headers = max_headers
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.max_connections = min(max_connections, max(open_files - 128, 16))
        self.check = check
        self.budget = budget or Budget()
        self.on_response = on_response
        self.connections: set[StreamingConnection] = set()
        self.busy: set[StreamingConnection] = set()  # head read, answer not yet sent
        self.closing = False
        self.refused = 0  #: connections above max_connections
        self.environ: Environ = {}
        self._stamp = (0, "")
        self._bind_error: OSError | None = None

    def prepare(self) -> None:
        """Bind, listen and start the threads. Raises CannotListen."""
        try:
            super().prepare()
        except (OSError, UnicodeError) as error:  # UnicodeError: no host name has such a form
            raise CannotListen from self._bind_error or error
        unix = isinstance(self.bind_addr, str)
        self.environ = {
            "REQUEST_METHOD": "-",
            "REQUEST_URI": "-",
            "SCRIPT_NAME": "",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost" if unix else self.bind_addr[0],
            "SERVER_PORT": "" if unix else str(self.bind_addr[1]),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_SOFTWARE": self.server_name,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": _ErrorLog(),
            "wsgi.input_terminated": True,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }

    def bind(self, family: int, type: int, proto: int = 0) -> socket.socket:
        """As cheroot, whose own error says in a sentence what no program can read."""
        try:
            bound: socket.socket = super().bind(family, type, proto)
        except OSError as error:
            self._bind_error = error
            raise
        return bound

    def bind_unix_socket(self, bind_addr: str) -> socket.socket:
        """As cheroot, but for this user, its group and root alone.

        Nothing is removed for it but a socket that no program listens on.
        """
        mask = os.umask(0o117)
        try:
            _require_free(bind_addr)
            bound: socket.socket = super().bind_unix_socket(bind_addr)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._bind_error = error
            raise
        finally:
            os.umask(mask)
        return bound

    def process_conn(self, conn: StreamingConnection) -> None:
        """Register an accepted connection; 503 above `max_connections`."""
        excess = len(self.connections) - self.max_connections
        keep = excess <= 64  # beyond that, not even an answer
        self.refused += excess > 0
        if keep and excess > 0:
            keep = conn.refuse(overload().answer)
        if keep:
            self.requests.add(conn)
        else:
            conn.close()

    def close_connections(self) -> None:
        """Send `Connection: close` with every answer from now on; still accept connections."""
        self.closing = True

    def stop(self) -> None:
        """Stop accepting, finish running requests, return within `shutdown_timeout`.

        Call it from another thread than `serve()`.
        """
        self.closing = True
        if self.ready:
            self._connections.stop()  # type: ignore[attr-defined]  # cheroot's accepting
            self._accept_rest()
        super().stop()

    def _accept_rest(self) -> None:
        """Accept the backlog: closing the listening socket would reset those connections."""
        listener, self.socket = self.socket, None
        listener.settimeout(0)
        with suppress(BlockingIOError), listener:
            for _ in range(self.request_queue_size):
                client, address = listener.accept()
                conn = StreamingConnection(self, client)
                if isinstance(address, tuple):
                    conn.remote_addr, conn.remote_port = address[:2]
                self.process_conn(conn)

    @property
    def in_flight(self) -> int:
        """Requests whose head has been read and whose answer has not been sent."""
        return len(self.busy)

    @property
    def heartbeat(self) -> float:
        """When a worker last looked for work, by `time.monotonic()`."""
        return self.requests.heartbeat

    def parked_bytes(self) -> int:
        """Bytes of answers that slow readers have not accepted yet."""
        return sum(conn.unsent for conn in self.busy.copy())

    def stamp(self) -> str:
        """Date and Server, formatted once a second."""
        now = int(time.time())
        second, text = self._stamp
        if second != now:
            text = f"Date: {formatdate(now, usegmt=True)}\r\nServer: {self.server_name}\r\n"
            self._stamp = (now, text)
        return text

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Route cheroot's messages to the log."""
        log.log(level, "%s", msg, exc_info=traceback)


def _require_free(path: str) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with socket.socket(socket.AF_UNIX) as other, suppress(ConnectionRefusedError):
            other.connect(path)
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
