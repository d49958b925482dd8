"""The promises of the server as a whole: many connections, addresses, the end in good order."""

from __future__ import annotations

import contextlib
import os
import resource
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poky.http import workers
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

pytestmark = pytest.mark.usefixtures("quick_goodbyes", "every_log_line")


@pytest.fixture
def service() -> Iterator[Serving]:
    with serving() as service:
        yield service


# -- many clients


def test_two_thousand_idle_connections_hurt_nobody() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    try:
        with serving(threads=2, max_connections=3000) as service:
            for _ in range(2000):
                service.client()
            eventually(lambda: len(service.server.connections) == 2000)
            client = service.client()
            times = []
            for _ in range(200):
                start = time.perf_counter()
                assert client.ask(get()).status == 200
                times.append(time.perf_counter() - start)
            assert sorted(times)[100] < 0.05
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_too_many_connections_are_answered_503() -> None:
    with serving(max_connections=3) as service:
        kept = [service.client() for _ in range(3)]
        eventually(lambda: len(service.server.connections) == 3)
        assert service.server.refused == 0
        refused = service.client()
        answer = refused.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert refused.at_end()
        assert service.server.refused == 1
        refused.socket.close()
        assert [client.ask(get()).status for client in kept] == [200] * 3
        kept[0].socket.close()
        eventually(lambda: len(service.server.connections) < 3)
        assert service.client().ask(get()).status == 200


# -- addresses


def test_a_client_is_alone_from_its_second_request_on_until_another_comes() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"alone" if environ["poky.alone"] else b"among others"]

    with serving(app) as service:
        one, other = service.client(), service.client()
        said = [client.ask(get()).body for client in (one, one, one, other, other, one)]
        alone, among = b"alone", b"among others"
        assert said == [among, alone, alone, among, alone, among]


@pytest.mark.parametrize("family", ["ipv6", "unix"])
def test_other_addresses(family: str, tmp_path: Any) -> None:
    bind = ("::1", 0) if family == "ipv6" else str(tmp_path / "socket")
    with serving(bind=bind) as service:
        assert service.client().ask(put(b"abc")).body == b"abc"


# -- the end


def test_closing_ends_connections_with_their_next_answer(service: Serving) -> None:
    old = service.client()
    assert "connection" not in old.ask(get()).headers
    service.server.close_connections()
    assert old.ask(get()).headers["connection"] == "close"
    assert old.at_end()
    new = service.client()
    assert new.ask(get()).headers["connection"] == "close"
    assert new.at_end()


def test_stop_finishes_what_has_begun() -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [b"done"]

    with serving(app) as service:
        idle, busy, sending = service.client(), service.client(), service.client()
        assert idle.ask(get()).status == 200
        busy.send(get("/wait"))
        sending.send(put(b"abc")[:-1])
        eventually(lambda: service.server.in_flight == 2)
        stopping = threading.Thread(target=service.server.stop)
        stopping.start()
        assert idle.at_end()
        assert stopping.is_alive()
        with pytest.raises(OSError, match="refused"):
            service.client()
        sending.send(b"c")
        gate.set()
        for client in (busy, sending):
            answer = client.answer()
            assert (answer.body, answer.headers["connection"]) == (b"done", "close")
            assert client.at_end()
        stopping.join(GIVE_UP)
        assert not stopping.is_alive()
        assert service.server.requests.alive == 0
        assert not service.server.connections


def test_stop_serves_a_request_that_waited_for_a_worker() -> None:
    gate = threading.Event()
    inner = bottle_app()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        gate.wait(GIVE_UP)
        return inner(environ, start_response)

    with serving(app, threads=1) as service:
        first, second = service.client(), service.client()
        first.send(get())
        eventually(lambda: service.calls)
        second.send(get())
        stopping = threading.Thread(target=service.server.stop)
        stopping.start()
        stopping.join(5 * workers.QUIET_SECONDS)
        assert stopping.is_alive()
        gate.set()
        assert [client.answer().status for client in (first, second)] == [200, 200]
        stopping.join(GIVE_UP)
        assert not stopping.is_alive()


def test_stop_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [b""]

    with serving(app, threads=1, shutdown_timeout=0.3) as service:
        service.client().send(get())
        eventually(lambda: service.server.in_flight)
        start = time.monotonic()
        service.server.stop()
        assert time.monotonic() - start < 3
        assert "1 requests unanswered" in caplog.text
        gate.set()


def test_stop_under_load_leaves_no_request_without_an_answer() -> None:
    answered = []
    unanswered = []

    def load(address: Any) -> None:
        # Refused, or reset by the listener that closes while we connect.
        with contextlib.suppress(ConnectionRefusedError, ConnectionResetError):
            while True:
                client = Client(address)
                while True:
                    try:
                        client.send(put(b"abc"))
                        answer = client.answer()
                    except ConnectionError:
                        answer = None
                    (answered if answer else unanswered).append(1)
                    if answer is None or answer.headers.get("connection") == "close":
                        break
                client.socket.close()

    with serving() as service:
        threads = [
            threading.Thread(target=load, args=(service.server.bind_addr,)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answered) > 500)
        service.server.stop()
        for thread in threads:
            thread.join(GIVE_UP)
            assert not thread.is_alive()
    assert len(unanswered) <= 1  # a connection made in the instant before the listener closed
    assert len(service.calls) == len(answered)


def test_the_heartbeat_beats_and_the_workers_live(service: Serving) -> None:
    first = service.server.heartbeat
    eventually(lambda: service.server.heartbeat > first)
    assert abs(service.server.heartbeat - time.monotonic()) < 2
    assert service.server.requests.alive == 2


def test_no_file_is_left_open() -> None:
    with serving() as service:
        service.client().ask(get())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with serving() as service:
            service.client().ask(get())
    assert len(os.listdir("/proc/self/fd")) <= before
