"""The client in Python against a real service, and what it does when answers are lost."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from poky.client import (
    Bucket,
    Change,
    Client,
    ConditionFailed,
    Error,
    Object,
    OutcomeUnknown,
    Unavailable,
)
from poky.client.buckets import BATCH, Cache
from tests.conftest import Database
from tests.service import Service, free_ports, running
from tests.test_access import Maker
from tests.test_changes import record

pytestmark = pytest.mark.inside


@pytest.fixture(scope="module")
def service(database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(database.dsn_service, tmp_path_factory.mktemp("client") / "log") as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with Client(service.url, cache=2) as client:
        yield client


@pytest.fixture
def tips(client: Client, database: Database, bucket: str) -> Bucket:
    record(database, bucket)
    return client.bucket(bucket)


class Lossy:
    """Passes requests on to the service, and loses the first answers to some of them."""

    def __init__(self, service: Service, lose: int) -> None:
        self.port = free_ports(1)[0]
        self.requests: list[bytes] = []
        self._service = service
        self._lose = lose
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, socket.create_connection(("127.0.0.1", self._service.port)) as service:
                request = client.recv(65536)
                while b"\r\n\r\n" not in request:
                    request += client.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                lengths = [
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ]
                while len(body) < sum(lengths):
                    body += client.recv(65536)
                self.requests.append(head.split(b" ")[0])
                service.sendall(head + b"\r\nConnection: close\r\n\r\n" + body)
                answer = b""
                while received := service.recv(65536):
                    answer += received
                if self._lose:
                    self._lose -= 1
                else:
                    client.sendall(answer)


@dataclass
class Scripted:
    """Gives one answer after the other, the last again and again, and keeps what was asked."""

    url: str
    requests: list[bytes] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    @property
    def lines(self) -> list[bytes]:
        return [request.partition(b" HTTP")[0] for request in self.requests]


@contextmanager
def scripted(*answers: tuple[str, bytes]) -> Iterator[Scripted]:
    """A server; each answer is a status with fields below it, and a body."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def serve() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    said.requests.append(connection.recv(65536))
                    said.at.append(time.monotonic())
                    head, body = answers[min(number, len(answers) - 1)]
                    lines = [
                        f"HTTP/1.1 {head}",
                        "Connection: close",
                        f"Content-Length: {len(body)}",
                    ]
                    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
                number += 1

        threading.Thread(target=serve, daemon=True).start()
        yield said
        listener.shutdown(socket.SHUT_RDWR)


_FACTS = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT"


def test_objects(tips: Bucket) -> None:
    assert tips.get("k") is None
    assert tips.delete("k") is False
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    tag = tips.put("a/k", b"\x00value", modified_at=when)
    found = tips.get("a/k")
    assert found
    assert (found.value, found.etag, found.modified_at) == (b"\x00value", tag, when)
    assert found.content_type == "application/octet-stream"
    assert tips.put("a/k", "text", if_match=tag) != tag
    with pytest.raises(ConditionFailed):
        tips.put("a/k", "other", if_match=tag)
    with pytest.raises(ConditionFailed):
        tips.put("a/k", "other", if_none_match="*")
    changed = tips.get("a/k")
    assert changed
    assert (changed.value, changed.content_type) == (b"text", "text/plain; charset=utf-8")
    with pytest.raises(ConditionFailed):
        tips.delete("a/k", if_match=tag)
    assert tips.delete("a/k", if_match=changed.etag)
    assert tips.get("a/k") is None
    with pytest.raises(Error) as refused:
        tips.put("no key", b"")
    assert (refused.value.status, refused.value.code) == (400, "bad_key")


def test_objects_that_are_kept_are_asked_for(tips: Bucket, service: Service) -> None:
    tips.put("k", "one")
    first = tips.get("k")
    assert tips.get("k") is first
    assert "status=304" in service.log.read_text() or wait_for(service, "status=304")
    service.client().put(f"/kv/{tips.name}/k", "two")
    second = tips.get("k")
    assert second
    assert second.value == b"two"


def wait_for(service: Service, text: str) -> bool:
    end = time.monotonic() + 10
    while text not in service.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    return True


