"""/changes over HTTP: pages, waiting for changes, streams of events, and what ends them."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from poky.api.changes import _Events, _Poll, _Turn
from poky.feed import Cursor, Feed, Follower
from poky.store import Changed, ChangesElsewhere, ChangesPage, ShardedStore, Store, StoreError
from tests.conftest import Database
from tests.service import Client, Response, Service, running, wait_until
from tests.test_access import Maker, bearer, command
from tests.test_changes import put_many, query, record

pytestmark = pytest.mark.inside


@pytest.fixture(scope="module")
def service(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("following") / "log"
    with running(database.dsn_service, log, max_followers="20", threads="2") as service:
        yield service


@pytest.fixture
def client(service: Service) -> Client:
    return service.client()


@pytest.fixture
def followed(database: Database, bucket: str) -> str:
    """A bucket whose changes are recorded."""
    record(database, bucket)
    return bucket


def changes(client: Client, bucket: str, query: str = "", **headers: str) -> Any:
    answer = client.get(f"/changes/{bucket}{query}", **headers)
    assert answer.status == 200, answer.body
    return answer.json()


def keys(page: Any) -> list[str]:
    return [change["key"] for change in page["changes"]]


def figure(service: Service, name: str) -> float:
    text = service.admin().get("/metrics").body.decode()
    return float(re.findall(rf"(?m)^poky_{name} (.+)$", text)[0])


class Waiting:
    """A request that is answered later."""

    def __init__(self, service: Service, path: str, **headers: str) -> None:
        self.answer: Response | None = None
        self._thread = threading.Thread(target=self._ask, args=(service, path, headers))
        before = figure(service, "followers")
        self._thread.start()
        wait_until(lambda: self.answer or figure(service, "followers") > before)

    def _ask(self, service: Service, path: str, headers: dict[str, str]) -> None:
        self.answer = service.client(90).get(path, **headers)

    def result(self, timeout: float = 20) -> Response:
        self._thread.join(timeout)
        assert self.answer is not None, "no answer in time"
        return self.answer


class Events:
    """A stream of server-sent events, read by hand."""

    def __init__(self, service: Service, path: str, **headers: str) -> None:
        fields = {"Accept": "text/event-stream", **headers}
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.socket = socket.create_connection(("127.0.0.1", service.port), 20)
        self.socket.sendall("\r\n".join([f"GET {path} HTTP/1.0", *lines, "", ""]).encode())
        self.text = ""
        self.head = self._until("\r\n\r\n")
        self.cursor = ""

    def _until(self, end: str) -> str:
        while end not in self.text:
            data = self.socket.recv(65536)
            assert data, f"the stream ended: {self.text}"
            self.text += data.decode()
        found, self.text = self.text.split(end, 1)
        return found

    def next(self) -> Any:
        """The next change; its id becomes the cursor."""
        while True:
            lines = self._until("\n\n").split("\n")
            fields = dict(line.split(": ", 1) for line in lines if line.strip())
            self.cursor = fields.get("id", self.cursor)
            if "data" in fields:
                return json.loads(fields["data"])

    def begun(self) -> Events:
        """Wait for the first id."""
        self.cursor = self._until("\n\n").rpartition("id: ")[2]
        return self

    def at_end(self) -> bool:
        """Wait for the end; False if there is a change before it."""
        while data := self.socket.recv(65536):
            self.text += data.decode()
        return "data" not in self.text

    def close(self) -> None:
        self.socket.close()


# Pages.


def test_a_page_has_every_kind_of_change(client: Client, followed: str) -> None:
    begin = changes(client, followed)
    assert begin["changes"] == []
    put = client.put(f"/kv/{followed}/a", "1")
    client.request("POST", f"/kv/{followed}/b", "2")
    client.put(f"/kv/{followed}/a", "3", if_match=put.etag)
    client.put(f"/kv/{followed}/a", "4", if_match=put.etag)
    client.delete(f"/kv/{followed}/b")
    client.batch("PUT", followed, [{"key": "c", "data": "5"}, {"key": "d", "data": "6"}])
    client.batch("DELETE", followed, [{"key": "c"}, {"key": "missing"}])
    page = changes(client, followed, f"?after={begin['next']}")
    assert [(each["key"], each["result"]) for each in page["changes"]] == [
        ("a", "put"),
        ("b", "put"),
        ("a", "put"),
        ("b", "delete"),
        ("c", "put"),
        ("d", "put"),
        ("c", "delete"),
    ]
    assert page["changes"][0] == {
        "key": "a",
        "result": "put",
        "etag": put.etag,
        "modified_at": put.headers["Last-Modified"],
    }
    assert set(page["changes"][3]) == {"key", "result"}
    assert page["changes"][2]["etag"] == client.get(f"/kv/{followed}/a").etag
    assert changes(client, followed, f"?after={page['next']}")["changes"] == []


def test_pages_follow_each_other_from_the_oldest(client: Client, followed: str) -> None:
    for number in range(7):
        client.put(f"/kv/{followed}/k{number}", "v")
    found: list[str] = []
    after = "0"
    while page := changes(client, followed, f"?after={after}&limit=3"):
        found += keys(page)
        after = page["next"]
        if not page["changes"]:
            break
    assert found == [f"k{number}" for number in range(7)]
    assert keys(changes(client, followed, "?after=0&prefix=k6")) == ["k6"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?after=x", "bad_cursor"),
        ("?after=1.2.3", "bad_cursor"),
        ("?after=%00", "request_malformed"),
        ("?limit=0", "bad_query"),
        ("?limit=1001", "bad_query"),
        ("?limit=x", "bad_query"),
        ("?wait=61", "bad_query"),
        ("?wait=-1", "bad_query"),
        ("?wait=x", "bad_query"),
        ("?wait=", "bad_query"),
        ("?since=0", "bad_query"),
        ("?after=0&after=0", "bad_query"),
        ("?prefix=%20", "bad_key"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused(
    client: Client, followed: str, query: str, code: str
) -> None:
    answer = client.get(f"/changes/{followed}{query}")
    assert (answer.status, answer.code) == (400, code)


def test_a_bucket_without_a_feed_says_how_to_switch_it_on(
    client: Client, service: Service, database: Database, bucket: str
) -> None:
    service.admin().request("PUT", f"/buckets/{bucket}")
    for accept in ("application/json", "text/event-stream"):
        answer = client.get(f"/changes/{bucket}?wait=30", accept=accept)
        assert (answer.status, answer.code) == (404, "changes_off")
        assert answer.detail
        assert "poky bucket set NAME --changes 7d" in answer.detail
    if database.kind == "partitioned":
        assert client.get("/changes/never-made").code == "bucket_not_found"
    assert client.get("/changes/b%20d").status == 400


def test_a_cursor_that_is_too_old_is_gone(client: Client, followed: str) -> None:
    _, _, rest = changes(client, followed)["next"].partition(".")
    for accept in ("application/json", "text/event-stream"):
        answer = client.get(f"/changes/{followed}?after=17.{rest}&wait=30", accept=accept)
        assert (answer.status, answer.code) == (410, "changes_gone")


def test_head_and_other_methods(client: Client, followed: str) -> None:
    for accept, kind in (
        ("*/*", "application/json"),
        ("text/event-stream", "text/event-stream"),
    ):
        head = client.request("HEAD", f"/changes/{followed}?wait=60", headers={"Accept": accept})
        assert (head.status, head.headers["Content-Type"], head.body) == (200, kind, b"")
        assert head.headers["Cache-Control"] == "no-store"
    for method in ("PUT", "POST", "DELETE", "PATCH"):
        answer = client.request(method, f"/changes/{followed}", b"")
        assert answer.status == 405
        assert answer.headers["Allow"] == "GET, HEAD"


# Waiting.


def test_a_change_wakes_who_waits_for_it(client: Client, service: Service, followed: str) -> None:
    begin = changes(client, followed)["next"]
    waiting = [
        Waiting(service, f"/changes/{followed}?after={begin}&wait=60"),
        Waiting(service, f"/changes/{followed}?wait=60"),
        Waiting(service, f"/changes/{followed}?wait=60&prefix=b"),
    ]
    client.put(f"/kv/{followed}/a", "v")
    pages = [each.result().json() for each in waiting[:2]]
    assert [keys(page) for page in pages] == [["a"], ["a"]]
    assert waiting[2].answer is None
    client.put(f"/kv/{followed}/b", "v")
    assert keys(waiting[2].result().json()) == ["b"]
    assert keys(changes(client, followed, f"?after={pages[0]['next']}")) == ["b"]


def test_what_is_there_already_is_not_waited_for(client: Client, followed: str) -> None:
    client.put(f"/kv/{followed}/a", "v")
    assert keys(changes(client, followed, "?after=0&wait=60")) == ["a"]


def test_a_wait_ends_with_an_empty_page(client: Client, followed: str) -> None:
    began = time.monotonic()
    page = changes(client, followed, "?wait=0.3")
    assert time.monotonic() - began >= 0.3
    assert page["changes"] == []
    client.put(f"/kv/{followed}/a", "v")
    assert keys(changes(client, followed, f"?after={page['next']}")) == ["a"]


def test_more_than_a_page_at_once_is_given_page_by_page(
    client: Client, service: Service, followed: str
) -> None:
    waiting = Waiting(service, f"/changes/{followed}?wait=60&limit=2")
    names = [f"k{number}" for number in range(5)]
    client.batch("PUT", followed, [{"key": key, "data": "v"} for key in names])
    page = waiting.result().json()
    found = keys(page)
    while page["changes"]:
        page = changes(client, followed, f"?after={page['next']}&limit=2")
        found += keys(page)
    assert found == names


def test_those_who_wait_share_a_statement(client: Client, service: Service, followed: str) -> None:
    waiting = [Waiting(service, f"/changes/{followed}?wait=60") for _ in range(10)]
    before, began = figure(service, "changes_statements_total"), time.monotonic()
    time.sleep(0.5)
    statements = figure(service, "changes_statements_total") - before
    assert statements <= (time.monotonic() - began) / 0.05 + 2
    client.put(f"/kv/{followed}/a", "v")
    assert all(keys(each.result().json()) == ["a"] for each in waiting)


def test_who_waits_for_nothing_costs_nothing(service: Service) -> None:
    wait_until(lambda: figure(service, "followers") == 0)
    time.sleep(0.2)
    before = figure(service, "changes_statements_total")
    time.sleep(0.3)
    assert figure(service, "changes_statements_total") == before


def test_a_client_that_goes_gives_up_its_place(service: Service, followed: str) -> None:
    wait_until(lambda: figure(service, "followers") == 0)
    for accept in ("application/json", "text/event-stream"):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            head = f"GET /changes/{followed}?wait=60 HTTP/1.1\r\nHost: h\r\nAccept: {accept}"
            client.sendall(f"{head}\r\n\r\n".encode())
            wait_until(lambda: figure(service, "followers") == 1)
        wait_until(lambda: figure(service, "followers") == 0)


def test_a_place_too_many_is_refused(client: Client, service: Service, followed: str) -> None:
    wait_until(lambda: figure(service, "followers") == 0)
    path = f"/changes/{followed}?wait=60"
    waiting = [Waiting(service, path) for _ in range(20)]
    for accept in ("application/json", "text/event-stream"):
        answer = client.get(path, accept=accept)
        assert (answer.status, answer.code) == (503, "too_many_followers")
        assert answer.headers["Retry-After"]
    assert changes(client, followed)["changes"] == [], "without waiting it needs no place"
    client.put(f"/kv/{followed}/a", "v")
    for each in waiting:
        each.result()
    assert changes(client, followed, "?after=0&wait=60")["changes"]


def test_a_bucket_that_is_dropped_ends_the_wait(
    client: Client, service: Service, database: Database, followed: str
) -> None:
    waiting = Waiting(service, f"/changes/{followed}?wait=60")
    events = Events(service, f"/changes/{followed}").begun()
    service.admin().request("DELETE", f"/buckets/{followed}")
    code = "bucket_not_found" if database.kind == "partitioned" else "changes_off"
    assert (waiting.result().status, waiting.result().code) == (404, code)
    assert events.at_end()


# Events.


def test_events_are_changes_with_their_cursors(
    client: Client, service: Service, followed: str
) -> None:
    client.put(f"/kv/{followed}/before", "v")
    events = Events(service, f"/changes/{followed}").begun()
    assert "200 OK" in events.head
    assert "Content-Type: text/event-stream" in events.head
    assert "Cache-Control: no-store" in events.head
    etag = client.put(f"/kv/{followed}/a", "v").etag
    found = events.next()
    assert (found["key"], found["result"], found["etag"]) == ("a", "put", etag)
    client.delete(f"/kv/{followed}/a")
    assert events.next() == {"key": "a", "result": "delete"}
    # The cursors are those of pages.
    client.put(f"/kv/{followed}/b", "v")
    assert keys(changes(client, followed, f"?after={events.cursor}")) == ["b"]
    events.close()


@pytest.mark.parametrize("seen", range(5))
def test_a_stream_goes_on_after_any_event(
    client: Client, service: Service, followed: str, seen: int
) -> None:
    """Also in the midst of what was written at once, live or read from what is kept."""
    names = [f"k{number}" for number in range(5)]
    live = Events(service, f"/changes/{followed}").begun()
    client.batch("PUT", followed, [{"key": key, "data": "v"} for key in names])
    kept = Events(service, f"/changes/{followed}?after=0")
    for events in (live, kept):
        for key in names[: seen + 1]:
            assert events.next()["key"] == key
        resumed = Events(service, f"/changes/{followed}?after=0", Last_Event_ID=events.cursor)
        for key in names[seen + 1 :]:
            assert resumed.next()["key"] == key
        client.put(f"/kv/{followed}/last", "v")
        assert resumed.next()["key"] == "last"
        resumed.close()
        events.close()


def test_events_have_the_prefix(client: Client, service: Service, followed: str) -> None:
    client.put(f"/kv/{followed}/a1", "v")
    events = Events(service, f"/changes/{followed}?after=0&prefix=a")
    for key in ("b1", "a2", "b2"):
        client.put(f"/kv/{followed}/{key}", "v")
    assert [events.next()["key"] for _ in range(2)] == ["a1", "a2"]
    events.close()


def test_a_reader_that_is_slow_misses_nothing(
    client: Client, service: Service, followed: str
) -> None:
    events = Events(service, f"/changes/{followed}").begun()
    names = [f"{number:05}-" + "k" * 1000 for number in range(10_000)]  # sockets hold 6 MB
    for begin in range(0, len(names), 2500):
        batch = [{"key": key, "data": ""} for key in names[begin : begin + 2500]]
        assert client.batch("PUT", followed, batch).status == 200
    time.sleep(2)  # it is not given up
    assert [events.next()["key"] for _ in names] == names
    events.close()


class _Idle(Follower):
    def __init__(self, bucket: str) -> None:
        super().__init__(bucket)
        self.cursor = Cursor.parse("1.7.7.")

    def take(self, changes: list[Changed], page: Cursor) -> None: ...

    def tick(self, now: float) -> None: ...


class _Calls:
    """A store without changes, and work in the background that goes on; what was asked."""

    is_stopping = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def add(self, *arguments: Any, **options: Any) -> None: ...

    def renew_changes(self) -> None: ...

    def changes(self, bucket: str, *place: Any) -> ChangesPage:
        self.asked.append(bucket)
        return ChangesPage([], "1.7.7.", True, "")


def test_a_reader_that_is_slow_costs_no_look_at_the_changes() -> None:
    """It has left until it has taken what it was sent; others are looked for as before."""
    calls = _Calls()
    feed = Feed(calls, calls, 2)  # type: ignore[arg-type]
    slow, quick = _Idle("slow"), _Idle("quick")
    for each in (slow, quick):
        feed.admit(each)
        feed.join(each)
    wait_until(lambda: {"slow", "quick"} <= set(calls.asked))
    feed.leave(slow)
    wait_until(lambda: calls.asked[-4:] == ["quick"] * 4)
    feed.join(slow)
    wait_until(lambda: "slow" in calls.asked[-4:])
    for each in (slow, quick):
        feed.release(each)


def test_a_stream_that_has_read_all_asks_no_more() -> None:
    """Its last page was full: one more look, and from then on it waits for the feed."""
    change = Changed("k", "delete", 1, None, None, 1, "1.7.7.")
    pages = [ChangesPage([change], "1.7.7.", False, ""), ChangesPage([], "1.7.7.", True, "")]
    store = SimpleNamespace(
        held_policy=lambda: None,
        under=lambda policy, check: nullcontext(),
        changes=lambda *place: pages.pop(0),
    )
    joined: list[object] = []
    feed = SimpleNamespace(admit=lambda who: None, join=joined.append)
    lane = SimpleNamespace(submit=lambda work, busy, *place: work())
    services = SimpleNamespace(store=store, gate=None, lanes={"changes": lane}, feed=feed)
    events = _Events(services, {}, "b", "", "0", 1)  # type: ignore[arg-type]
    events.begin(lambda answer: None)
    events._drained()
    assert not pages
    assert joined == [events]


def test_a_page_that_finds_nothing_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the feed is in which no key has the prefix: others need the thread."""
    monkeypatch.setattr("poky.api.changes._SCAN_SECONDS", 0.05)
    places = (ChangesPage([], f"p{n}", False, "") for n in itertools.count(1))
    store = SimpleNamespace(
        changes=lambda *_: next(places), under=lambda *_: nullcontext(), held_policy=lambda: None
    )
    feed = SimpleNamespace(release=lambda who: None)
    lane = SimpleNamespace(submit=lambda work, busy, *place: work())
    services = SimpleNamespace(store=store, gate=None, lanes={"changes": lane}, feed=feed)
    answers: list[Any] = []
    began = time.monotonic()
    _Poll(services, {}, "b", "x", "0", 1).begin(answers.append)  # type: ignore[arg-type]
    assert 0.05 < time.monotonic() - began < 5
    (answer,) = answers
    shown = json.loads(bytes(answer.body))
    assert shown["changes"] == []
    assert shown["next"] == f"p{int(next(places).next[1:]) - 1}"  # nothing is read twice


