"""Workers, server and streams step by step: who sends what, what is left open, what is said."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poky.http import Answer, CannotListen, Later, Server, Stream, Workers, workers
from poky.http.answers import text
from poky.http.connection import WAIT_GONE
from poky.http.stream import StreamingConnection
from tests.support.sockets import (
    GIVE_UP,
    Client,
    Serving,
    bottle_app,
    eventually,
    get,
    put,
    serving,
)
from tests.test_stream import Streaming, opened, received

pytestmark = pytest.mark.usefixtures("quick_goodbyes", "every_log_line")

# -- turns


class Polls:
    """In place of an epoll set: notes how long a turn would wait, and who."""

    def __init__(self, of: Workers) -> None:
        self._of = of
        self.waits: list[float] = []
        self.polling: list[set[int]] = []

    def poll(self, wait: float, most: int) -> list[tuple[int, int]]:
        self.waits.append(wait)
        self.polling.append(set(self._of._polling))
        return []


def test_a_turn_waits_for_clients_only_if_nothing_else_is_to_be_done() -> None:
    server = Server(("127.0.0.1", 0), bottle_app(), max_body_bytes=10)
    idle = Workers(server, 1)
    idle._epoll = polls = Polls(idle)  # type: ignore[assignment]
    idle._turn(7)
    assert polls.waits == [workers.SWEEP_SECONDS]
    assert polls.polling == [{7}], "answers may be sent by who completes them"
    assert not idle._polling
    ours, theirs = socket.socketpair()
    conn = StreamingConnection(server, ours)
    conn._new_environ().update(REQUEST_METHOD="GET", SERVER_PROTOCOL="HTTP/1.1")
    idle._completed.append((conn, text("later")))
    idle._turn(7)
    assert not idle._completed
    assert theirs.recv(1000).endswith(b"later")
    idle._ready.append(99)  # of a connection that is gone
    idle._front = 7
    idle._turn(7)
    assert not idle._ready
    assert polls.waits[1:] == [0, 0]
    conn.close()
    theirs.close()


def test_what_fails_after_a_turn_is_logged_and_the_thread_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(alone: bool) -> None:
        raise RuntimeError

    with serving(threads=1, after_turn=fails) as service:
        for _ in range(2):
            assert service.client().ask(get()).status == 200
        eventually(lambda: caplog.messages.count("what was collected in a turn failed") >= 2)


def test_a_hook_that_fails_ends_its_connection_and_no_thread(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError

    with serving(threads=1, on_response=fails) as service:
        for _ in range(2):
            client = service.client()
            assert client.ask(get()).status == 200
            assert client.at_end()
        eventually(lambda: not service.server.connections)
    assert caplog.messages == ["a connection failed"] * 2


def test_nobody_watches_turns_while_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IDLE_CHECKS", 2)
    looks = threading.Semaphore(0)
    with serving(late=looks.release) as service:
        for _ in range(2):
            assert service.client().ask(get()).status == 200
            assert looks.acquire(timeout=GIVE_UP)
            eventually(lambda: not service.server.requests._active.is_set())
            while looks.acquire(blocking=False):
                pass


# -- answers that come later


@pytest.mark.parametrize("watched", [False, True])
def test_a_later_that_cannot_begin_is_answered(
    watched: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(reply: Any) -> None:
        raise RuntimeError("secret")

    with serving(lambda *_: Later(fails, watched=watched), threads=1) as service:
        for _ in range(2):
            client = service.client()
            assert client.ask(get()).status == 500
            assert client.at_end()
    assert caplog.messages == ["an answer that was to come later failed"] * 2


def test_a_client_that_goes_before_its_wait_has_begun_is_cancelled_after_it() -> None:
    cancelled = threading.Semaphore(0)
    begun = threading.Event()

    def begin(reply: Any) -> None:
        begun.set()
        assert cancelled.acquire(timeout=GIVE_UP)  # there was nothing to cancel yet

    later = Later(begin, watched=True, cancel=cancelled.release)
    with serving(lambda *_: later) as service:
        client = service.client()
        client.send(get())
        assert begun.wait(GIVE_UP)
        client.socket.close()
        assert cancelled.acquire(timeout=GIVE_UP)
        eventually(lambda: not service.server.busy)


def test_a_late_answer_or_piece_does_not_disturb_who_has_the_descriptor_now() -> None:
    with serving() as service:
        server = service.server
        first, second = socket.socketpair(), socket.socketpair()
        gone, here = StreamingConnection(server, first[0]), StreamingConnection(server, second[0])
        gone.fd = here.fd
        server.requests.add(here)
        server.requests.complete_watched(gone, text("late"))
        server.requests.resume(gone)
        second[1].settimeout(GIVE_UP)
        second[1].sendall(get("/get-only"))
        assert second[1].recv(1000).endswith(b"got")
        gone.close()
        for each in (*first, *second):
            each.close()


# -- the end


def test_what_stalls_is_closed_when_the_time_to_stop_is_over() -> None:
    with serving(shutdown_timeout=0.2) as service:
        stalled = service.client()
        stalled.send(put(b"abc")[:-1])
        eventually(lambda: service.server.in_flight)
        service.server.stop()
        assert stalled.at_end()
        assert not service.server.connections
        assert not service.server.in_flight
        assert service.log == [("PUT", "/x", 499, 0)]


def test_an_answer_that_is_waited_for_is_asked_for_once() -> None:
    stops: list[int] = []
    later = Later(lambda reply: None, stop=lambda: stops.append(1))
    with serving(lambda *_: later, shutdown_timeout=0.2) as service:
        service.client().send(get())
        eventually(lambda: service.server.in_flight)
        service.server.stop()
    assert stops == [1]


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with serving() as service:
        assert service.client().ask(get()).status == 200
        threads = [each for each in threading.enumerate() if each.name.startswith("http-")]
        assert len(threads) >= 3
        assert all(each.daemon for each in threads), "none of them holds up the end"
    eventually(lambda: threading.active_count() <= before)


def test_those_who_wait_to_be_accepted_are_answered_when_the_server_stops() -> None:
    seen = []

    def on_response(environ: dict[str, Any], *_: Any) -> None:
        seen.append(environ["REMOTE_ADDR"])

    server = Server(("127.0.0.1", 0), bottle_app(), max_body_bytes=10, on_response=on_response)
    server.prepare()
    clients = [Client(server.bind_addr) for _ in range(3)]
    for client in clients:
        client.send(get("/get-only"))
    server.stop()
    for client in clients:
        answer = client.answer()
        assert answer is not None
        assert (answer.body, answer.headers["connection"]) == (b"got", "close")
        assert client.at_end()
        client.socket.close()
    assert seen == ["127.0.0.1"] * 3


# -- the server


def test_far_too_many_connections_get_not_even_an_answer() -> None:
    with serving(max_connections=1) as service:
        kept = service.client()
        eventually(lambda: len(service.server.connections) == 1)
        refused = [service.client() for _ in range(70)]
        eventually(lambda: service.server.refused == 70)
        answers = [client.answer() for client in refused]
        assert [each.status for each in answers if each] == [503] * 64
        assert answers[64:] == [None] * 6
        assert kept.ask(get()).status == 200
        assert len(service.server.connections) <= 65


@pytest.mark.parametrize(
    ("open_files", "most", "kept"), [(1000, 4096, 872), (10_000, 4096, 4096), (100, 4096, 16)]
)
def test_connections_leave_files_for_the_rest(
    open_files: int, most: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (open_files, open_files))
    server = Server(("127.0.0.1", 0), bottle_app(), max_body_bytes=1, max_connections=most)
    assert server.max_connections == kept


def unprepared(bind: Any) -> Server:
    return Server(bind, bottle_app(), max_body_bytes=1)


def test_why_it_cannot_listen_is_the_cause() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(CannotListen) as refused:
            unprepared(taken.getsockname()).prepare()
        assert isinstance(refused.value.__cause__, OSError)
        assert refused.value.__cause__.errno == errno.EADDRINUSE
    with pytest.raises(CannotListen) as refused:
        unprepared(("x" * 70, 0)).prepare()
    assert isinstance(refused.value.__cause__, UnicodeError)


def test_a_unix_socket_replaces_only_one_that_nobody_listens_on(tmp_path: Path) -> None:
    path, umask = tmp_path / "socket", os.umask(0o022)
    try:
        path.write_text("a file")
        with pytest.raises(CannotListen) as refused:
            unprepared(str(path)).prepare()
        assert refused.value.__cause__.errno == errno.EEXIST  # type: ignore[union-attr]
        assert path.read_text() == "a file"
        path.unlink()
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
        with serving(bind=str(path)) as service:
            assert path.stat().st_mode & 0o777 == 0o660
            with pytest.raises(CannotListen) as refused:
                unprepared(str(path)).prepare()
            assert refused.value.__cause__.errno == errno.EADDRINUSE  # type: ignore[union-attr]
            assert service.client().ask(get()).status == 200
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(umask)


@pytest.mark.parametrize("is_unix", [False, True])
def test_what_the_environ_says_of_the_server(is_unix: bool, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        start_response("200 OK", [])
        return [b""]

    bind = str(tmp_path / "socket") if is_unix else ("127.0.0.1", 0)
    with serving(app, bind=bind) as service:
        assert service.client().ask(get()).status == 200
        address = ("localhost", "", "")
        if not is_unix:
            address = ("127.0.0.1", str(service.server.bind_addr[1]), "127.0.0.1")
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"], seen["REMOTE_ADDR"]) == address
    assert seen["wsgi.version"] == (1, 0)
    names = ("input_terminated", "multithread", "multiprocess", "run_once")
    assert [seen[f"wsgi.{name}"] for name in names] == [True, True, False, False]


def test_what_is_written_for_the_log_is_there(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as service:
        errors = service.server.environ["wsgi.errors"]
        assert errors.write("one\n") == 4
        assert errors.write(" \n") == 2
        errors.writelines(["two ", "three\n"])
        errors.flush()
        service.server.error_log("of cheroot", logging.ERROR)
        assert caplog.messages == ["one", "two three", "of cheroot"]
        assert {record.levelno for record in caplog.records} == {logging.ERROR}
        assert not caplog.records[-1].exc_info
        service.server.error_log("for information")
        assert (caplog.records[-1].levelno, caplog.messages[-1]) == (20, "for information")
        try:
            raise RuntimeError
        except RuntimeError:
            service.server.error_log("with its traceback", logging.ERROR, True)
        assert caplog.records[-1].exc_info


# -- streams


@contextlib.contextmanager
def streaming(**settings: Any) -> Iterator[tuple[Serving, Streaming, Client, Stream]]:
    app = Streaming()
    with serving(app, **settings) as service:
        client = service.client()
        opened(client)
        yield service, app, client, app.streams[0]


def test_a_stream_that_was_taken_holds_no_memory_and_has_no_end_in_time() -> None:
    with streaming(timeout=5) as (service, app, client, stream):
        [conn] = service.server.connections
        eventually(lambda: conn.deadline == math.inf)
        stream.write(bytes(5_000_000))
        eventually(service.server.budget.used)
        first = conn.deadline
        assert time.monotonic() + 4 < first <= time.monotonic() + 5
        assert stream.unsent
        stream.write(b"more")
        assert conn.deadline == first, "what is written does not stretch the time to take it"
        assert received(client, b"4\r\nmore\r\n") == b"4c4b40\r\n" + bytes(5_000_000) + b"\r\n"
        eventually(lambda: not service.server.budget.used())
        eventually(lambda: conn.deadline == math.inf)
        assert conn.events == WAIT_GONE
        eventually(lambda: not stream.unsent)
        assert app.closed == 0


def test_a_stream_is_told_once_of_what_was_sent_and_of_its_end() -> None:
    with streaming() as (service, app, client, stream):
        eventually(lambda: app.drained == 1)
        stream.write(b"one")
        received(client, b"3\r\none\r\n")
        eventually(lambda: app.drained == 2)
        client.socket.close()
        eventually(lambda: not service.server.connections)
        assert (app.drained, app.closed) == (2, 1)
        eventually(lambda: service.log)
        assert service.log[0][:3] == ("GET", "/", 200)


def test_a_stream_that_ends_closes_its_connection_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with streaming() as (service, app, client, stream):
        stream.write(b"one")
        stream.end()
        assert received(client, b"0\r\n\r\n") == b"3\r\none\r\n"
        assert client.at_end()
        eventually(lambda: app.closed)
        assert not service.server.connections
        assert [each[2] for each in service.log] == [200]
        assert app.closed == 1
    assert not caplog.records


def test_a_stream_before_its_connection_keeps_what_is_written() -> None:
    stream = Stream(lambda: None, lambda: None, lambda: None)
    assert not stream.unsent
    stream.write(b"one")
    stream.write(b"two")
    assert stream.unsent
    assert not stream.is_over
    assert stream.take() == b"onetwo"
    assert stream.unsent, "it is being sent"
    stream.settle()
    assert not stream.unsent
    stream.end()
    assert stream.is_over


def test_what_a_later_and_an_answer_have_by_default() -> None:
    answer = Answer("200 OK", [])
    assert answer.body == b""
    assert not Later(lambda reply: None).watched
    later = Later(lambda reply: None)
    later.cancel()
    later.stop()