def test_batches_and_lists(tips: Bucket) -> None:
    values: dict[str, bytes | str] = {f"k{number:04}": f"v{number}" for number in range(1200)}
    assert {each.result for each in tips.put_many({**values, "bytes": b"\xff"})} == {"inserted"}
    assert [each.key for each in tips.list()] == sorted([*values, "bytes"])
    assert [each.key for each in tips.list("k000")] == [f"k000{number}" for number in range(10)]
    found = tips.get_many([*values, "bytes", "missing"])
    assert found["bytes"].value == b"\xff"
    assert {key: each.value for key, each in found.items() if key != "bytes"} == {
        key: str(value).encode() for key, value in values.items()
    }
    assert [each.result for each in tips.delete_many(["bytes", "missing"])] == [
        "deleted",
        "missing",
    ]
    assert [each.result for each in tips.put_many({"x": "1", "y": "2"}, atomic=True)] == [
        "inserted",
        "inserted",
    ]


def test_a_level_is_as_a_folder(tips: Bucket) -> None:
    keys = ("a", "a/b", "a/c/d", "e-f", "e/f", *(f"many/{number}/x" for number in range(1100)))
    tips.put_many({key: key for key in keys})
    entries = [each if isinstance(each, str) else each.key for each in tips.level()]
    assert entries == ["a", "a/", "e-f", "e/", "many/"]
    assert [each for each in tips.level("a/") if isinstance(each, str)] == ["a/c/"]
    assert len(list(tips.level("many/"))) == 1100


def test_parts_are_of_one_value(tips: Bucket) -> None:
    assert tips.head("k") is None
    tag = tips.put("k", b"0123456789")
    found = tips.head("k")
    assert found is not None
    assert (found.size, found.etag, found.content_type) == (10, tag, "application/octet-stream")
    assert tips.read("k", 2, 5, tag) == b"234"
    assert tips.read("k", 8, 20, tag) == b"89"
    assert tips.read("k", 20, 30, tag) == tips.read("k", 5, 5, tag) == b""
    tips.put("k", b"another")
    with pytest.raises(ConditionFailed):
        tips.read("k", 0, 5, tag)


@pytest.mark.parametrize("name", ["../{other}/k", "a/../../{other}/k", "./k", "a/./k", "..", "."])
def test_a_name_that_a_path_resolves_is_no_other_object(
    client: Client, tips: Bucket, name: str
) -> None:
    other = client.bucket(tips.name + "-")
    key = name.format(other=tips.name)
    tips.put_many({"k": "v", "a/k": "v"})
    for refused in (
        lambda: other.get(key),
        lambda: tips.get(key),
        lambda: tips.put(key, "x"),
        lambda: tips.delete(key),
        lambda: client.bucket("..").get(f"kv/{tips.name}/k"),
        lambda: list(client.bucket("..").list()),
        lambda: next(client.bucket(".").follow()),
    ):
        with pytest.raises(Error) as error:
            refused()
        assert (error.value.status, error.value.code) == (400, "bad_key")
    assert tips.get_many(["k", "a/k"]).keys() == {"k", "a/k"}
    assert list(tips.list(prefix="..")) == []


def test_changes_go_on_after_any_of_them(tips: Bucket, service: Service) -> None:
    begin = tips.cursor()
    tips.put_many({f"k{number}": "v" for number in range(5)})
    tips.delete("k0")
    shown = [(each.key, each.result) for each in tips.changes(begin)]
    assert shown == [*((f"k{number}", "put") for number in range(5)), ("k0", "delete")]
    for seen in range(1, 6):
        following = tips.follow(begin)
        found = [next(following) for _ in range(seen)]
        resumed = tips.follow(found[-1].cursor)
        found += [next(resumed) for _ in range(6 - seen)]
        assert [(each.key, each.result) for each in found] == shown
    assert found[0].etag
    waiting = tips.follow()
    threading.Timer(0.3, service.client().put, (f"/kv/{tips.name}/later", "v")).start()
    assert next(waiting).key == "later"