@pytest.mark.parametrize("kind_of_request", [_Events, _Poll])
def test_a_request_for_which_no_thread_is_free_is_refused(
    kind_of_request: type[_Events | _Poll],
) -> None:
    busy = StoreError(503, "All threads are busy.", code="server_busy")
    lane = SimpleNamespace(submit=lambda work, refuse, *place: refuse(busy))
    feed = SimpleNamespace(admit=lambda who: None, release=lambda who: None)
    store = SimpleNamespace(held_policy=lambda: None)
    services = SimpleNamespace(store=store, gate=None, lanes={"changes": lane}, feed=feed)
    answers: list[Any] = []
    environ = {"REQUEST_METHOD": "GET"}
    request = kind_of_request(services, environ, "b", "", "0", 1)  # type: ignore[arg-type]
    request.begin(answers.append)
    (answer,) = answers
    assert answer.status.startswith("503")


@pytest.mark.slow
def test_a_stream_without_changes_shows_that_it_lives(
    client: Client, service: Service, followed: str
) -> None:
    events = Events(service, f"/changes/{followed}?prefix=never").begun()
    before = events.cursor
    client.put(f"/kv/{followed}/a", "v")
    assert events._until("\n\n").startswith(": \n")
    events.close()
    assert keys(changes(service.client(), followed, f"?after={before}")) == ["a"]


