"""The promises of a connection, against real sockets: answers, slow clients, order, hooks."""

from __future__ import annotations

import array
import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import bottle
import pytest

from poky.http import Answer, Budget, Later, Refused, Reservation, connection, workers
from tests.support.sockets import (
    GIVE_UP,
    Serving,
    bottle_app,
    eventually,
    get,
    put,
    serving,
    simple_app,
)

pytestmark = pytest.mark.usefixtures("quick_goodbyes", "every_log_line")


@pytest.fixture
def service() -> Iterator[Serving]:
    with serving() as service:
        yield service


# -- answers


def test_head_has_the_headers_of_get_and_no_body(service: Serving) -> None:
    client = service.client()
    got = client.ask(get("/get-only"))
    client.send(get("/get-only").replace(b"GET", b"HEAD"))
    head = client.answer(head_only=True)
    assert head.body == b""
    del got.headers["date"], head.headers["date"]
    assert head.headers == got.headers
    assert client.is_open()


def test_head_of_a_refused_request_has_no_body(service: Serving) -> None:
    client = service.client()
    client.send(get("/x", "Expect: x").replace(b"GET", b"HEAD"))
    assert client.answer(head_only=True).status == 417
    assert client.at_end()


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_content_have_no_length(service: Serving, status: int) -> None:
    client = service.client()
    answer = client.ask(get(f"/status/{status}"))
    assert answer.status == status
    assert "content-length" not in answer.headers
    assert client.is_open()