def test_following_outlives_the_instance(database: Database, bucket: str, tmp_path: Path) -> None:
    record(database, bucket)
    with running(database.dsn_service, tmp_path / "log") as service:
        tips = Client(service.url).bucket(bucket)
        following = tips.follow(tips.cursor())
        tips.put("before", "v")
        assert next(following).key == "before"
        service.stop()
        service.start()
        tips.put("after", "v")
        assert next(following).key == "after"


def test_what_will_not_pass_ends_the_following(client: Client, bucket: str) -> None:
    with pytest.raises(Error) as refused:
        next(client.bucket(bucket).follow("17.3.3."))
    assert refused.value.status == 404


def test_a_write_in_doubt_is_not_repeated(service: Service, tips: Bucket) -> None:
    lossy = Lossy(service, 1)
    with Client(lossy.url) as client:
        with pytest.raises(OutcomeUnknown):
            client.bucket(tips.name).put("k", "v")
        assert lossy.requests == [b"PUT"]
        lossy._lose = 1
        with pytest.raises(OutcomeUnknown):
            client.bucket(tips.name).delete("k")
        lossy._lose = 1
        with pytest.raises(OutcomeUnknown):
            client.bucket(tips.name).put_many({"k": "v"})
        assert lossy.requests == [b"PUT", b"DELETE", b"PUT"]
    lossy.close()


def test_a_conditional_write_in_doubt_is_found_out(service: Service, tips: Bucket) -> None:
    """The first try was done: the second is refused, and is no failure."""
    lossy = Lossy(service, 1)
    with Client(lossy.url) as client:
        bucket = client.bucket(tips.name)
        tag = bucket.put("k", "v", if_none_match="*")
        assert tips.get("k").etag == tag  # type: ignore[union-attr]
        assert lossy.requests == [b"PUT", b"PUT", b"GET"]
        lossy._lose = 1
        tag = bucket.put("k", "w", if_match=tag)
        assert tips.get("k").etag == tag  # type: ignore[union-attr]
        lossy._lose = 1
        assert bucket.delete("k", if_match=tag)
        # Another's is not taken for ours.
        tag = tips.put("k", "theirs")
        for write in (
            lambda: bucket.put("k", "v", if_none_match="*"),
            lambda: bucket.delete("k", if_match='"1-00000000"'),
        ):
            lossy._lose = 1
            with pytest.raises(OutcomeUnknown):
                write()
        assert tips.get("k").etag == tag  # type: ignore[union-attr]
    lossy.close()


def test_reads_are_repeated(service: Service, tips: Bucket) -> None:
    tips.put("k", "v")
    lossy = Lossy(service, 2)
    with Client(lossy.url) as client:
        assert client.bucket(tips.name).get("k").value == b"v"  # type: ignore[union-attr]
    assert lossy.requests == [b"GET"] * 3
    lossy.close()


def test_what_nobody_answers_is_unavailable() -> None:
    with Client(f"http://127.0.0.1:{free_ports(1)[0]}", tries=2) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable):
            client.bucket("b").put("k", "v")  # it was never sent, so it was tried again
        assert time.monotonic() - began > 0.05


@pytest.mark.parametrize("said", ["Sun, 06 Nov 1994 08:49:37 GMT", "soon", "-5", "1e9", "\xb2", ""])
def test_a_pause_that_is_no_number_is_a_short_one(said: str) -> None:
    """Retry-After may be a date (RFC 9110), and what stands between says what it likes."""
    end = "Connection: close\r\n\r\n"
    facts = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: text/plain\r\n"
    answers = [
        f"HTTP/1.1 503 Busy\r\nRetry-After: {said}\r\nContent-Length: 0\r\n{end}",
        f'HTTP/1.1 200 OK\r\nETag: "1-a"\r\n{facts}Content-Length: 1\r\n{end}v',
    ]
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer.encode("latin-1"))

        threading.Thread(target=serve, daemon=True).start()
        began = time.monotonic()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", tries=2) as client:
            found = client.bucket("b").get("k")
    assert found is not None
    assert found.value == b"v"
    assert time.monotonic() - began < 5