# What ends them.


def test_a_server_that_stops_answers_who_waits(
    database: Database, followed: str, tmp_path: Path
) -> None:
    with running(database.dsn_service, tmp_path / "log") as service:
        waiting = Waiting(service, f"/changes/{followed}?wait=60")
        events = Events(service, f"/changes/{followed}").begun()
        assert service.stop() == 0
        answer = waiting.result()
        assert answer.status == 200
        assert answer.headers["Connection"] == "close"
        assert answer.json()["changes"] == []
        assert events.at_end()
    with running(database.dsn_service, tmp_path / "log") as service:
        client = service.client()
        client.put(f"/kv/{followed}/a", "v")
        assert keys(changes(client, followed, f"?after={answer.json()['next']}")) == ["a"]
        assert keys(changes(client, followed, f"?after={events.cursor}")) == ["a"]


def test_those_who_wait_outlive_connections_to_the_database(
    client: Client, service: Service, database: Database, followed: str
) -> None:
    waiting = Waiting(service, f"/changes/{followed}?wait=60")
    events = Events(service, f"/changes/{followed}").begun()
    query(
        database,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    wait_until(lambda: client.put(f"/kv/{followed}/a", "v").status == 200)
    assert "a" in keys(waiting.result().json())
    assert events.next()["key"] == "a"
    events.close()


# Tokens.


@pytest.fixture(scope="module")
def guarded(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("guarded") / "log"
    with running(database.dsn_service, log, access="tokens") as service:
        yield service


@pytest.fixture
def owner(database: Database) -> Iterator[Store]:
    with closing(Store(database.dsn_owner, pool_size=2)) as store:
        yield store


def test_following_needs_both_rights(
    database: Database, guarded: Service, owner: Store, followed: str
) -> None:
    make = Maker(database)
    client = guarded.client()
    path = f"/changes/{followed}"
    assert client.get(path).status == 401
    assert client.request("GET", path, headers=bearer(make(f"read:{followed}"))).status == 403
    listing = bearer(make(f"list:{followed}"))
    assert client.request("GET", path, headers=listing).status == 403
    both = bearer(make(f"list,read:{followed}"))
    assert client.request("GET", path, headers=both).status == 200
    assert client.request("GET", f"/changes/{followed}x", headers=both).status == 403
    owner.publish_bucket(followed, True)
    assert client.get(path).status == 401
    assert client.request("GET", path, headers=listing).status == 200


def test_a_token_that_is_revoked_ends_what_it_began(
    database: Database, guarded: Service, owner: Store, followed: str
) -> None:
    make = Maker(database)
    headers = bearer(make(f"list,read:{followed}"))
    name = make.name
    other = bearer(make(f"list,read:{followed}"))
    path = f"/changes/{followed}?wait=60"
    waiting, staying = Waiting(guarded, path, **headers), Waiting(guarded, path, **other)
    events = Events(guarded, path, **headers).begun()
    owner.revoke_token(name)
    owner.put(followed, "secret", b"v", "text/plain")
    assert waiting.result().status == 401
    assert events.at_end()
    assert keys(staying.result().json()) == ["secret"]


def test_a_bucket_that_is_public_no_more_ends_what_that_began(
    database: Database, guarded: Service, owner: Store, followed: str
) -> None:
    owner.publish_bucket(followed, True)
    headers = bearer(Maker(database)(f"list:{followed}"))
    path = f"/changes/{followed}?wait=60"
    waiting = Waiting(guarded, path, **headers)
    events = Events(guarded, path, **headers).begun()
    owner.publish_bucket(followed, False)
    owner.put(followed, "secret", b"v", "text/plain")
    assert waiting.result().status == 403
    assert events.at_end()


def test_a_token_that_expires_ends_what_it_began(
    database: Database, guarded: Service, followed: str
) -> None:
    headers = bearer(Maker(database)(f"list,read:{followed}", seconds=3))
    path = f"/changes/{followed}?wait=60"
    waiting = Waiting(guarded, path, **headers)
    events = Events(guarded, path, **headers).begun()
    assert waiting.result().status == 401
    assert events.at_end()


# The command.


def test_the_command_switches_it_on_and_follows(
    client: Client, database: Database, bucket: str, tmp_path: Path
) -> None:
    command(database, "bucket", "create", bucket)
    assert command(database, "bucket", "set", bucket, "--changes", "7d") == {
        bucket: "keeps its changes for 7d"
    }
    [row] = [each for each in command(database, "bucket", "list") if each["name"] == bucket]
    assert row["changes_kept"] == 7 * 86400
    output = tmp_path / "out"
    environment = {**os.environ, "POKY_DSN": database.dsn_service}
    with output.open("wb") as file:
        following = subprocess.Popen(
            [sys.executable, "-m", "poky", "changes", bucket, "--after", "0", "--follow", "--json"],
            env=environment,
            stdout=file,
        )
    try:
        etags = [client.put(f"/kv/{bucket}/{key}", "v").etag for key in ("a", "b")]
        wait_until(lambda: output.read_text().count("\n") == 2)
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert [(each["key"], each["result"], each["etag"]) for each in lines] == [
            ("a", "put", etags[0]),
            ("b", "put", etags[1]),
        ]
    finally:
        following.kill()
        following.wait()
    rest = subprocess.run(
        [sys.executable, "-m", "poky", "changes", bucket, "--after", lines[0]["next"]],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert re.search(r"(?m)^put .* b$", rest)
    assert re.search(r"(?m)^next: \d", rest)
    command(database, "bucket", "set", bucket, "--changes", "none")
    said = command(database, "changes", bucket, code=1)
    assert json.loads(said.splitlines()[-1])["code"] == "changes_off"
    assert "no duration" in command(database, "bucket", "set", bucket, "--changes", "7", code=2)


def test_a_follower_that_is_ahead_is_not_sent_back() -> None:
    """One page is for all followers, and begins at the one that has seen least."""
    far, near = Cursor.parse("1.20.20."), Cursor.parse("1.10.10.")
    assert far.after(near) == far
    assert near.after(far) == far
    # Transaction 15 was under way for the one and not for the other: neither has all of the other.
    with_gap = Cursor.parse("1.15.20.0")
    assert with_gap.after(near) == with_gap
    assert far.after(with_gap) == far
    assert with_gap.after(far) == far
    within = Cursor.parse("1.10.10._1.18.18._7")
    assert near.after(within) == within
    assert far.after(within) == far
    for cursor, revision, seen in (
        (far, 9, True),
        (near, 9, False),
        (with_gap, 9, False),
        (within, 7, True),
        (within, 8, False),
    ):
        change = Changed("k", "delete", revision, None, None, 15, "1.15.15.")
        assert cursor.has(change) is seen, cursor


class Copy(Follower):
    """What the feed told a follower."""

    def __init__(self, bucket: str, cursor: str) -> None:
        super().__init__(bucket)
        self.cursor = Cursor.parse(cursor)
        self.keys: list[str] = []

    def take(self, changes: list[Changed], page: Cursor) -> None:
        self.keys += [each.key for each in changes]
        self.cursor = self.cursor.after(page)


def put_some(store: Store, bucket: str, names: list[str]) -> None:
    """Few transactions, of several objects."""
    for first in range(0, len(names), 7):
        put_many(store, bucket, names[first : first + 7])


@pytest.mark.parametrize("midway", [0, 30, 600])
@pytest.mark.parametrize("seen", [0, 1, 200, 999, 1000, 1001, 1400])
def test_who_comes_while_another_reads_a_long_page_misses_nothing(
    database: Database, followed: str, seen: int, midway: int
) -> None:
    """Each has a part of a later snapshot, of which the other has not."""
    with closing(Store(database.dsn_service, pool_size=1)) as store:
        began = store.changes(followed).next
        names = [f"k{number:04}" for number in range(1500)]
        put_some(store, followed, names[:seen])
        came = store.changes(followed).next
        put_some(store, followed, names[seen:1450])
        if midway:
            came = store.changes(followed, came, limit=midway).next
        put_some(store, followed, names[1450:])
        feed = Feed(store, _Calls(), 2)  # type: ignore[arg-type]
        first, second = Copy(followed, began), Copy(followed, came)
        feed._look((followed, 0), [first], is_due=True)
        assert first.cursor.until is not None
        for _ in range(10):
            feed._look((followed, 0), [first, second], is_due=True)
        assert first.keys == names
        assert second.keys == names[min(seen + midway, 1450) :]


def test_who_is_in_the_midst_of_a_later_page_is_told_nothing_twice(
    database: Database, followed: str
) -> None:
    with closing(Store(database.dsn_service, pool_size=1)) as store:
        began = store.changes(followed).next
        names = [f"k{number:04}" for number in range(1500)]
        put_some(store, followed, names[:500])
        behind = Copy(followed, store.changes(followed, began, limit=300).next)
        put_some(store, followed, names[500:600])
        came = store.changes(followed).next
        put_some(store, followed, names[600:1450])
        ahead = Copy(followed, store.changes(followed, came, limit=800).next)
        put_some(store, followed, names[1450:])
        feed = Feed(store, _Calls(), 2)  # type: ignore[arg-type]
        for _ in range(10):
            feed._look((followed, 0), [behind, ahead], is_due=True)
        assert behind.keys == names[300:]
        assert ahead.keys == names[1400:]


# Cursors: brute force over small snapshots.


def snapshots() -> list[Cursor]:
    """All that are possible with transactions 3 to 6, as the store writes them.

    The one before xmax is never open: xmax follows the latest that has ended.
    """
    found = []
    for xmax in range(3, 8):
        for mask in range(1 << max(xmax - 4, 0)):
            gaps = [number for number in range(3, xmax) if mask >> (number - 3) & 1]
            xmin = min(gaps, default=xmax)
            distances = "-".join(str(number - xmin) for number in gaps)
            found.append(Cursor.parse(f"1.{xmin}.{xmax}.{distances}"))
    return found


def has(cursor: Cursor, xid: int, revision: int = 9) -> bool:
    return cursor.has(Changed("k", "delete", revision, None, None, xid, "1.3.3."))


def test_a_cursor_includes_what_it_has_all_of() -> None:
    every = snapshots()
    assert len(every) == 16
    for one in every:
        assert Cursor.parse(str(one)) == one
        for other in every:
            seen = {xid for xid in range(3, 8) if has(other, xid)}
            assert one.includes(other) is all(has(one, xid) for xid in seen), (one, other)
            within = Cursor(one.seen, other.seen, 5)
            assert Cursor.parse(str(within)) == within
            for xid in range(3, 8):
                assert has(within, xid, 5) is (has(one, xid) or has(other, xid))
                assert has(within, xid, 6) is has(one, xid)
            for third in every:
                assert third.includes(within) is (third.includes(one) and third.includes(other))


def test_moving_on_loses_nothing_and_tells_nothing_twice() -> None:
    every = snapshots()
    for one in every:
        for place in every:
            moved = one.after(place)
            assert moved == (one if one.includes(place) else place)
            for until in every:
                there = Cursor(place.seen, until.seen, 5)
                moved = one.after(there)
                assert moved.seen == one.after(place).seen
                if one.after(place).includes(until):
                    assert moved.until == one.after(place).until
                else:
                    assert (moved.until, moved.last) == (until.seen, 5)


def test_a_later_stay_wins_and_the_one_that_has_seen_least_comes_first() -> None:
    first, later = Cursor.parse("1s1.9.9."), Cursor.parse("2s1.3.3.")
    assert (first.stay, later.stay) == (1, 2)
    assert (first.after(later), later.after(first)) == (later, later)
    assert not first.includes(later)
    assert not later.includes(first)
    assert str(Cursor.parse("1.3.3.")) == "1.3.3."
    ordered = ["1.3.3.", "1.3.5.0-1", "1.3.5.0", "1.5.5.", "1.5.5._1.6.6._2", "1.5.5._1.6.6._3",
               "1.6.6.", "1s1.3.3."]  # fmt: skip
    assert sorted(map(Cursor.parse, reversed(ordered)), key=Cursor.age_order) == [
        Cursor.parse(each) for each in ordered
    ]


def test_a_former_database_is_asked_in_a_lane_of_its_own() -> None:
    """Who reads where a bucket is now must not wait for where it was."""
    stay = {"shard": 2}

    class Elsewhere(ShardedStore):
        def __init__(self) -> None:
            self.asked: list[object] = []

        def under(self, *_: Any) -> Any:
            return nullcontext()

        def present_changes(self, *_: Any) -> Any:
            self.asked.append("present")
            raise ChangesElsewhere("Elsewhere.", stay)

        def changes_of(self, former: Any, *_: Any) -> Any:
            self.asked.append(former)
            return "a page"

    store = Elsewhere()
    poll = _Poll.__new__(_Poll)
    poll.bucket, poll.policy, poll.check = "b", None, None
    poll._services = cast(Any, SimpleNamespace(store=store))
    poll._after, poll._prefix, poll._page_of, poll._is_former = "0", "", None, False
    with pytest.raises(_Turn) as turn:
        poll._page(7)
    assert turn.value.former is stay
    poll._page_of, poll._is_former = stay, True
    assert poll._page(7) == "a page"  # type: ignore[comparison-overlap]
    assert store.asked == ["present", stay]
    with pytest.raises(_Turn) as turn:  # what follows is not for this thread
        poll._page(7)
    assert turn.value.former is None
    assert store.asked == ["present", stay]
