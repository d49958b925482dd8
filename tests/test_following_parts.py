"""Followers and the feed by themselves, over stores that answer as they are told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from poky.access.gate import Decision, Verdict
from poky.api.changes import COMMENT_SECONDS, MOST_WAIT, _Events, get_changes
from poky.feed import Cursor, Feed, Follower
from poky.feed import feed as feed_module
from poky.http import Refused
from poky.store import Changed, ChangesPage, ShardedStore, StoreError
from tests.service import wait_until

HERE = "1.7.7."
AWAY = StoreError(503, "Away.", code="database_unavailable")
GONE = StoreError(404, "Gone.", code="bucket_not_found")


def change(key: str, xid: int = 9, following: str = "1.10.10.") -> Changed:
    return Changed(key, "delete", 1, None, None, xid, following)


class Told:
    """Store, lane, feed and background: each page is as it was told, and what is done is kept."""

    is_stopping = False

    def __init__(self, *pages: Any) -> None:
        self.pages = list(pages)
        self.asked: list[Any] = []
        self.work: list[Callable[[], None]] = []
        self.busy = 0  # how often the lane has no thread
        self.inside: set[Any] = set()
        self.joined: list[Any] = []
        self.left: list[Any] = []
        self.tasks: list[Any] = []
        self.runs_at_once = True
        self.gate: Any = None
        self.store: Any = self
        self.lanes = {"changes": self}
        self.feed: Any = self

    # the store

    def held_policy(self) -> Any:
        return None

    def under(self, *_: Any) -> Any:
        return nullcontext()

    def changes(self, *place: Any) -> Any:
        self.asked.append(place)
        page = self.pages.pop(0) if self.pages else ChangesPage([], HERE, True, "")
        if isinstance(page, Exception):
            raise page
        return page

    def renew_changes(self) -> None: ...

    # the lane

    def submit(self, work: Any, busy: Any, *_: Any) -> None:
        if self.busy:
            self.busy -= 1
            busy(StoreError(503, "All threads are busy.", code="server_busy"))
        elif self.runs_at_once:
            work()
        else:
            self.work.append(work)

    # the feed

    def admit(self, who: Any) -> None:
        self.inside.add(who)

    def join(self, who: Any) -> None:
        self.joined.append(who)

    def leave(self, who: Any) -> None:
        self.left.append(who)

    def release(self, who: Any) -> None:
        self.inside.discard(who)

    # the background

    def add(self, name: str, run: Any, **options: Any) -> None:
        self.tasks.append((name, run, options["scope"], options["period"]))


def ask(told: Told, query: str = "", accept: str = "application/json", method: str = "GET") -> Any:
    environ = {
        "REQUEST_METHOD": method,
        "QUERY_STRING": query,
        "HTTP_ACCEPT": accept,
        "PATH_INFO": "/changes/b",
    }
    later = get_changes(told, environ, "b")  # type: ignore[arg-type]
    assert later.watched
    return later


def shown(answer: Any) -> Any:
    return json.loads(bytes(answer.body))


def events(told: Told, limit: int = 10) -> tuple[_Events, list[Any]]:
    answers: list[Any] = []
    request = _Events(told, {"REQUEST_METHOD": "GET"}, "b", "", "0", limit)
    request.begin(answers.append)
    return request, answers


def sent(request: _Events) -> bytes:
    """What it has written, and is now sent."""
    assert request._stream is not None
    data = request._stream.take()
    request._stream.settle()
    return data


# -- requests


@pytest.mark.parametrize(
    ("query", "limit", "wait"),
    [
        ("", 100, 0.0),
        ("limit=1", 1, 0.0),
        ("limit=1000&wait=60", 1000, 60.0),
        ("wait=0.5", 100, 0.5),
        ("wait=59.999", 100, 59.999),
    ],
)
def test_limits_and_waits_up_to_the_most_are_taken(query: str, limit: int, wait: float) -> None:
    poll = ask(Told(), query).begin.__self__
    assert (poll._limit, poll.wait, poll._after, poll._prefix) == (limit, wait, "", "")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("limit=0", "limit is a whole number from 1 to 1000."),
        ("limit=1001", "limit is a whole number from 1 to 1000."),
        ("limit=1e2", "limit is a whole number from 1 to 1000."),
        ("wait=60.001", f"wait is a number of seconds from 0 to {MOST_WAIT}."),
        ("wait=1.2345", f"wait is a number of seconds from 0 to {MOST_WAIT}."),
        ("wait=inf", f"wait is a number of seconds from 0 to {MOST_WAIT}."),
    ],
)
def test_others_are_refused_in_words(query: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        ask(Told(), query)
    assert shown(refused.value.answer)["detail"] == said


def test_a_bucket_that_cannot_be_is_refused() -> None:
    with pytest.raises(Refused) as refused:
        get_changes(Told(), {"REQUEST_METHOD": "GET", "QUERY_STRING": ""}, "B/")  # type: ignore[arg-type]
    assert shown(refused.value.answer)["status"] == 400


def test_a_page_of_a_former_stay_is_asked_in_its_lane() -> None:
    told = Told()
    told.runs_at_once = False
    places: list[Any] = []
    told.submit = lambda work, busy, *place: places.append((work, place))  # type: ignore[method-assign]
    poll = ask(told).begin.__self__
    stay = {"shard": 2}
    for former, place in ((None, ("b", None)), (stay, ("b", 2))):
        poll._submit(former)
        work, where = places.pop()
        work()
        assert where == place
        assert poll._page_of is former
        assert poll._is_former is (former is not None)


def test_head_never_waits() -> None:
    assert ask(Told(), "wait=60", method="HEAD").begin.__self__.wait == 0
    told = Told()
    answers: list[Any] = []
    ask(told, "wait=60", "text/event-stream", "HEAD").begin(answers.append)
    assert not told.inside
    assert not told.joined
    (answer,) = answers
    assert (answer.status, answer.body) == ("200 OK", b"")
    assert ("Content-Type", "text/event-stream") in answer.headers


def test_who_waits_has_a_place_until_it_is_answered() -> None:
    told = Told()
    answers: list[Any] = []
    later = ask(told, "wait=30")
    poll = later.begin.__self__
    later.begin(answers.append)
    assert told.inside == {poll}
    assert told.joined == [poll]
    poll.tick(time.monotonic() + 29)
    assert not answers
    poll.tick(time.monotonic() + 31)
    poll.tick(time.monotonic() + 31)
    assert [shown(each) for each in answers] == [{"changes": [], "next": HERE}]
    assert not told.inside
    told = Told()
    later = ask(told, "wait=30")
    later.begin(answers.append)
    later.cancel()
    assert not told.inside


def test_who_does_not_wait_takes_no_place() -> None:
    told = Told()
    answers: list[Any] = []
    told.admit = answers.append  # type: ignore[method-assign]
    ask(told, "wait=0").begin(answers.append)
    assert [shown(each) for each in answers] == [{"changes": [], "next": HERE}]
    assert not told.joined


def test_a_page_goes_no_further_than_it_may_have() -> None:
    told = Told()
    answers: list[Any] = []
    later = ask(told, "wait=30&limit=2&prefix=a")
    poll = later.begin.__self__
    later.begin(answers.append)
    end = Cursor.parse("1.12.12.")
    poll.take([change("b", following="1.8.8.")], end)
    assert not answers, "none that matches"
    assert poll.cursor == end
    more = [change(f"a{xid}", xid, f"1.{xid + 1}.{xid + 1}.") for xid in (12, 13, 14)]
    poll.take(more, Cursor.parse("1.15.15."))
    assert [each["key"] for each in shown(answers[0])["changes"]] == ["a12", "a13"]
    assert shown(answers[0])["next"] == "1.14.14."


def test_a_server_that_stops_answers_who_waits_and_nobody_else() -> None:
    told = Told()
    told.runs_at_once = False
    answers: list[Any] = []
    later = ask(told, "wait=30")
    later.begin(answers.append)
    later.stop()
    assert not answers, "its page is being read"
    told.work.pop()()
    later.stop()
    later.stop()
    assert [shown(each) for each in answers] == [{"changes": [], "next": HERE}]


def test_a_failure_is_answered_once() -> None:
    told = Told(AWAY)
    answers: list[Any] = []
    later = ask(told, "wait=30")
    later.begin(answers.append)
    later.begin.__self__.fail(GONE)
    assert [each.status for each in answers] == ["503 Service Unavailable"]
    assert not told.inside


# -- rights


class Gated:
    """A gate that decides as it is told."""

    def __init__(self, *decisions: tuple[Verdict, str]) -> None:
        self.decisions = [Decision(verdict, tag, None, 0.0) for verdict, tag in decisions]
        self.forgotten: list[str] = []
        self.asked: list[Any] = []

    def decide(self, *place: Any) -> Decision:
        self.asked.append(place)
        return self.decisions.pop(0)

    def forget(self, policy: str) -> None:
        self.forgotten.append(policy)


def test_a_right_is_decided_under_the_policy_that_a_page_was_read_under() -> None:
    told, yes = Told(), Verdict.GRANTED
    poll = ask(told).begin.__self__
    assert poll.check is None
    told.gate = gate = Gated((yes, "new"), (yes, "new"))
    poll = ask(told).begin.__self__
    assert poll.check is None, "it was not decided under any"
    poll._environ["HTTP_AUTHORIZATION"] = "Bearer x"
    assert poll._decide("new") == "new"
    assert gate.asked == [("Bearer x", right, "b") for right in ("list", "read")]
    assert not gate.forgotten
    told.gate = gate = Gated((yes, "old"), (yes, "new"), (yes, "new"))
    assert poll._decide("new") == "new"
    assert gate.forgotten == ["old"]
    told.gate = gate = Gated((yes, "old"), (yes, "old"))
    assert poll._decide(None) == "old", "the one of now"
    assert not gate.forgotten
    told.gate = gate = Gated((yes, "new"), (Verdict.REFUSED, "new"))
    with pytest.raises(Refused):
        poll._decide("new")


def test_what_was_decided_is_looked_at_again() -> None:
    told = Told()
    told.gate = Gated()
    told.held_policy = lambda: ("tag", None)  # type: ignore[method-assign]
    poll = ask(told).begin.__self__
    assert poll.policy == "tag"
    assert poll.check == poll._decide


# -- streams


def test_a_stream_tries_again_where_no_thread_is_free() -> None:
    told = Told(ChangesPage([change("a")], HERE, False, ""), ChangesPage([], HERE, True, ""))
    request, answers = events(told, 1)
    assert b'"key":"a"' in sent(request)
    told.busy = 3
    request._drained()
    assert told.busy == 0
    assert len(answers) == 1
    assert told.joined == [request]
    told.busy = 1
    _, answers = events(told)
    assert [each.status for each in answers] == ["503 Service Unavailable"]


def test_a_stream_that_is_to_stop_before_it_began_ends_at_once() -> None:
    told = Told()
    told.runs_at_once = False
    request, answers = events(told)
    request.stop()
    assert not answers
    told.work.pop()()
    (answer,) = answers
    assert answer.body.is_over
    assert sent(request).startswith(b"retry: 1000\n")
    assert not told.inside


def test_a_stream_that_is_over_reads_and_writes_no_more() -> None:
    told = Told()
    request, _ = events(told)
    sent(request)
    request._closed()
    assert not told.inside
    request._send(b"late")
    request._follow(HERE)
    request._drained()
    assert sent(request) == b""
    assert not told.joined
    assert len(told.asked) == 1


def test_a_stream_sends_what_matches_and_says_where_it_is() -> None:
    told = Told()
    request, _ = events(told)
    request._prefix = "a"
    assert sent(request) == b"retry: 1000\nid: 1.7.7.\n\n"
    request.take([change("a")], Cursor.parse("1.10.10."))
    assert sent(request) == b"", "it does not follow yet"
    request._drained()
    assert told.joined == [request]
    assert time.monotonic() + COMMENT_SECONDS - 5 < request._next_comment
    assert request._next_comment <= time.monotonic() + COMMENT_SECONDS
    request._next_comment = 0.0
    request.take([change("b")], Cursor.parse("1.10.10."))
    assert sent(request) == b""
    assert request._next_comment == 0.0, "nothing was sent"
    request.take([change("a", 10, "1.11.11."), change("b", 11)], Cursor.parse("1.12.12."))
    said = sent(request)
    assert said.startswith(b"id: 1.12.12.\ndata: {")
    assert said.count(b"data:") == 1
    assert time.monotonic() + COMMENT_SECONDS - 5 < request._next_comment


def test_a_stream_shows_that_it_lives_unless_it_has_something_to_send() -> None:
    request, _ = events(Told())
    sent(request)
    request._drained()
    due = request._next_comment
    request.tick(due - 1)
    assert sent(request) == b""
    request.tick(due)
    assert request._next_comment == due + COMMENT_SECONDS
    request.tick(due + COMMENT_SECONDS)
    assert request._next_comment == due + COMMENT_SECONDS, "that has not been sent"
    assert sent(request) == b": \nid: 1.7.7.\n\n"


def test_a_slow_reader_leaves_the_feed_only_if_there_is_something_for_it() -> None:
    told = Told()
    request, _ = events(told)
    request._prefix = "a"
    sent(request)
    request._drained()
    assert request._stream is not None
    request._stream.write(b"not sent")
    request.take([change("b")], Cursor.parse("1.10.10."))
    assert not told.left
    assert str(request.cursor) == "1.10.10."
    request.take([change("a", 10)], Cursor.parse("1.11.11."))
    assert told.left == [request]
    assert request._stream.take() == b"not sent"
    request._stream.settle()
    request._drained()  # and reads on from where it was
    assert told.asked[-1] == ("b", "1.10.10.", "a", 10)


def test_a_stream_that_fails_ends_and_one_that_has_not_begun_is_refused() -> None:
    told = Told()
    request, answers = events(told)
    sent(request)
    request.fail(AWAY)
    assert answers[0].body.is_over
    assert not told.inside
    assert len(answers) == 1
    told = Told(GONE)
    request, answers = events(told)
    assert [each.status for each in answers] == ["404 Not Found"]
    assert not told.inside


# -- the feed


class Watching(Follower):
    """Keeps what it is told."""

    def __init__(self, cursor: str = HERE) -> None:
        super().__init__("b")
        self.cursor = Cursor.parse(cursor)
        self.told: list[Any] = []
        self.failed: list[Exception] = []
        self.ticks = 0

    def take(self, changes: list[Changed], page: Cursor) -> None:
        self.told += [each.key for each in changes]
        self.cursor = self.cursor.after(page)

    def fail(self, error: Exception) -> None:
        self.failed.append(error)

    def tick(self, now: float) -> None:
        assert abs(now - time.monotonic()) < 5
        self.ticks += 1


PLACE = ("b", 0)


def test_a_feed_has_its_days_renewed_by_one_of_the_fleet() -> None:
    told = Told()
    feed = Feed(told, told, 1)  # type: ignore[arg-type]
    assert told.tasks == [("changes", told.renew_changes, "fleet", feed_module.RENEW)]
    figures = feed.figures()
    assert (figures["followers"].read(), figures["changes_statements"].read()) == (0, 0)
    feed._look(PLACE, [Watching()], is_due=True)
    assert figures["changes_statements"].read() == 1


def test_as_many_are_admitted_as_may_wait() -> None:
    feed = Feed(Told(), Told(), 2)  # type: ignore[arg-type]
    who = [object() for _ in range(3)]
    for each in who[:2]:
        feed.admit(each)
    with pytest.raises(StoreError) as refused:
        feed.admit(who[2])
    assert (refused.value.status, refused.value.code) == (503, "too_many_followers")
    feed.release(who[2])
    feed.release(who[0])
    feed.release(who[0])
    assert feed.followers == 1
    feed.admit(who[2])
    assert feed.followers == 2


def test_who_was_released_does_not_join() -> None:
    told = Told()
    feed = Feed(told, told, 2)  # type: ignore[arg-type]
    gone = Watching()
    feed.join(gone)
    assert not feed._following
    assert not feed._running
    feed.admit(gone)
    feed._running.add(None)  # so that no thread begins
    feed.join(gone)
    assert list(feed._following) == [gone]
    feed.release(gone)
    assert not feed._following


def test_a_look_says_whether_there_is_more() -> None:
    told = Told(
        ChangesPage([], "1.9.9.", True, ""),
        ChangesPage([], "1.9.9.", False, ""),
        ChangesPage([change("a")], "1.10.10.", False, ""),
        ChangesPage([change("b", 10)], "1.11.11.", True, ""),
        ChangesPage([], "1.12.12.", True, ""),
    )
    feed = Feed(told, told, 1)  # type: ignore[arg-type]
    who = Watching()
    assert feed._look(PLACE, [who], is_due=False) is False
    assert feed._look(PLACE, [who], is_due=False) is True
    assert str(who.cursor) == HERE, "it is moved on when that is due"
    assert feed._look(PLACE, [who], is_due=False) is True
    assert feed._look(PLACE, [who], is_due=False) is False
    assert who.told == ["a", "b"]
    assert feed._look(PLACE, [who], is_due=True) is False
    assert str(who.cursor) == "1.12.12."
    assert told.asked[-1] == ("b", "1.11.11.", "", feed_module.PAGE)


def test_a_database_that_is_away_is_asked_again_after_a_pause() -> None:
    told = Told(AWAY, GONE)
    feed = Feed(told, told, 1)  # type: ignore[arg-type]
    who = [Watching(), Watching()]
    assert feed._look(PLACE, who, is_due=True) is False  # type: ignore[arg-type]
    assert not who[0].failed
    assert time.monotonic() < feed._paused[PLACE] <= time.monotonic() + feed_module.PAUSE
    assert feed._look(PLACE, who, is_due=True) is False  # type: ignore[arg-type]
    assert [each.failed for each in who] == [[GONE], [GONE]]


def test_a_database_that_no_setting_names_is_not_waited_for() -> None:
    class Some(ShardedStore):
        shards = {1: None, 2: None}  # type: ignore[assignment]  # noqa: RUF012

        def __init__(self) -> None:
            pass

        def changes_of(self, *_: Any) -> Any:
            raise AWAY

        def renew_changes(self) -> None: ...

    feed = Feed(Some(), Told(), 1)  # type: ignore[arg-type]
    for shard, failed in ((2, []), (3, [AWAY])):
        who = Watching()
        who.former = {"shard": shard}
        assert feed._look(PLACE, [who], is_due=True) is False
        assert who.failed == failed
        assert who.former is None


@pytest.mark.parametrize(
    ("outcome", "may", "failed"),
    [("new", True, 0), (AWAY, False, 0), (GONE, False, 1), (RuntimeError(), False, 1)],
)
def test_a_follower_is_told_only_what_it_may_read(outcome: Any, may: bool, failed: int) -> None:
    def check(policy: str | None) -> str:
        asked.append(policy)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    asked: list[str | None] = []
    told = Told(ChangesPage([change("a")], "1.10.10.", True, "new"))
    feed = Feed(told, told, 1)  # type: ignore[arg-type]
    who = Watching()
    assert feed._check(who, "new") is True, "whoever is not checked"
    who.check, who.policy = check, "old"
    assert feed._check(who, "old") is True
    assert not asked
    feed._look(PLACE, [who], is_due=True)
    assert asked == ["new"]
    assert who.told == (["a"] if may else [])
    assert len(who.failed) == failed
    assert who.policy == ("new" if may else "old")
    assert feed._check(who, None) is may
    assert len(asked) == 2


def test_the_thread_of_a_feed_ticks_outlives_failures_and_ends_with_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(feed_module, "TICK", 0.01)
    monkeypatch.setattr(feed_module, "CHECK", 0.02)
    told = Told(RuntimeError("once"), AWAY)
    feed = Feed(told, told, 1)  # type: ignore[arg-type]
    monkeypatch.setattr(feed_module, "PAUSE", 0.1)
    who = Watching()
    checked: list[Any] = []
    who.check = lambda policy: checked.append(policy) or ""  # type: ignore[func-returns-value]
    for _ in range(2):
        feed.admit(who)
        feed.join(who)
        [thread] = [each for each in threading.enumerate() if each.name == "poky-feed"]
        assert thread.daemon
        who.ticks = 0
        checked.clear()
        wait_until(lambda: who.ticks > 2)
        wait_until(lambda: None in checked)
        wait_until(lambda: PLACE not in feed._paused and len(told.asked) > 4)
        feed.release(who)
        wait_until(lambda: not feed._running)
        assert not feed._held
    assert caplog.messages.count("looking for changes failed") == 1
    assert not who.failed


def test_who_waits_costs_no_more_looks_and_checks_than_it_should(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(feed_module, "TICK", 30.0)
    monkeypatch.setattr(feed_module, "CHECK", 30.0)
    told = Told()
    feed = Feed(told, told, 1)  # type: ignore[arg-type]
    who = Watching()
    checked: list[Any] = []
    who.check = lambda policy: checked.append(policy) or ""  # type: ignore[func-returns-value]
    feed.admit(who)
    began = time.monotonic()
    feed.join(who)
    wait_until(lambda: time.monotonic() > began + 10 * feed_module.PERIOD and told.asked)
    feed.release(who)
    most = (time.monotonic() - began) / feed_module.PERIOD + 2
    assert len(told.asked) <= most
    assert who.ticks == 1
    assert checked == [None]


def test_the_thread_of_a_feed_ends_with_the_background() -> None:
    told = Told()
    background = SimpleNamespace(is_stopping=True, add=lambda *_, **__: None)
    feed = Feed(told, background, 1)  # type: ignore[arg-type]
    who = Watching()
    feed.admit(who)
    feed.join(who)
    wait_until(lambda: not feed._running)
    assert not told.asked