def test_a_token_is_sent(database: Database, bucket: str, tmp_path: Path) -> None:
    record(database, bucket)
    token = Maker(database)(f"read,write,list:{bucket}")
    with running(database.dsn_service, tmp_path / "log", access="tokens") as service:
        with Client(service.url, token=token) as client:
            client.bucket(bucket).put("k", "v")
            assert [each.key for each in client.bucket(bucket).list()] == ["k"]
            assert [each["name"] for each in client.buckets()] == [bucket]
            assert next(client.bucket(bucket).follow("0")).key == "k"
        with Client(service.url) as client, pytest.raises(Error) as refused:
            client.bucket(bucket).get("k")
        assert refused.value.status == 401


@pytest.mark.parametrize("token", [None, "poky_x"])
def test_only_a_client_with_a_token_sends_one(token: str | None) -> None:
    """Where a bucket is public, a token that is none would be refused."""
    heads: list[bytes] = []
    answer = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heads.append(connection.recv(65536).lower())
                connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, token=token, tries=1) as client, suppress(Error):
            client.bucket("b").get("k")
    (head,) = heads
    assert (b"\r\nauthorization: bearer poky_x\r\n" in head) == (token is not None)
    assert (b"authorization" in head) == (token is not None)


# What each answer of a server means.


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_what_did_nothing_is_tried_again_as_often_as_was_said(status: int) -> None:
    problem = b'{"code": "database_slow", "detail": "Come again."}'
    with scripted((f"{status} Busy", problem)) as server, Client(server.url, tries=3) as client:
        with pytest.raises(Unavailable) as failed:
            client.bucket("b").put("k", "v")
        assert server.lines == [b"PUT /kv/b/k"] * 3
    error = failed.value
    assert (error.status, error.code, error.detail) == (status, "database_slow", "Come again.")
    first, second, third = server.at
    assert 0.09 < second - first < 0.25 + 0.5
    assert third - second > 0.19


def test_a_pause_is_as_long_as_the_answer_asks() -> None:
    ok = ('200 OK\r\nETag: "1-a"', b"")
    with (
        scripted(("503 Busy\r\nRetry-After: 1", b""), ok) as server,
        Client(server.url) as client,
    ):
        assert client.bucket("b").put("k", "v") == '"1-a"'
    assert server.at[1] - server.at[0] >= 1


@pytest.mark.parametrize("status", [400, 401, 409, 413, 500])
def test_what_would_be_refused_again_is_not_repeated(status: int) -> None:
    with scripted((f"{status} No", b"<html>no \xff</html>")) as server:
        with Client(server.url) as client, pytest.raises(Error) as failed:
            client.bucket("b").get("k")
        assert len(server.requests) == 1
    assert type(failed.value) is Error
    assert (failed.value.status, failed.value.code) == (status, "")
    assert failed.value.detail == "<html>no \N{REPLACEMENT CHARACTER}</html>"


def test_a_refusal_without_words_is_told_by_its_status() -> None:
    with (
        scripted(("400 No", b"")) as server,
        Client(server.url) as client,
        pytest.raises(Error, match=r"^HTTP status 400$"),
    ):
        client.buckets()


def test_an_outcome_that_is_unknown_is_repeated_only_under_a_condition() -> None:
    unknown = ("503 Busy\r\nPoky-Outcome: unknown", b'{"code": "c", "detail": "In doubt."}')
    with scripted(unknown) as server, Client(server.url, tries=2) as client:
        bucket = client.bucket("b")
        for write, count in (
            (lambda: bucket.put("k", "v"), 1),
            (lambda: bucket.delete("k"), 1),
            (lambda: bucket.delete_many(["k"]), 1),
            (lambda: bucket.put("k", "v", if_match='"1-a"'), 2),
            (lambda: bucket.delete("k", if_match='"1-a"'), 2),
        ):
            server.requests.clear()
            with pytest.raises(OutcomeUnknown) as failed:
                write()
            assert (failed.value.status, failed.value.code) == (503, "outcome_unknown")
            assert failed.value.detail == "In doubt."
            assert len(server.requests) == count
        server.requests.clear()
        with pytest.raises(Unavailable):  # nothing is in doubt about a read
            bucket.get("k")
        assert len(server.requests) == 2


