"""A purge listener that remembers what it was told, and can be told to misbehave."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from typing import Self


class FakeCache:
    """Answers PURGE and GET /node as poky.vcl does, on every connection in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.told: list[str] = []
        self.connections = 0
        self.delay = 0.0
        self.is_silent = False
        self.piece = 0  # send answers in pieces of so many bytes
        self.answer = "HTTP/1.1 200 Purged\r\nPoky-Node: {name}\r\nContent-Length: 0\r\n\r\n"
        self.close_after = 0  # answers per connection
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """From now on connections are refused."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_connections()

    def drop_connections(self) -> None:
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer, served = b"", 0
        with suppress(OSError), connection:
            while data := connection.recv(65536):
                buffer += data
                *requests, buffer = buffer.split(b"\r\n\r\n")
                answers = []
                for request in requests:
                    method, path, _ = request.split(b"\r\n")[0].decode().split(" ")
                    if method == "PURGE":
                        self.told.append(path)
                    if not self.is_silent:
                        answers.append(self.answer.format(name=self.name).encode())
                        served += 1
                    if served == self.close_after != 0:
                        break
                time.sleep(self.delay)
                self._send(connection, b"".join(answers))
                if served == self.close_after != 0:
                    return

    def _send(self, connection: socket.socket, data: bytes) -> None:
        size = self.piece or max(len(data), 1)
        for start in range(0, len(data), size):
            connection.sendall(data[start : start + size])
            if self.piece:
                time.sleep(0.002)
