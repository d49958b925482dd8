"""The purge client believes a cache only when it confirms, and waits for none for long."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from poky.cache.purge import NotConfirmed, PurgeClient
from tests.fake_cache import FakeCache
from tests.service import free_ports

TIMEOUT = 0.5


@pytest.fixture
def client() -> Iterator[PurgeClient]:
    client = PurgeClient(TIMEOUT)
    yield client
    client.close()


@pytest.fixture
def one() -> Iterator[FakeCache]:
    with FakeCache("one") as cache:
        yield cache


@pytest.fixture
def two() -> Iterator[FakeCache]:
    with FakeCache("two") as cache:
        yield cache


def at(*caches: FakeCache) -> dict[str, str]:
    return {cache.name: cache.url for cache in caches}


def test_all_nodes_are_told(client: PurgeClient, one: FakeCache, two: FakeCache) -> None:
    assert client.purge(at(one, two), ["/kv/b/k", "/kv/b/l"]) == {}
    assert one.told == two.told == ["/kv/b/k", "/kv/b/l"]


def test_no_node_or_no_path_is_no_work(client: PurgeClient, one: FakeCache) -> None:
    assert client.purge({}, ["/kv/b/k"]) == {}
    assert client.purge(at(one), []) == {}
    assert one.connections == 0


def test_a_connection_is_kept(client: PurgeClient, one: FakeCache) -> None:
    for _ in range(5):
        assert client.purge(at(one), ["/kv/b/k"]) == {}
    assert one.connections == 1


def test_a_kept_connection_that_the_cache_has_closed_is_replaced(
    client: PurgeClient, one: FakeCache
) -> None:
    client.purge(at(one), ["/kv/b/k"])
    one.drop_connections()
    assert client.purge(at(one), ["/kv/b/l"]) == {}
    assert one.told == ["/kv/b/k", "/kv/b/l"]


def test_a_kept_connection_that_closes_in_the_middle_is_replaced(
    client: PurgeClient, one: FakeCache
) -> None:
    client.purge(at(one), ["/kv/b/k"])
    one.close_after = 3  # one more, then it is closed; the next one takes three
    assert client.purge(at(one), ["/kv/b/l", "/kv/b/m", "/kv/b/n"]) == {}
    assert one.told[-3:] == ["/kv/b/l", "/kv/b/m", "/kv/b/n"]


def test_thousand_keys_take_one_connection_and_less_than_a_second(
    client: PurgeClient, one: FakeCache
) -> None:
    paths = [f"/kv/bucket/key-{number}" for number in range(1000)]
    began = time.monotonic()
    assert client.purge(at(one), paths) == {}
    assert time.monotonic() - began < 1
    assert one.told == paths
    assert one.connections == 1


def test_more_than_the_sockets_hold(client: PurgeClient, one: FakeCache) -> None:
    paths = [f"/kv/bucket/{'k' * 1000}{number}" for number in range(10_000)]
    assert client.purge(at(one), paths) == {}
    assert one.told == paths


def test_nodes_are_told_at_once(client: PurgeClient, one: FakeCache, two: FakeCache) -> None:
    one.delay = two.delay = 0.3
    began = time.monotonic()
    assert client.purge(at(one, two), ["/kv/b/k"]) == {}
    assert time.monotonic() - began < 0.55


def test_answers_in_pieces(client: PurgeClient, one: FakeCache) -> None:
    one.piece = 7
    assert client.purge(at(one), ["/kv/b/k", "/kv/b/l"]) == {}


def test_answers_with_bodies(client: PurgeClient, one: FakeCache) -> None:
    one.answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\npoky-node: {name} \r\n\r\nHello"
    assert client.purge(at(one), ["/kv/b/k", "/kv/b/l"]) == {}
    assert client.purge(at(one), ["/kv/b/k"]) == {}
    assert one.connections == 1


def test_silence_is_no_confirmation(client: PurgeClient, one: FakeCache, two: FakeCache) -> None:
    one.is_silent = True
    began = time.monotonic()
    assert client.purge(at(one, two), ["/kv/b/k"]) == {"one": "did not answer within 0.5 s"}
    assert TIMEOUT <= time.monotonic() - began < TIMEOUT + 0.3
    assert two.told == ["/kv/b/k"]


def test_silence_after_some_answers_is_no_confirmation(client: PurgeClient, one: FakeCache) -> None:
    one.close_after = 2
    assert client.purge(at(one), ["/kv/b/k", "/kv/b/l", "/kv/b/m"]) == {
        "one": "closed the connection"
    }


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("HTTP/1.1 200 OK\r\nPoky-Node: two\r\n\r\n", "calls itself two"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "calls itself nothing"),
        ("HTTP/1.1 200 OK\r\nX-Poky-Node: one\r\n\r\n", "calls itself nothing"),
        (
            "HTTP/1.1 405 Not Allowed\r\nPoky-Node: one\r\n\r\n",
            "answered HTTP/1.1 405 Not Allowed",
        ),
        ("SSH-2.0-OpenSSH\r\n\r\n", "answered SSH-2.0-OpenSSH"),
        ("HTTP/1.1 200 OK\r\nPoky-Node: one\r\n\r\n" * 2, "answered more than it was asked"),
    ],
)
def test_what_else_is_no_confirmation(
    client: PurgeClient, one: FakeCache, answer: str, reason: str
) -> None:
    one.answer = answer
    assert client.purge(at(one), ["/kv/b/k"]) == {"one": reason}


def test_a_port_without_a_listener(client: PurgeClient) -> None:
    (port,) = free_ports(1)
    began = time.monotonic()
    failures = client.purge({"one": f"http://127.0.0.1:{port}"}, ["/kv/b/k"])
    assert failures == {"one": "cannot be reached: Connection refused"}
    assert time.monotonic() - began < TIMEOUT


def test_a_host_without_an_address(client: PurgeClient) -> None:
    failures = client.purge({"one": "http://nowhere.invalid:6091"}, ["/kv/b/k"])
    assert list(failures) == ["one"]


def test_a_probe_asks_for_the_name(client: PurgeClient, one: FakeCache, two: FakeCache) -> None:
    assert client.probe({"one": one.url, "three": two.url}) == {"three": "calls itself two"}
    assert client.name_of(two.url) == "two"
    assert one.told == two.told == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("HTTP/1.1 404 Not Found\r\n\r\n", "answered HTTP/1.1 404 Not Found"),
        ("HTTP/1.1 200 OK\r\n\r\n", "did not tell its name"),
    ],
)
def test_a_name_that_cannot_be_learned(
    client: PurgeClient, one: FakeCache, answer: str, reason: str
) -> None:
    one.answer = answer
    with pytest.raises(NotConfirmed) as refused:
        client.name_of(one.url)
    assert str(refused.value) == reason


def test_an_answer_without_a_length_has_no_body(client: PurgeClient, one: FakeCache) -> None:
    one.answer = "HTTP/1.1 200 OK\r\nPoky-Node: {name}\r\n\r\n"
    assert client.purge(at(one), ["/kv/b/k"]) == {}
    assert client.purge(at(one), ["/kv/b/k", "/kv/b/l"]) == {}
    assert one.connections == 1


@pytest.mark.parametrize("rest", ["HTTP/1.1 200 OK\r\nPoky-", "\r\n", "x"])
def test_a_connection_with_more_to_read_is_not_kept(
    client: PurgeClient, one: FakeCache, rest: str
) -> None:
    good = one.answer
    one.answer += rest
    assert client.purge(at(one), ["/kv/b/k"]) == {}
    one.answer = good
    assert client.purge(at(one), ["/kv/b/k"]) == {}
    assert one.connections == 2


def test_a_slow_cache_has_the_timeout_to_tell_its_name(client: PurgeClient, one: FakeCache) -> None:
    one.delay = TIMEOUT / 2
    assert client.name_of(one.url) == "one"
    assert client.probe(at(one)) == {}


def test_a_probe_has_the_timeout_once_whatever_trickles_in(
    client: PurgeClient, one: FakeCache
) -> None:
    one.answer = "HTTP/1.1 200 OK\r\nX: " + "x" * 2000 + "\r\nPoky-Node: {name}\r\n\r\n"
    one.piece = 1
    began = time.monotonic()
    assert client.probe(at(one)) == {"one": f"did not answer within {TIMEOUT:g} s"}
    with pytest.raises(NotConfirmed, match="did not answer within"):
        client.name_of(one.url)
    assert time.monotonic() - began < 2 * TIMEOUT + 1