def test_every_answer_is_dated_and_http_1_0_hears_keep_alive(service: Serving) -> None:
    answer = service.client().ask(b"GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert answer.headers["connection"] == "keep-alive"
    assert answer.headers["date"].endswith(" GMT")
    assert answer.headers["server"] == "poky"


@pytest.mark.parametrize("size", [0, 12, connection.JOINED_BYTES, 8_000_000])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_memoryview_is_sent_as_the_bytes_it_is(size: int, method: str) -> None:
    numbers = array.array("I", range(size // 4))
    with serving(simple_app(body=[memoryview(numbers)])) as service:
        client = service.client()
        client.send(get().replace(b"GET", method.encode()))
        answer = client.answer(head_only=method == "HEAD")
        assert answer is not None
        assert int(answer.headers["content-length"]) == size
        assert answer.body == (b"" if method == "HEAD" else numbers.tobytes())
        assert client.is_open()


@pytest.mark.parametrize(
    "app",
    [
        simple_app(fail=RuntimeError("secret")),
        simple_app(fail=SystemExit("secret")),
        simple_app(fail=BrokenPipeError("secret")),
        simple_app(headers=[("X", "secret\r\nSet-Cookie: a")]),
        simple_app(headers=[("X", "secret\n")]),
        simple_app(headers=[("X", "secret \u20ac")]),
        simple_app(headers=[("Content-Length", "99")]),
        simple_app(status="secret"),
        simple_app(status="100 Continue"),
        simple_app(status="200 OK\r\nX: secret"),
        simple_app(body=["secret"]),
        simple_app(body=None),
        lambda environ, start_response: [b"secret"],
    ],
)
def test_a_failing_application_is_a_500_and_a_traceback_in_the_log(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(app, threads=1) as service:
        for _ in range(2):  # the only worker survives
            client = service.client()
            answer = client.ask(get("/x?secret"))
            assert answer.status == 500
            assert answer.headers["content-type"] == "application/problem+json"
            assert b"secret" not in answer.body
            assert client.at_end()
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert caplog.messages == ["GET /x failed"] * 2


def test_generators_write_and_close_work_as_in_pep_3333() -> None:
    closed = []

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b"b"
            yield b""
            yield b"c"

        def close(self) -> None:
            closed.append(True)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])
        with pytest.raises(AssertionError):
            start_response("200 OK", [])
        start_response("202 Accepted", [("X", "y")], (ValueError, ValueError(), None))(b"a")
        return Result()

    with serving(app) as service:
        client = service.client()
        for _ in range(2):
            answer = client.ask(get())
            assert (answer.status, answer.body, answer.headers["x"]) == (202, b"abc", "y")
    assert closed == [True, True]


def test_what_the_application_writes_to_wsgi_errors_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = bottle.Bottle()

    @app.route("/fail")
    def fail() -> None:
        raise RuntimeError("seen only in the log")

    with serving(app) as service:
        assert b"seen only" not in service.client().ask(get("/fail")).body
    assert "seen only in the log" in caplog.text


# -- slow clients, many clients


def test_slow_heads_and_bodies_hold_no_worker() -> None:
    with serving(threads=1) as service:
        for _ in range(100):
            service.client().send(b"GET /x HTTP/1.1\r\nHos")
            service.client().send(put(b"a" * 100)[:-50])
        eventually(lambda: service.server.in_flight == 100)
        client = service.client()
        start = time.monotonic()
        for _ in range(20):
            assert client.ask(get()).status == 200
        assert time.monotonic() - start < 2
        service.clients[1].send(b"a" * 50)
        assert service.clients[1].answer().body == b"a" * 100
        eventually(lambda: service.server.in_flight == 99)


@pytest.mark.parametrize("raw", [b"GET /x HTTP/1.1\r\nHos", put(b"abc")[:-1], put(b"abc")[:-3]])
def test_a_request_that_stalls_is_ended(raw: bytes) -> None:
    with serving(timeout=0.4) as service:
        client = service.client()
        start = time.monotonic()
        client.send(raw)
        assert client.answer().status == 408
        assert 0.3 < time.monotonic() - start < 3
        assert client.at_end()
        assert not service.calls
        assert service.log[-1][2] == 408


@pytest.mark.parametrize("raw", [get("/x"), put(b"abc")])
def test_a_request_may_come_in_pieces_within_its_time(
    raw: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SWEEP_SECONDS", 0.02)
    with serving(timeout=2) as service:
        client = service.client()
        for piece in (raw[:10], raw[10:-1], raw[-1:]):
            client.send(piece)
            assert not select.select([client.socket], [], [], 0.1)[0] or piece == raw[-1:]
        assert client.answer().status == 200


def test_a_trickle_does_not_stretch_the_time_for_a_head() -> None:
    with serving(timeout=0.5) as service:
        client = service.client()
        start = time.monotonic()
        client.send(b"GET /x HTTP/1.1\r\nX: ")
        while not select.select([client.socket], [], [], 0.05)[0]:
            client.send(b"a")
            assert time.monotonic() - start < 5
        assert client.answer().status == 408


def test_a_trickle_does_not_stretch_the_time_for_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SLOWEST_TRANSFER", 1000)
    with serving(timeout=0.5) as service:
        client = service.client()
        start = time.monotonic()
        client.send(put(b"a" * 500, "X: y")[:-500])
        while not select.select([client.socket], [], [], 0.05)[0]:
            client.send(b"a")
            assert time.monotonic() - start < 5
        assert client.answer().status == 408
        assert time.monotonic() - start > 0.9
        assert not service.calls


def test_an_idle_connection_ends_without_a_word() -> None:
    with serving(timeout=0.4) as service:
        fresh, used = service.client(), service.client()
        assert used.ask(get()).status == 200
        assert fresh.at_end()
        assert used.at_end()
        assert [entry[2] for entry in service.log] == [200]


def test_a_request_that_waited_for_a_busy_worker_is_served_all_the_same() -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/wait":
            gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [b""]

    with serving(app, threads=1, timeout=0.3) as service:
        waiting, later, half = service.client(), service.client(), service.client()
        half.send(put(b"abc")[:-1])
        eventually(lambda: service.server.in_flight == 1)
        waiting.send(get("/wait"))
        eventually(lambda: service.calls)
        later.send(get("/later"))
        half.send(b"c")
        time.sleep(0.5)  # longer than `timeout`: their deadlines pass while nobody can read
        gate.set()
        assert [client.answer().status for client in (waiting, later, half)] == [200] * 3


def test_a_slow_reader_holds_no_worker_and_gets_every_byte() -> None:
    size = 16 * 1024 * 1024
    with serving(threads=1) as service:
        slow = service.client()
        slow.send(get(f"/big/{size}"))
        eventually(service.server.parked_bytes)
        other = service.client()
        assert other.ask(get()).status == 200
        eventually(lambda: service.server.in_flight == 1)
        assert slow.answer().body == bytes(size)
        eventually(lambda: ("GET", f"/big/{size}", 200, size) in service.log)
        assert slow.is_open()


def test_unread_answers_are_bounded_by_refusing_more_and_hold_no_worker() -> None:
    size = 16 * 1024 * 1024
    budget = Budget(size + 1024 * 1024)
    with serving(threads=1, budget=budget) as service:
        first, second = service.client(), service.client()
        first.send(get(f"/big/{size}"))
        eventually(service.server.parked_bytes)
        assert size < budget.used() < size + 2000
        refused = second.ask(get(f"/big/{size}"))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert service.client().ask(get()).status == 200
        assert first.answer().body == bytes(size)
        assert first.is_open()
        assert not budget.used()
        assert service.client().ask(get(f"/big/{size}")).body == bytes(size)


def test_large_heads_that_never_end_are_counted() -> None:
    budget = Budget(30_000)
    with serving(budget=budget, timeout=0.5) as service:
        half = service.client()
        half.send(get("/x", "x: " + "y" * 10_000)[:-2])
        eventually(lambda: budget.used() > 10_000)
        more = service.client()
        more.send(get("/x", *[f"x{n}: " + "y" * 7_000 for n in range(2)])[:-2])
        eventually(lambda: budget.used() > 24_000)
        refused = service.client()
        refused.send(get("/x", "x: " + "y" * 10_000)[:-2])
        answer = refused.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert half.answer().status == 408
        eventually(lambda: not budget.used())


def test_an_answer_waits_for_room_in_a_full_socket(service: Serving) -> None:
    ours, theirs = socket.socketpair()
    conn = connection.Connection(service.server, ours)
    filled = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += ours.send(bytes(4096))
    theirs.send(get("/get-only"))
    assert conn.communicate()
    assert theirs.recv(filled, socket.MSG_WAITALL) == bytes(filled)
    assert conn.communicate()
    assert theirs.recv(1000).endswith(b"got")
    conn.close()
    theirs.close()


def test_a_reader_who_never_reads_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    size = 16 * 1024 * 1024
    with serving(threads=1, timeout=0.4) as service:
        client = service.client()
        client.send(get(f"/big/{size}"))
        eventually(lambda: service.log)
        assert service.log[0][3] < size
        assert not service.server.in_flight
        with pytest.raises((AssertionError, ConnectionError)):
            client.answer()
    assert not caplog.records


# -- order and fairness


def test_pipelined_requests_are_answered_in_order(service: Serving) -> None:
    client = service.client()
    bodies = [str(number).encode() * (number % 7) for number in range(500)]
    sender = threading.Thread(target=client.send, args=(b"".join(put(body) for body in bodies),))
    sender.start()
    assert [client.answer().body for _ in bodies] == bodies
    sender.join()
    assert client.is_open()


def test_a_pipeline_lets_others_through() -> None:
    gate = threading.Event()
    inner = bottle_app()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        gate.wait(GIVE_UP)
        return inner(environ, start_response)

    with serving(app, threads=1) as service:
        greedy, other = service.client(), service.client()
        greedy.send(get("/greedy") * 300)
        eventually(lambda: service.calls)
        other.send(get("/other"))
        gate.set()
        assert other.answer().status == 200
        for _ in range(300):
            assert greedy.answer().status == 200
        order = [uri for _, uri, _ in service.calls]
        assert order.index("/other") <= 2 * connection.REQUESTS_PER_TURN


def test_connections_get_equal_shares(service: Serving) -> None:
    clients = [service.client() for _ in range(24)]
    by_fd = {client.socket.fileno(): client for client in clients}
    counts = dict.fromkeys(by_fd, 0)
    poll = select.poll()
    for fd, client in by_fd.items():
        poll.register(fd, select.POLLIN)
        client.send(get())
    while sum(counts.values()) < 2400:
        for fd, _ in poll.poll(GIVE_UP * 1000):
            assert by_fd[fd].answer().status == 200
            counts[fd] += 1
            by_fd[fd].send(get())
    assert min(counts.values()) > 50  # 100 each, were it exact


# -- hooks


def test_admission_comes_before_the_body_and_is_released_once() -> None:
    budget = Budget(1000)
    big = 400  # what a head of these takes, at most
    with serving(budget=budget, timeout=0.5) as service:
        stalled = service.client()
        stalled.send(put(b"a" * 600)[:-1])
        eventually(lambda: 600 < budget.used() < 600 + big)
        refused = service.client()
        refused.send(put(b"b" * 700, "Expect: 100-continue")[:-700])
        answer = refused.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert refused.at_end()
        client = service.client()
        assert client.ask(put(b"c" * 20)).status == 200
        assert client.ask(get()).status == 200  # no body, no question
        eventually(lambda: budget.used() < 600 + big)
        gone = service.client()
        gone.send(put(b"d" * 10)[:-1])
        eventually(lambda: budget.used() > 600 + 200)
        gone.reset()
        eventually(lambda: budget.used() < 600 + 250)
        assert stalled.answer().status == 408
        eventually(lambda: not budget.used())
        assert [uri for _, uri, _ in service.calls] == ["/x", "/x"]


def test_admission_is_released_when_the_application_fails() -> None:
    budget = Budget(1000, factor=2)
    with serving(simple_app(fail=RuntimeError()), budget=budget) as service:
        client = service.client()
        client.send(put(b"a" * 300)[:-1])
        eventually(budget.used)
        client.send(b"a")
        assert client.answer().status == 500
        eventually(lambda: not budget.used())


@pytest.mark.parametrize("is_later", [False, True])
def test_the_answer_to_a_write_is_sent_even_where_there_is_no_room(is_later: bool) -> None:
    budget = Budget(1000)
    other = Reservation(budget)
    assert other.raise_to(900)
    later = Later(lambda reply: reply(Answer("200 OK", [], bytes(50_000))))
    app = (lambda *_: later) if is_later else simple_app(body=[bytes(50_000)])
    with serving(app, budget=budget) as service:
        assert service.client().ask(get()).status == 503
        assert service.client().ask(put(b"x")).body == bytes(50_000)


def test_the_application_may_ask_for_more_and_is_refused_in_good_order() -> None:
    budget = Budget(1000)
    other = Reservation(budget)
    assert other.raise_to(10)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        answer = b"ok"
        try:
            environ["poky.memory"].need(2000)
        except Refused as refused:
            answer = refused.answer.status.encode()
        start_response("200 OK", [])
        return [answer]

    with serving(app, budget=budget) as service:
        assert service.client().ask(get()).body == b"503 Service Unavailable"
        other.lower_to(0)
        assert service.client().ask(get()).body == b"ok"
        eventually(lambda: not budget.used())


def test_every_answer_is_reported(service: Serving) -> None:
    client = service.client()
    assert client.ask(put(b"abc", target="/a")).status == 200
    assert client.ask(get("/b", "Expect: x")).status == 417
    broken = service.client()
    size = len(broken.ask(b"\x16\x03\x01").body)
    eventually(lambda: len(service.log) == 3)
    assert ("PUT", "/a", 200, 3) in service.log
    assert ("-", "-", 400, size) in service.log
    assert ("GET", "/b", 417) in [entry[:3] for entry in service.log]


def test_a_client_that_goes_away_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        gate.wait(GIVE_UP)
        start_response("200 OK", [])
        return [bytes(1 << 22)]

    with serving(app, threads=1) as service:
        client = service.client()
        client.send(get())
        eventually(lambda: service.calls)
        client.reset()
        half = service.client()
        half.send(b"GET /")
        half.reset()
        gate.set()
        eventually(lambda: len(service.log) == 1 and not service.server.connections)
        assert service.server.in_flight == 0
    assert not caplog.records


def test_expect_is_answered_before_the_body_but_not_if_the_body_is_refused() -> None:
    with serving(max_body_bytes=10) as service:
        client = service.client()
        client.send(put(b"abc", "Expect: 100-continue")[:-3])
        assert client.answer().status == 100
        assert client.ask(b"abc").body == b"abc"
        client.send(put(b"a" * 11, "Expect: 100-continue")[:-11])
        assert client.answer().status == 413
        assert client.at_end()


def test_a_refusal_arrives_although_the_client_is_still_sending() -> None:
    with serving(max_body_bytes=1000) as service:
        client = service.client()
        client.send(put(bytes(8 * 1024 * 1024)))
        assert client.answer().status == 413
        client.finish()
        assert client.at_end()
        assert not service.calls


def test_a_body_is_not_kept_after_its_answer() -> None:
    kept = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        kept.append(environ)
        start_response("200 OK", [])
        return [b""]

    with serving(app) as service:
        assert service.client().ask(put(b"abc")).status == 200
        eventually(lambda: "wsgi.input" not in kept[0])


def test_answers_are_not_delayed_by_nagle(service: Serving) -> None:
    client = service.client()
    assert client.ask(get()).status == 200
    (accepted,) = service.server.connections
    assert accepted.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