def test_a_bucket_that_is_missing_is_no_missing_object() -> None:
    missing = b'{"code": "bucket_not_found", "detail": "There is no bucket named b."}'
    with scripted(("404 Not Found", missing)) as server, Client(server.url) as client:
        for ask in (client.bucket("b").get, client.bucket("b").delete):
            with pytest.raises(Error) as failed:
                ask("k")
            assert (failed.value.status, failed.value.code) == (404, "bucket_not_found")
    with scripted(("404 Not Found", b"")) as server, Client(server.url) as client:
        assert client.bucket("b").get("k") is None
        assert client.bucket("b").delete("k") is False
    with (
        scripted(("403 Forbidden", b"")) as server,
        Client(server.url) as client,
        pytest.raises(Error),
    ):
        client.bucket("b").head("k")


def test_every_call_tells_what_it_was_refused() -> None:
    refusal = ("403 Forbidden", b'{"code": "right_needed", "detail": "Ask for it."}')
    with scripted(refusal) as server, Client(server.url) as client:
        bucket = client.bucket("b")
        calls: list[Callable[[], object]] = [
            lambda: bucket.get("k"),
            lambda: bucket.head("k"),
            lambda: bucket.read("k", 0, 1, '"1-a"'),
            lambda: bucket.put("k", "v"),
            lambda: bucket.delete("k"),
            lambda: bucket.get_many(["k"]),
            lambda: bucket.put_many({"k": "v"}),
            lambda: bucket.delete_many(["k"], atomic=True),
            lambda: list(bucket.list()),
            lambda: list(bucket.level()),
            lambda: list(bucket.changes()),
            bucket.cursor,
            lambda: next(bucket.follow("0")),
            client.buckets,
        ]
        for call in calls:
            with pytest.raises(Error) as failed:
                call()
            assert failed.value.status == 403
            assert failed.value.code in ("right_needed", "")  # an answer to HEAD has no body
        assert len(server.requests) == len(calls)


def test_a_range_is_cut_out_of_a_whole_value() -> None:
    """What is between may not know ranges."""
    whole = (f'200 OK\r\nETag: "1-a"\r\n{_FACTS}', b"0123456789")
    with scripted(whole) as server, Client(server.url) as client:
        assert client.bucket("b").read("k", 2, 5, '"1-a"') == b"234"
        assert b"\r\nRange: bytes=2-4\r\n" in server.requests[0]
        assert b'\r\nIf-Match: "1-a"\r\n' in server.requests[0]
        server.requests.clear()
        assert client.bucket("b").read("k", 5, 5, '"1-a"') == b""
        assert server.requests == []


def test_names_are_sent_as_they_are_and_a_bucket_s_is_one_part() -> None:
    with scripted(("404 Not Found", b"")) as server, Client(f"{server.url}/") as client:
        client.bucket("a/b").get("c/d e~:@=+,?")
        assert server.lines == [b"GET /kv/a%2Fb/c/d%20e~:@=+,%3F"]


# What is known of an object.


def test_what_is_stored_with_a_value_is_shown(tips: Bucket, service: Service) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    tag = tips.put("k", b"{}", content_type="application/json", modified_at=when, ttl=3600)
    answer = service.client().get(f"/kv/{tips.name}/k")
    assert answer.headers["Poky-Expires"]
    service.client().put(f"/kv/{tips.name}/z", b"z", content_encoding="gzip")
    assert tips.get("k") == Object("k", b"{}", tag, when, "application/json", None)
    coded = tips.get("z")
    assert coded is not None
    assert coded.content_encoding == "gzip"
    for found in (tips.head("k"), next(tips.list())):
        assert found is not None
        assert (found.key, found.size, found.etag) == ("k", 2, tag)
        assert (found.modified_at, found.content_type) == (when, "application/json")
    many = tips.get_many(["k", "z"])
    assert many["k"] == tips.get("k")
    assert many["z"] == coded
    done = tips.put_many({"k": "{}", "z": b"z"})
    assert [(each.key, each.result) for each in done] == [("k", "updated"), ("z", "updated")]
    read = tips.get_many(["k", "z"])
    assert [each.etag for each in done] == [read["k"].etag, read["z"].etag]
    assert read["k"].content_type == "text/plain; charset=utf-8"
    assert read["z"].content_type == "application/octet-stream"


