"""A way to a PostgreSQL that passes everything on, and may be told to take its time."""

from __future__ import annotations

import os
import re
import select
import socket
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self
from urllib.parse import quote

import psycopg2.extensions


class SlowWay:
    """A Unix socket before the server's own; ``dsn`` leads through it.

    One thread passes on what all connections send, each piece ``seconds`` after it came.
    """

    def __init__(self, dsn: str) -> None:
        parts = psycopg2.extensions.parse_dsn(dsn)
        name = f".s.PGSQL.{parts.get('port', '5432')}"
        self._target = os.path.join(parts["host"], name)
        self._folder = tempfile.TemporaryDirectory(prefix="poky-slow-")
        os.chmod(self._folder.name, 0o755)
        self.dsn = re.sub("host=[^&]*", f"host={quote(self._folder.name, safe='')}", dsn)
        self.seconds = 0.0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.join(self._folder.name, name))
        self._listener.listen(64)
        self._others: dict[socket.socket, socket.socket] = {}
        self._late: deque[tuple[float, socket.socket, bytes]] = deque()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._is_over = True
        self._thread.join(5)
        for each in (self._listener, *self._others):
            each.close()
        self._folder.cleanup()

    @contextmanager
    def slow(self, seconds: float) -> Iterator[None]:
        """Each piece takes so long on its way."""
        self.seconds = seconds
        try:
            yield
        finally:
            self.seconds = 0.0

    def _run(self) -> None:
        while not self._is_over:
            now = time.monotonic()
            while self._late and self._late[0][0] <= now:
                _, to, data = self._late.popleft()
                self._send(to, data)
            wait = min(self._late[0][0] - now, 0.1) if self._late else 0.1
            ready, *_ = select.select([self._listener, *self._others], [], [], max(wait, 0))
            for each in ready:
                if each is self._listener:
                    self._join()
                else:
                    self._pass_on(each)

    def _join(self) -> None:
        client, _ = self._listener.accept()
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            return
        self._others |= {client: server, server: client}

    def _pass_on(self, each: socket.socket) -> None:
        to = self._others.get(each)
        if to is None:
            return
        try:
            data = each.recv(1 << 16)
        except OSError:
            data = b""
        if not data:
            for end in (each, to):
                self._others.pop(end, None)
                end.close()
        elif self.seconds or self._late:
            self._late.append((time.monotonic() + self.seconds, to, data))
        else:
            self._send(to, data)

    def _send(self, to: socket.socket, data: bytes) -> None:
        with suppress(OSError):
            to.sendall(data)
