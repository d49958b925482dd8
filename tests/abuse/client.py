"""A client that sends what it is told, at the pace it is told, and keeps only what it counts."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

PIECE = 1 << 16


@dataclass
class Answer:
    """A final answer; ``body`` is kept up to 64 KiB, ``length`` counts all of it."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    length: int = 0
    whole: bool = True


class Broken(Exception):
    """The connection ended, or nothing came in time, before an answer was there."""


class Connection:
    """One socket."""

    def __init__(self, port: int, timeout: float = 30, window: int = 0) -> None:
        self.socket = socket.socket()
        if window:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        self.socket.settimeout(timeout)
        self.socket.connect(("127.0.0.1", port))
        self.pending = b""

    def send(self, data: bytes | memoryview) -> None:
        self.socket.sendall(data)

    def receive(self, size: int = PIECE) -> bytes:
        """What has come; empty at the end of the connection."""
        try:
            return self.socket.recv(size)
        except TimeoutError:
            raise Broken("nothing came in time") from None
        except OSError as error:
            raise Broken(f"the connection broke: {error}") from None

    def answers(self, head_only: bool = False) -> Iterator[Answer]:
        """Every final answer until the connection ends."""
        while True:
            answer = self.answer(head_only=head_only, at_end=True)
            if answer is None:
                return
            yield answer

    def answer(
        self, *, head_only: bool = False, pause: float = 0, at_end: bool = False
    ) -> Answer | None:
        """The next final answer, read with a pause between pieces."""
        status, headers = 100, {}
        while status < 200:
            while b"\r\n\r\n" not in self.pending:
                data = self.receive()
                if not data:
                    if at_end and not self.pending:
                        return None
                    raise Broken("the connection ended before an answer")
                self.pending += data
            head, _, self.pending = self.pending.partition(b"\r\n\r\n")
            line, *fields = head.decode("latin-1").split("\r\n")
            parts = line.split(" ", 2)
            if len(parts) < 2 or not parts[1].isdigit():
                raise Broken(f"not an answer: {line[:80]!r}")
            status = int(parts[1])
            headers = {
                name.lower(): value.strip()
                for name, _, value in (each.partition(":") for each in fields)
            }
        answer = Answer(status, headers)
        if head_only or status in (204, 304):
            return answer
        if headers.get("transfer-encoding") == "chunked":
            self._read_chunks(answer, pause)
        elif "content-length" in headers:
            self._read(answer, int(headers["content-length"]), pause)
        else:
            self._read(answer, -1, pause)
        return answer

    def _read(self, answer: Answer, length: int, pause: float) -> None:
        """So many bytes of a body, or (-1) all until the end."""
        while length:
            if self.pending:
                data, self.pending = self.pending, b""
            else:
                data = self.receive()
                if pause:
                    time.sleep(pause)
            if not data:
                answer.whole = length < 0
                return
            if 0 <= length < len(data):
                self.pending = data[length:]
                data = data[:length]
            answer.length += len(data)
            if answer.length <= PIECE:
                answer.body += data
            length -= len(data) if length > 0 else 0

    def _read_chunks(self, answer: Answer, pause: float) -> None:
        while True:
            while b"\r\n" not in self.pending:
                data = self.receive()
                if not data:
                    answer.whole = False
                    return
                self.pending += data
            line, _, self.pending = self.pending.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            self._read(answer, size, pause)
            while len(self.pending) < 2:
                data = self.receive()
                if not data:
                    answer.whole = False
                    return
                self.pending += data
            self.pending = self.pending[2:]
            if size == 0:
                return

    def close(self) -> None:
        with suppress(OSError):
            self.socket.close()


def request(
    port: int, method: str, path: str, body: bytes = b"", timeout: float = 30, **headers: str
) -> Answer:
    """One request on a connection of its own."""
    connection = Connection(port, timeout)
    try:
        with suppress(OSError):  # refused before it was all there: the answer says why
            connection.send(head(method, path, len(body), **headers) + body)
        answer = connection.answer(head_only=method == "HEAD")
        assert answer
        return answer
    finally:
        connection.close()


def head(method: str, path: str, length: int | None = None, **headers: str) -> bytes:
    """The head of a request; if_match=… for If-Match."""
    lines = [f"{method} {path} HTTP/1.1", "Host: poky"]
    if length or method in ("PUT", "POST"):
        lines.append(f"Content-Length: {length or 0}")
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode()