def test_only_a_put_has_a_tag_and_a_date(tips: Bucket) -> None:
    begin = tips.cursor()
    when = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    tag = tips.put("a/k", "v", modified_at=when)
    tips.put("b", "v")
    tips.delete("a/k")
    put, deleted = tips.changes(begin, "a/")
    assert put == Change("a/k", "put", tag, when, begin)
    assert (deleted.result, deleted.etag, deleted.modified_at) == ("delete", None, None)
    assert list(tips.changes(deleted.cursor)) == []
    following = tips.follow(begin, "a/")
    assert [next(following).result for _ in range(2)] == ["put", "delete"]


def test_changes_of_many_pages_are_each_told_once(tips: Bucket) -> None:
    begin = tips.cursor()
    tips.put_many({f"{number:04}": "v" for number in range(1001)})
    found = list(tips.changes(begin))
    assert [each.key for each in found] == [f"{number:04}" for number in range(1001)]
    assert {each.cursor for each in found[:999]} == {begin}
    assert [each.key for each in tips.changes(found[999].cursor)] == ["1000"]
    assert list(tips.changes(found[1000].cursor)) == []


def test_a_batch_is_split_unless_it_is_to_be_atomic(tips: Bucket, service: Service) -> None:
    values = {f"{number}": "v" for number in range(BATCH + 1)}
    for is_atomic, count in ((False, 2), (True, 1)):
        lossy = Lossy(service, 0)
        with Client(lossy.url) as client:
            done = client.bucket(tips.name).put_many(values, atomic=is_atomic)
        assert (len(done), len(lossy.requests)) == (BATCH + 1, count)
        lossy.close()
    with pytest.raises(Error):
        tips.put_many({"a": "v", "/": "v"}, atomic=True)
    assert tips.get("a") is None
    assert [each.result for each in tips.delete_many(["0", "none"], atomic=True)] == [
        "deleted",
        "missing",
    ]


def test_those_that_were_read_last_are_kept() -> None:
    when = datetime(2026, 1, 2, tzinfo=UTC)
    one, two, three = (Object(key, b"", '"1-a"', when, "t") for key in "abc")
    cache = Cache(2)
    cache.keep("b", one)
    cache.keep("b", two)
    assert cache.get("b", "a") is one
    cache.keep("b", three)
    assert cache.get("b", "b") is None
    assert (cache.get("b", "a"), cache.get("b", "c")) == (one, three)
    assert cache.get("other", "a") is None
    none = Cache(0)
    none.keep("b", one)
    assert none.get("b", "a") is None


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_does_not_pass_ends_following(status: int) -> None:
    with scripted((f"{status} No", b'{"code": "c", "detail": "d"}')) as server:
        with Client(server.url) as client, pytest.raises(Error) as failed:
            next(client.bucket("b").follow("0"))
        assert len(server.requests) == 1
    assert (failed.value.status, failed.value.code) == (status, "c")


def test_following_goes_on_after_what_passes() -> None:
    event = b'id: 7\ndata: {"key": "k", "result": "delete"}\n\n'
    again = [(f"{status} Busy", b"") for status in (429, 500, 503)]
    with scripted(*again, ("200 OK", b": quiet\n\n" + event)) as server:
        with Client(server.url, token="poky_x") as client:
            assert next(client.bucket("b").follow("3", "p")) == Change(
                "k", "delete", None, None, "7"
            )
        head = server.requests[3].lower()
    assert server.lines == [b"GET /changes/b?prefix=p"] * 4
    for line in (b"last-event-id: 3", b"accept: text/event-stream", b"authorization: bearer"):
        assert b"\r\n" + line in head
    pauses = [later - earlier for earlier, later in zip(server.at, server.at[1:], strict=False)]
    assert 0.09 < pauses[0] < pauses[1] < pauses[2] < 2


def test_without_urllib3_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['urllib3'] = None; import poky.client"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "install the extra, pip install 'poky[client]'" in done.stderr.splitlines()[-1]
