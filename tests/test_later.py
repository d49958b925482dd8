"""Answers that are completed later: in any thread, in order, and to the end of server or client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poky.http import Answer, Later, refuse, text
from tests.support.sockets import Client, eventually, get, put, serving

Reply = Callable[[Answer], None]


class Parking:
    """An application that completes nothing by itself, but /now and /probe."""

    def __init__(self, *, watched: bool = False) -> None:
        self.watched = watched
        self.replies: list[Reply] = []
        self.cancelled = 0
        self.stopped = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] in ("/now", "/probe"):
            start_response("200 OK", [])
            return [b"now"]
        if environ["PATH_INFO"] == "/within":
            return Later(lambda reply: reply(text("within")))
        if environ["PATH_INFO"] == "/fails":
            return Later(self._fail)
        if environ["PATH_INFO"] == "/refused":
            return Later(self._refuse)
        if environ["PATH_INFO"] == "/bad":
            return Later(lambda reply: reply(Answer("200 OK", [("X", "a\r\nb")], b"")))
        box: list[Reply] = []

        def begin(reply: Reply) -> None:
            box.append(reply)
            self.replies.append(reply)

        return Later(
            begin,
            watched=self.watched,
            cancel=lambda: self._cancel(box),
            stop=lambda: self._stop(box),
        )

    def _fail(self, reply: Reply) -> None:
        raise RuntimeError("secret")

    def _refuse(self, reply: Reply) -> None:
        raise refuse(503, "overloaded", "Try again.")

    def _cancel(self, box: list[Reply]) -> None:
        self.cancelled += 1

    def _stop(self, box: list[Reply]) -> None:
        self.stopped += 1
        if self.watched and box:
            box.pop()(text("stopping", 503))


def test_an_answer_is_completed_by_another_thread() -> None:
    parking = Parking()
    with serving(parking, threads=1) as service:
        client = service.client()
        client.send(get("/later"))
        eventually(lambda: parking.replies)
        assert service.client().ask(get("/now")).body == b"now"  # the only thread is free
        threading.Thread(target=parking.replies[0], args=(text("later"),)).start()
        answer = client.answer()
        assert answer is not None
        assert answer.body == b"later"
        assert client.is_open()


def test_an_answer_may_be_completed_before_begin_returns() -> None:
    with serving(Parking(), threads=1) as service:
        client = service.client()
        for _ in range(3):
            assert client.ask(get("/within")).body == b"within"


def test_a_request_is_tried_again() -> None:
    """Pipelined ones as well, in order; a body that has been read is still there."""
    replies: list[Any] = []
    asked: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        asked.append(environ["REQUEST_METHOD"])
        if len(asked) % 2:
            return Later(replies.append)
        start_response("200 OK", [])
        return [environ["wsgi.input"].read() or b"no body"]

    with serving(app, threads=1) as service:
        client = service.client()
        client.send(get("/a") + put(b"body", target="/b") + get("/c"))
        for body in (b"no body", b"body", b"no body"):
            eventually(lambda: replies)
            replies.pop()(None)
            answer = client.answer()
            assert answer is not None
            assert answer.body == body
        assert asked == ["GET", "GET", "PUT", "PUT", "GET", "GET"]


@pytest.mark.parametrize("refusal", [None, text("no", 403)])
def test_a_check_of_the_head_may_come_later(refusal: Answer | None) -> None:
    replies: list[Any] = []
    checked: list[bool] = []

    def check(environ: dict[str, Any]) -> Later | None:
        checked.append(True)
        return Later(replies.append) if len(checked) == 1 else None

    with serving(threads=1, check=check) as service:
        client = service.client()
        client.send(put(b"", target="/b").replace(b": 0", b": 4"))
        eventually(lambda: replies)
        assert service.client().ask(get("/now")).status == 200  # the only thread is free
        replies.pop()(refusal)
        if refusal is None:
            eventually(lambda: len(checked) == 2)
        client.send(b"body")
        answer = client.answer()
        assert answer is not None
        assert (answer.status, answer.body) == ((403, b"no") if refusal else (200, b"body"))
        assert client.is_open() if refusal is None else client.at_end()


def test_pipelined_requests_are_answered_in_order() -> None:
    parking = Parking()
    with serving(parking, threads=1) as service:
        client = service.client()
        client.send(get("/later") + get("/now") + put(b"x", target="/later") + get("/within"))
        for body in (b"1", b"2"):
            eventually(lambda: parking.replies)
            time.sleep(0.05)
            assert len(parking.replies) == 1, "the next one must not begin"
            parking.replies.pop()(text(body.decode()))
            if body == b"1":
                first = client.answer()
                assert first is not None
                assert first.body == b"1"
                assert client.answer() is not None
        bodies = [client.answer(), client.answer()]
        assert [each.body for each in bodies if each] == [b"2", b"within"]


@pytest.mark.parametrize(("path", "status"), [("/fails", 500), ("/refused", 503), ("/bad", 500)])
def test_what_fails_is_answered_and_the_thread_lives(path: str, status: int) -> None:
    with serving(Parking(), threads=1) as service:
        for _ in range(3):
            answer = service.client().ask(get(path))
            assert answer.status == status
            assert b"secret" not in answer.body
        assert service.client().ask(get("/now")).status == 200
        eventually(lambda: not service.server.busy)


def test_a_watched_request_ends_with_its_client() -> None:
    parking = Parking(watched=True)
    with serving(parking, threads=1) as service:
        client = service.client()
        client.send(get("/later"))
        eventually(lambda: parking.replies)
        client.socket.close()
        eventually(lambda: parking.cancelled == 1)
        eventually(lambda: not service.server.busy)
        again = service.client()
        again.send(get("/later"))  # perhaps with the number of the descriptor that was closed
        eventually(lambda: len(parking.replies) == 2)
        parking.replies[0](text("too late"))
        parking.replies[1](text("in time"))
        answer = again.answer()
        assert answer is not None
        assert answer.body == b"in time"
        assert [each[2] for each in service.log] == [499, 200]


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def test_two_thousand_parked_requests_cost_little_memory_and_no_thread() -> None:
    parking = Parking(watched=True)
    count = 2000
    with serving(parking, threads=2) as service:
        service.client().ask(get("/now"))
        threads, before = threading.active_count(), _resident()
        clients = [Client(service.server.bind_addr) for _ in range(count)]
        for client in clients:
            client.send(get("/later"))
        eventually(lambda: len(parking.replies) == count)
        assert threading.active_count() <= threads
        assert _resident() - before < 200_000_000
        assert service.client().ask(get("/now")).body == b"now"
        for client in clients[:500]:  # some leave
            client.socket.close()
        eventually(lambda: parking.cancelled == 500)
        stopper = threading.Thread(target=service.server.stop)
        stopper.start()
        for client in clients[500:]:
            answer = client.answer()
            assert answer is not None
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            client.socket.close()
        stopper.join(20)
        assert not stopper.is_alive()
        assert parking.stopped == count - 500


def test_stop_waits_for_an_answer_that_is_completed() -> None:
    parking = Parking()
    with serving(parking, threads=2) as service:
        client = service.client()
        client.send(get("/later"))
        eventually(lambda: parking.replies)
        stopper = threading.Thread(target=service.server.stop)
        stopper.start()
        eventually(lambda: parking.stopped)
        parking.replies[0](text("done"))
        answer = client.answer()
        assert answer is not None
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")
        stopper.join(20)
        assert not stopper.is_alive()


def test_a_turn_that_takes_long_leaves_the_front_to_another_thread() -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/slow":
            waiting.set()
            assert go_on.wait(10)
        start_response("200 OK", [])
        return [b"ok"]

    with serving(app, threads=2) as service:
        slow = service.client()
        slow.send(get("/slow"))
        assert waiting.wait(10)
        began = time.monotonic()
        for _ in range(20):
            assert service.client().ask(get("/quick")).status == 200
        assert time.monotonic() - began < 5
        go_on.set()
        answer = slow.answer()
        assert answer is not None
        assert answer.status == 200


def test_what_waits_is_looked_at_while_a_turn_takes_long() -> None:
    looks, go_on = threading.Semaphore(0), threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        assert go_on.wait(10)
        start_response("200 OK", [])
        return [b"ok"]

    with serving(app, threads=2, late=looks.release) as service:
        client = service.client()
        client.send(get("/slow"))
        for _ in range(3):
            assert looks.acquire(timeout=10)
        go_on.set()
        assert client.answer() is not None


def test_after_turn_knows_a_lone_client() -> None:
    turns: list[bool] = []

    with serving(Parking(), threads=1, after_turn=turns.append) as service:
        client = service.client()
        for _ in range(4):
            client.ask(get("/now"))
        eventually(lambda: turns[-3:] == [True, True, True])
        other = service.client()
        other.ask(get("/now"))
        eventually(lambda: turns[-1] is False)
