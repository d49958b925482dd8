"""A connection step by step, on a pair of sockets: what it waits for, until when, what it holds."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from poky.http import Answer, Budget, Later, Reservation, connection, refuse
from poky.http.answers import text
from poky.http.compose import compose, compose_stream
from poky.http.connection import (
    AGAIN,
    LINGER,
    READ_BODY,
    READ_HEAD,
    SEND,
    WAIT_INPUT,
    WAIT_OUTPUT,
    Connection,
)
from tests.support.sockets import Serving, eventually, get, put, serving, simple_app

STAMP = "Date: d\r\nServer: s\r\n"


class Pair:
    """A connection that nobody but the test works on, and its client's end."""

    def __init__(self, service: Serving) -> None:
        ours, self.client = socket.socketpair()
        self.client.settimeout(5)
        self.conn = Connection(service.server, ours)

    def step(self, data: bytes = b"") -> bool:
        """Have the client send something, and the connection proceed."""
        if data:
            self.client.sendall(data)
        return self.conn.communicate()

    def received(self) -> bytes:
        """What has been sent to the client so far."""
        self.client.setblocking(False)
        parts = []
        with contextlib.suppress(BlockingIOError):
            while part := self.client.recv(1 << 20):
                parts.append(part)
        return b"".join(parts)

    def fill(self) -> int:
        """Fill the socket; how many bytes that took."""
        filled = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                filled += self.conn.socket.send(bytes(4096))
        return filled

    def close(self) -> None:
        if self.conn.fd in (each.fd for each in self.conn.server.connections):
            self.conn.close()
        self.client.close()


