"""Answers without an end: sent as they come, ended by server or client, slow readers given up."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from poky.http import Answer, Later, Stream
from poky.http.answers import text
from poky.http.connection import SEND
from poky.http.stream import STREAM, StreamingConnection
from tests.support.sockets import Client, eventually, get, serving


class Streaming:
    """An application that answers with streams, and counts what they are told."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.drained = 0
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/probe":
            start_response("200 OK", [])
            return [b"now"]
        if environ["PATH_INFO"] == "/within":
            return Later(lambda reply: reply(text("within")))

        def begin(reply: Any) -> None:
            stream = Stream(self._drained, self._closed, self._stop)
            self.streams.append(stream)
            reply(Answer("200 OK", [("Content-Type", "text/plain")], stream))

        return Later(begin, watched=True)

    def _drained(self) -> None:
        self.drained += 1

    def _closed(self) -> None:
        self.closed += 1

    def _stop(self) -> None:
        for stream in self.streams:
            stream.end()


def received(client: Client, until: bytes) -> bytes:
    """All that comes up to some bytes, with the head taken away."""
    while until not in client.pending:
        assert client._receive(), client.pending
    found, client.pending = client.pending.split(until, 1)
    return found


def opened(client: Client, *fields: str, version: str = "1.1") -> bytes:
    client.send(get("/", *fields).replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
    return received(client, b"\r\n\r\n")


def test_pieces_are_sent_as_they_come_by_any_thread() -> None:
    app = Streaming()
    with serving(app, threads=1) as service:
        client = service.client()
        head = opened(client)
        assert b"Transfer-Encoding: chunked" in head
        assert b"Connection: close" in head
        assert b"Content-Length" not in head
        assert service.client().ask(get("/probe")).body == b"now"  # the only thread is free
        for piece in (b"one", b"two"):
            sender = threading.Thread(target=app.streams[0].write, args=(piece,))
            sender.start()
            assert received(client, b"3\r\n%b\r\n" % piece) == b""
            sender.join()
        eventually(lambda: app.drained >= 2)
        app.streams[0].end()
        assert received(client, b"0\r\n\r\n") == b""
        assert client.at_end()
        eventually(lambda: ("GET", "/", 200) in [each[:3] for each in service.log])
        assert app.closed == 1


def test_what_is_written_at_once_by_many_threads_is_all_sent() -> None:
    app = Streaming()
    with serving(app) as service:
        client = service.client()
        opened(client)
        [stream] = app.streams
        writers = [
            threading.Thread(target=lambda: [stream.write(b"x" * 10) for _ in range(200)])
            for _ in range(4)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        stream.end()
        body = received(client, b"\r\n0\r\n\r\n")
        assert body.count(b"x") == 4 * 200 * 10


def test_http_1_0_ends_with_the_connection() -> None:
    app = Streaming()
    with serving(app) as service:
        client = service.client()
        assert b"chunked" not in opened(client, version="1.0")
        app.streams[0].write(b"one")
        app.streams[0].end()
        while client._receive():
            pass
        assert client.pending == b"one"


def test_a_client_that_goes_ends_its_stream() -> None:
    app = Streaming()
    with serving(app) as service:
        for end in ("finish", "reset"):
            app.closed = 0
            client = service.client()
            opened(client)
            getattr(client, end)()
            eventually(lambda: app.closed)
            assert app.closed == 1
            app.streams[-1].write(b"late")  # does nothing
        assert not service.server.busy


def test_a_client_that_takes_nothing_is_given_up() -> None:
    app = Streaming()
    with serving(app, timeout=0.3) as service:
        client = service.client()
        opened(client)
        [stream] = app.streams
        drained = eventually(lambda: app.drained)
        stream.write(bytes(20_000_000))
        assert stream.unsent
        eventually(lambda: app.closed)
        assert app.drained == drained
        eventually(lambda: service.server.budget.used() == 0)


def test_a_slow_client_gets_all() -> None:
    app = Streaming()
    with serving(app) as service:
        client = service.client()
        opened(client)
        [stream] = app.streams
        stream.write(bytes(5_000_000))
        eventually(service.server.budget.used)
        stream.end()
        body = received(client, b"\r\n0\r\n\r\n")
        assert body == b"4c4b40\r\n" + bytes(5_000_000)
        assert client.at_end()


def test_a_client_that_takes_a_piece_slowly_is_not_given_up(tmp_path: Path) -> None:
    """The time is for who takes nothing, however long a piece takes (docs/http-api.md)."""
    app = Streaming()
    with serving(app, timeout=0.5, bind=str(tmp_path / "s")) as service:  # its buffers are small
        client, other = service.client(), service.client()
        opened(client)
        app.streams[0].write(b"x" * 2_000_000)
        app.streams[0].end()
        began = time.monotonic()
        count = 0
        while part := client.socket.recv(16384):
            count += len(part)
            # At most a megabyte a second; others have the server look who is late meanwhile.
            while time.monotonic() - began < count / 1_000_000:
                assert other.ask(get("/probe")).body == b"now"
        assert count > 2_000_000


def test_a_client_that_trickles_is_given_up_however_steady(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece has the time of any answer of its size: it holds memory that others could have."""
    monkeypatch.setattr("poky.http.stream.SLOWEST_TRANSFER", 10_000_000)
    app = Streaming()
    with serving(app, timeout=0.5, bind=str(tmp_path / "s")) as service:
        client = service.client()
        opened(client)
        app.streams[0].write(b"x" * 5_000_000)  # 0.5 s, and as many for its size
        began = time.monotonic()
        while not app.closed:
            assert time.monotonic() - began < 4, "at this pace all of it would take five"
            client.socket.recv(16384)
            time.sleep(0.016)
        eventually(lambda: service.server.budget.used() == 0)


def test_a_stream_ends_when_the_server_stops() -> None:
    app = Streaming()
    with serving(app, shutdown_timeout=5) as service:
        client = service.client()
        opened(client)
        stopping = threading.Thread(target=service.server.stop)
        stopping.start()
        assert received(client, b"0\r\n\r\n") == b""
        assert client.at_end()
        stopping.join(10)
        assert not service.server.busy


def test_what_a_client_sends_meanwhile_is_no_request() -> None:
    app = Streaming()
    with serving(app) as service:
        client = service.client()
        opened(client)
        client.send(get("/probe"))
        app.streams[0].write(b"one")
        assert received(client, b"3\r\none\r\n") == b""
        app.streams[0].end()
        assert received(client, b"0\r\n\r\n") == b""
        eventually(lambda: service.log)
        assert [uri for _, uri, _ in service.calls] == ["/"]


def test_what_is_written_while_a_connection_is_put_back_is_noticed() -> None:
    """No event would tell of it: until the next piece it would lie there."""
    conn = StreamingConnection.__new__(StreamingConnection)
    conn._output = []
    conn.state = STREAM
    assert not conn.has_pieces
    conn.stream = stream = Stream(lambda: None, lambda: None, lambda: None)
    assert not conn.has_pieces
    stream.write(b"one")
    assert conn.has_pieces
    conn._output = [memoryview(b"before")]
    assert not conn.has_pieces
    conn._output, conn.state = [], SEND
    assert not conn.has_pieces
    conn.state = STREAM
    stream.take()
    stream.settle()
    assert not conn.has_pieces
    stream.end()
    assert conn.has_pieces