class Narrow:
    """A socket that takes a few bytes at a time."""

    def __init__(self, inner: socket.socket, width: int) -> None:
        self._inner, self._width = inner, width

    def send(self, data: Any) -> int:
        return self._inner.send(bytes(data)[: self._width])

    def sendmsg(self, parts: Any) -> int:
        return self.send(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextlib.contextmanager
def paired(app: Any = None, **settings: Any) -> Iterator[tuple[Serving, Pair]]:
    with serving(app, **settings) as service:
        pair = Pair(service)
        try:
            yield service, pair
        finally:
            pair.close()


def before(seconds: float) -> float:
    return time.monotonic() + seconds


# -- until when it waits


def test_each_state_waits_from_now_on_and_no_longer_than_it_should() -> None:
    with paired(timeout=5) as (service, pair):
        conn = pair.conn
        assert before(4) < conn.deadline <= before(5)
        conn.deadline = 0.0
        assert pair.step(b"GET /x HT")
        assert before(4) < conn.deadline <= before(5)
        assert pair.step(b"TP/1.1\r\nHost: h\r\n\r\n")
        assert conn.state == READ_HEAD
        conn.deadline = 0.0
        assert pair.step(put(b"abcdef")[:-5])
        assert conn.state == READ_BODY
        assert before(4) < conn.deadline <= before(5)
        conn.deadline = 0.0
        assert pair.step(b"bc")
        assert before(4) < conn.deadline <= before(5)
        conn.deadline = 0.0
        assert pair.step(b"def")
        assert conn.state == READ_HEAD
        assert before(4) < conn.deadline <= before(5)
        assert service.calls[-1][2] == b"abcdef"


def test_a_large_transfer_has_the_time_that_it_takes_at_the_slowest() -> None:
    size = 16 * connection.SLOWEST_TRANSFER
    with paired(timeout=5) as (_, pair):
        conn = pair.conn
        assert pair.step(put(bytes(size))[:-size])
        assert before(5 + 15) < conn._limit <= before(5 + 16)
        conn.state = READ_HEAD
        assert pair.step(get(f"/big/{size}"))
        assert conn.state == SEND
        assert before(5 + 15) < conn._limit <= before(5 + 16)
        assert before(4) < conn.deadline <= before(5)
        conn.deadline = 0.0
        assert pair.client.recv(1 << 20)
        assert pair.step()
        assert before(4) < conn.deadline <= before(5)


def test_what_trickles_is_given_up_when_its_time_is_over() -> None:
    with paired() as (_, pair):
        assert pair.step(b"GET /x HT")
        pair.conn.deadline = 0.0
        assert pair.step(b"TP")
        assert pair.received().startswith(b"HTTP/1.1 408 ")
        assert pair.conn.state == LINGER
    with paired() as (_, pair):
        assert pair.step(put(b"abcdef")[:-5])
        pair.conn._limit = 0.0
        assert pair.step(b"b")
        assert pair.received().startswith(b"HTTP/1.1 408 ")
    with paired() as (service, pair):
        assert pair.step(get("/big/16000000"))
        pair.conn._limit = 0.0
        assert pair.client.recv(1 << 20)
        assert not pair.step()
        pair.conn.close()
        assert service.log[-1][2] == 200


def test_a_refused_client_may_read_to_the_end_but_not_stay() -> None:
    with paired() as (_, pair):
        conn = pair.conn
        assert pair.step(put(b"abc")[:-3])
        assert conn.expire()
        assert (conn.state, conn.events) == (LINGER, WAIT_INPUT)
        assert before(connection.LINGER_SECONDS - 1) < conn.deadline
        assert conn.deadline <= before(connection.LINGER_SECONDS)
        answer = b""
        while part := pair.client.recv(1000):  # the end comes although nothing is closed
            answer += part
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert pair.step(b"still")
        assert pair.step(b"sending")
        pair.client.sendall(b"more")
        assert not conn.expire(), "also one that goes on sending"
        pair.client.close()
        assert not pair.step() or not pair.step()


def test_one_that_is_quiet_is_closed_without_a_word_and_one_that_has_data_is_not() -> None:
    with paired() as (_, pair):
        assert not pair.conn.expire()
        pair.client.sendall(get())
        assert pair.conn.expire()
        assert pair.received() == b""


def test_it_is_quiet_only_between_requests_and_for_so_long() -> None:
    with paired(timeout=5) as (_, pair):
        conn = pair.conn
        assert conn.quiet_for(0.0)
        assert not conn.quiet_for(2.0)
        conn.deadline -= 3
        assert conn.quiet_for(2.0)
        assert pair.step(b"GET /x HT")
        assert not conn.quiet_for(0.0), "a request has begun to come"
        assert pair.step(b"TP/1.1\r\nHost: h\r\n\r\n" + put(b"abc")[:-3])
        assert not conn.quiet_for(0.0), "a body is to come"


# -- what it waits for


def test_half_a_head_has_no_worker_turn_until_more_comes() -> None:
    with paired() as (_, pair):
        for data in (b"GET /x HT", b"TP/1.1\r\n"):
            assert pair.step(data)
            assert (pair.conn.state, pair.conn.events) == (READ_HEAD, WAIT_INPUT)


def test_all_of_a_pipeline_is_answered_although_its_client_has_said_all() -> None:
    with paired() as (service, pair):
        count = 2 * connection.REQUESTS_PER_TURN + 3
        pair.client.sendall(get() * count)
        pair.client.shutdown(socket.SHUT_WR)
        turns = 0
        while pair.step():
            turns += 1
        assert pair.received().count(b"HTTP/1.1 200 OK") == count
        assert turns == 3
        assert len(service.calls) == count


def test_a_pipelined_request_waits_until_the_answer_before_it_is_sent() -> None:
    with paired() as (service, pair):
        pair.client.sendall(get("/big/16000000") + get("/next"))
        assert pair.step()
        assert pair.conn.state == SEND
        assert [uri for _, uri, _ in service.calls] == ["/big/16000000"]
        while len(service.calls) == 1:
            assert pair.received()
            assert pair.step()
        assert service.log[0][1:] == ("/big/16000000", 200, 16_000_000)


def test_a_request_is_tried_again_by_the_workers() -> None:
    replies: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        return Later(replies.append) if not replies else Later(lambda reply: reply(text("again")))

    with paired(app) as (_, pair):
        assert pair.step(get())
        later, reply = pair.conn.wait_for_answer()
        later.begin(reply)
        pair.conn._again, again = (lambda: None), pair.conn._again
        pair.conn.state = AGAIN
        assert pair.step()
        assert pair.conn.later is None
        assert pair.conn.events == WAIT_INPUT
        again()
        assert pair.conn.later is not None


@pytest.mark.parametrize("follows", [b"", get("/next")])
def test_after_an_answer_that_came_later_the_next_request_is_read(follows: bytes) -> None:
    with paired(lambda *_: Later(lambda reply: None)) as (_, pair):
        assert pair.step(get() + follows)
        assert pair.conn.send_answer(text("later"))
        assert pair.conn.state == READ_HEAD
        assert pair.conn.events == (WAIT_OUTPUT if follows else WAIT_INPUT)
        pair.conn.deadline = 0.0
        assert pair.step(get("/x", "Connection: close") + b"more")
        assert pair.conn.send_answer(text("later"))
        if not follows:
            assert (pair.conn.state, pair.conn.events) == (LINGER, WAIT_INPUT)


# -- what is sent


@pytest.mark.parametrize("width", [1, 7, 100, 20_000])
@pytest.mark.parametrize("size", [0, 300, 60_000])
def test_an_answer_is_whole_however_little_the_socket_takes(width: int, size: int) -> None:
    with paired() as (service, pair):
        pair.conn.socket = Narrow(pair.conn.socket, max(width, size // 100))  # type: ignore[assignment]
        assert pair.step(get(f"/big/{size}"))
        answer = pair.received()
        while pair.conn.state == SEND:
            assert pair.step()
            answer += pair.received()
        head, body = answer.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 200 OK\r\nDate: ")
        assert f"Content-Length: {size}".encode() in head
        assert body == bytes(size)
        assert service.log == [("GET", f"/big/{size}", 200, size)]
        assert pair.conn._output == []


def test_nothing_is_lost_where_the_socket_is_full() -> None:
    with paired() as (service, pair):
        filled = pair.fill()
        assert pair.step(get("/get-only"))
        assert pair.step(), "there is no room yet"
        assert len(pair.client.recv(filled, socket.MSG_WAITALL)) == filled
        assert pair.step()
        answer = pair.received()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"\r\n\r\ngot")
        assert service.log[-1][3] == 3


@pytest.mark.parametrize(
    ("body", "whole"), [([], b""), ([b"a"], b"a"), ([b"a", b"b", b"c"], b"abc"), ((b"a",), b"a")]
)
def test_all_parts_of_a_result_are_sent(body: Any, whole: bytes) -> None:
    with serving(simple_app(body=body)) as service:
        assert service.client().ask(get()).body == whole


def test_a_body_is_not_held_while_its_answer_is_sent_nor_when_one_came_later() -> None:
    kept = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        kept.append(environ)
        if environ["PATH_INFO"] == "/later":
            return Later(lambda reply: reply(text("later")))
        start_response("200 OK", [])
        return [bytes(16_000_000)]

    with serving(app) as service:
        client = service.client()
        client.send(put(b"abc"))
        eventually(service.server.parked_bytes)
        assert "wsgi.input" not in kept[0]
        assert service.client().ask(put(b"abc", target="/later")).body == b"later"
        eventually(lambda: "wsgi.input" not in kept[1])


def test_a_server_without_a_hook_serves() -> None:
    with serving(on_response=None) as service:
        client = service.client()
        assert [client.ask(get()).status for _ in range(2)] == [200, 200]


def test_a_later_answer_that_is_a_refusal_leaves_the_connection_open() -> None:
    def refused(reply: Any) -> None:
        raise refuse(503, "overloaded", "Try again.")

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/refused":
            return Later(refused)
        start_response("200 OK", [])
        return [b""]

    with serving(app) as service:
        client = service.client()
        assert client.ask(get("/refused")).status == 503
        assert client.is_open()


# -- limits


def test_a_head_may_have_all_bytes_that_it_may_have_and_not_one_more() -> None:
    with serving(max_header_bytes=300) as service:
        start = get("/x", "X: ")[:-4]
        exact = start + b"a" * (300 - len(start))
        client = service.client()
        assert client.ask(exact + b"\r\n\r\n").status == 200
        answer = client.ask(exact + b"a\r\n\r\n")
        assert answer.status == 431
        assert b"Send at most 300 bytes of headers." in answer.body
        answer = service.client().ask(b"GET /" + b"a" * 300)
        assert answer.status == 414
        assert b"at most 8192 bytes" in answer.body


def test_a_body_may_have_all_bytes_that_it_may_have_and_not_one_more() -> None:
    with serving(max_body_bytes=10) as service:
        client = service.client()
        assert client.ask(put(b"a" * 10)).body == b"a" * 10
        answer = client.ask(put(b"a" * 11))
        assert answer.status == 413
        assert b"Send a body of at most 10 bytes." in answer.body


def test_a_body_that_ends_early_is_told_how_much_is_missing() -> None:
    with serving() as service:
        client = service.client()
        client.send(put(b"a" * 100)[:-60])
        client.finish()
        answer = client.answer()
        assert answer is not None
        assert b"Send the 60 bytes which Content-Length" in answer.body


def test_what_came_with_its_head_is_neither_checked_before_nor_continued() -> None:
    checked = []

    def check(environ: dict[str, Any]) -> Answer | None:
        checked.append(environ["PATH_INFO"])
        return None

    with paired(check=check) as (_, pair):
        assert pair.step(put(b"abc", "Expect: 100-continue"))
        assert not checked
        assert pair.received().startswith(b"HTTP/1.1 200 ")
        assert pair.step(put(b"abc", "Expect: 100-continue", target="/half")[:-1])
        assert checked == ["/half"]
        assert pair.received() == b""
        assert pair.step(b"c")
        assert pair.received().startswith(b"HTTP/1.1 200 ")


def test_a_check_may_refuse_before_the_body_comes() -> None:
    with serving(check=lambda environ: text("no", 403)) as service:
        client = service.client()
        answer = client.ask(put(b"abc", "Expect: 100-continue")[:-3])
        assert (answer.status, answer.body) == (403, b"no")
        assert client.at_end()
        assert not service.calls


# -- memory


def test_a_large_head_that_its_client_gives_up_is_given_back() -> None:
    budget = Budget(30_000)
    with paired(budget=budget) as (_, pair):
        assert pair.step(get("/x", "x: " + "y" * 10_000)[:-2])
        assert budget.used() > 10_000
        pair.conn.close()
        assert budget.used() == 0
        assert pair.conn not in pair.conn.server.connections
        assert pair.conn.socket.fileno() == -1


def test_a_body_that_has_come_is_refused_where_its_answer_has_no_room() -> None:
    budget = Budget(100_000, factor=2)
    other = Reservation(budget)
    with paired(budget=budget) as (service, pair):
        assert pair.step(put(bytes(40_000))[:-1])
        while pair.conn._received < 39_999:
            assert pair.step()
        assert other.raise_to(50_000)
        assert pair.step(b"\0")
        assert pair.received().startswith(b"HTTP/1.1 503 ")
        assert not service.calls
        assert budget.refused == 1
        pair.conn.close()
        assert budget.used() == 50_000


def test_a_budget_by_itself() -> None:
    budget = Budget(100)
    assert budget.refused == 0
    assert budget.change(0, 60)
    assert budget.change(0, 40), "to the last byte"
    assert not budget.change(0, 1)
    assert budget.refused == 1
    assert not budget.change(40, 41)
    assert budget.change(40, 30, 200), "less than before is never refused"
    assert budget.change(0, 500, force=True)
    assert (budget.used(), budget.refused) == (590, 2)
    assert Budget().change(0, 1 << 60)
    assert Budget().factor == 1


# -- the head of an answer


def composed(
    status: str = "200 OK",
    headers: Any = (),
    body: bytes = b"",
    *,
    method: str = "GET",
    version: str = "HTTP/1.1",
    keep: bool = True,
) -> tuple[list[str], bytes, bool]:
    environ = {"REQUEST_METHOD": method, "SERVER_PROTOCOL": version}
    head, sent, keep = compose(environ, status, list(headers), body, STAMP, keep)
    assert head.endswith(b"\r\n\r\n")
    return head[:-4].decode().split("\r\n"), bytes(sent), keep


def test_the_lines_of_an_answer() -> None:
    given = [(name, "x") for name in ("Server", "Date", "Keep-Alive", "Transfer-Encoding")]
    given.append(("A", "b"))
    lines = ["HTTP/1.1 200 OK", "Date: d", "Server: s", "A: b", "Content-Length: 3"]
    assert composed(headers=given, body=b"abc") == (lines, b"abc", True)
    given = [("A", "b"), ("Content-Length", "3"), ("Connection", "upgrade")]
    assert composed(headers=given, body=b"abc") == (lines, b"abc", True)
    closes = ([*lines, "Connection: close"], b"abc", False)
    assert composed(headers=given, body=b"abc", keep=False) == closes
    assert composed(headers=[*given, ("connection", "Close")], body=b"abc") == closes
    kept = ([*lines, "Connection: keep-alive"], b"abc", True)
    assert composed(headers=given, body=b"abc", version="HTTP/1.0") == kept


def test_head_says_the_length_that_was_declared_or_that_of_the_body() -> None:
    lines, body, _ = composed(headers=[("Content-Length", "99")], body=b"", method="HEAD")
    assert (lines[-1], body) == ("Content-Length: 99", b"")
    lines, body, _ = composed(body=b"abc", method="HEAD")
    assert (lines[-1], body) == ("Content-Length: 3", b"")


@pytest.mark.parametrize("status", ["200", "200 OK", "599 Last", "204 No Content", "304 x"])
def test_final_statuses_are_sent(status: str) -> None:
    lines, body, _ = composed(status, body=b"abc")
    assert lines[0] == f"HTTP/1.1 {status}"
    assert body == (b"" if status[:3] in ("204", "304") else b"abc")
    assert ("Content-Length: 3" in lines) == bool(body)


@pytest.mark.parametrize("status", ["199 x", "600 x", "100 Continue", "2000 x", "200x", "", "x"])
def test_other_statuses_are_a_defect(status: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        composed(status)
    with pytest.raises(ValueError):  # noqa: PT011
        compose_stream(status, [], STAMP, is_chunked=True)


def test_a_declared_length_that_is_wrong_is_a_defect() -> None:
    with pytest.raises(ValueError, match="Content-Length is 2, but the body has 3"):
        composed(headers=[("Content-Length", "2")], body=b"abc")


@pytest.mark.parametrize("value", ["a\r\nb", "a\n", "\r", "a\0", "\x7f"])
def test_a_control_character_is_a_defect_also_of_a_stream(value: str) -> None:
    with pytest.raises(ValueError, match="a control character"):
        composed(headers=[("X", value)])
    with pytest.raises(ValueError, match="a control character"):
        compose_stream("200 OK", [("X", value)], STAMP, is_chunked=True)


def test_the_head_of_a_stream() -> None:
    given = [("A", "b"), ("Content-Length", "9"), ("Date", "x")]
    for is_chunked in (True, False):
        head = compose_stream("200 OK", given, STAMP, is_chunked=is_chunked)
        chunked = b"Transfer-Encoding: chunked\r\n" if is_chunked else b""
        assert head == (
            b"HTTP/1.1 200 OK\r\nDate: d\r\nServer: s\r\nA: b\r\n"
            + chunked
            + b"Connection: close\r\n\r\n"
        )
