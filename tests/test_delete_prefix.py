"""DELETE /kv/{bucket}?prefix=: keys that begin alike are deleted (docs/http-api.md)."""

from __future__ import annotations

from contextlib import closing

import pytest

from poky.api import batches
from tests.conftest import Database
from tests.fake_cache import FakeCache
from tests.service import Client, running, wait_until
from tests.test_access import command


def fill(client: Client, bucket: str, *keys: str) -> None:
    items = [{"key": key, "data": "x"} for key in keys]
    assert client.batch("PUT", bucket, items).status == 200


def keys_of(client: Client, bucket: str) -> list[str]:
    return [each["key"] for each in client.get(f"/kv/{bucket}?limit=1000").json()["keys"]]


def test_keys_of_a_prefix_are_deleted_and_no_others(client: Client, bucket: str) -> None:
    fill(client, bucket, "2026/10/a", "2026/11/a", "2026/11/b/c", "2026/110", "2026", "z")
    answer = client.delete(f"/kv/{bucket}?prefix=2026/11/&confirm=2026/11/")
    assert (answer.status, answer.json()) == (200, {"deleted": 2, "more": False})
    assert keys_of(client, bucket) == ["2026", "2026/10/a", "2026/110", "z"]
    again = client.delete(f"/kv/{bucket}?prefix=2026/11/&confirm=2026/11/")
    assert (again.status, again.json()) == (200, {"deleted": 0, "more": False})


def test_all_keys_need_the_name_of_the_bucket(client: Client, bucket: str) -> None:
    fill(client, bucket, "a", "b")
    for confirm in ("", "a", "*"):
        assert client.delete(f"/kv/{bucket}?prefix=&confirm={confirm}").code == "not_confirmed"
    assert keys_of(client, bucket) == ["a", "b"]
    assert client.delete(f"/kv/{bucket}?prefix=&confirm={bucket}").json()["deleted"] == 2
    assert keys_of(client, bucket) == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "bad_query"),
        ("confirm=a", "bad_query"),
        ("prefix=a", "not_confirmed"),
        ("prefix=a&confirm=", "not_confirmed"),
        ("prefix=a&confirm=A", "not_confirmed"),
        ("prefix=a&confirm=a&confirm=a", "bad_query"),
        ("prefix=a&confirm=a&limit=5", "bad_query"),
        ("prefix=a%20b&confirm=a%20b", "bad_key"),
    ],
)
def test_what_is_not_said_twice_is_refused(
    client: Client, bucket: str, query: str, code: str
) -> None:
    fill(client, bucket, "a")
    answer = client.delete(f"/kv/{bucket}?{query}")
    assert (answer.status, answer.code) == (400, code)
    assert keys_of(client, bucket) == ["a"]


@pytest.mark.parametrize("field", ["if_match", "if_none_match", "if_unmodified_since"])
def test_it_has_no_conditions(client: Client, bucket: str, field: str) -> None:
    fill(client, bucket, "a")
    answer = client.delete(f"/kv/{bucket}?prefix=a&confirm=a", **{field: "*"})
    assert (answer.status, answer.code) == (400, "bad_condition")
    assert keys_of(client, bucket) == ["a"]


def test_more_than_one_transaction(client: Client, bucket: str) -> None:
    fill(client, bucket, *(f"k{number:04}" for number in range(2500)), "other")
    answer = client.delete(f"/kv/{bucket}?prefix=k&confirm=k")
    assert (answer.status, answer.json()) == (200, {"deleted": 2500, "more": False})
    assert keys_of(client, bucket) == ["other"]


@pytest.mark.inside
def test_a_failure_after_some_were_deleted_is_not_told_as_if_none_were(
    client: Client, bucket: str, database: Database
) -> None:
    """503 without Poky-Outcome would say that nothing was done; and so it is the next time."""
    fill(client, bucket, *(f"k{number:04}" for number in range(1500)))
    with closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT poky.put(%s, 'k1200', 'locked', 'text/plain')", [bucket])
        answer = client.delete(f"/kv/{bucket}?prefix=k&confirm=k")
        assert (answer.status, answer.json()) == (200, {"deleted": 1000, "more": True})
        answer = client.delete(f"/kv/{bucket}?prefix=k&confirm=k")
        assert answer.status == 503
        assert "Poky-Outcome" not in answer.headers
        connection.rollback()
    assert client.delete(f"/kv/{bucket}?prefix=k&confirm=k").json() == {
        "deleted": 500,
        "more": False,
    }


def test_every_key_is_purged(
    database: Database, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    log = tmp_path_factory.mktemp("purged") / "log"
    with (
        FakeCache("prefix") as cache,
        running(database.dsn_service, log, caches=f"prefix={cache.url}") as service,
    ):
        client = service.client()
        wanted = {f"/kv/{bucket}/a/1", f"/kv/{bucket}/a/2"}

        def purged() -> bool:
            """Once the cache takes part."""
            fill(client, bucket, "a/1", "a/2", "b")
            cache.told.clear()
            assert client.delete(f"/kv/{bucket}?prefix=a/&confirm=a/").json()["deleted"] == 2
            return wanted <= set(cache.told)

        wait_until(purged, 60)
        assert f"/kv/{bucket}/b" not in cache.told
    command(database, "cache", "remove", "prefix")


@pytest.mark.inside
def test_the_command_clears_a_bucket(client: Client, bucket: str, database: Database) -> None:
    fill(client, bucket, *(f"k{number:04}" for number in range(1500)), "other")
    assert "--confirm k" in command(database, "bucket", "clear", bucket, "--prefix", "k", code=1)
    clear = ("bucket", "clear", bucket)
    done = command(database, *clear, "--prefix", "k", "--confirm", "k")
    assert done == {"deleted": 1500}
    client.close()  # the service ends what is idle for longer than a command may take
    assert keys_of(client, bucket) == ["other"]
    assert command(database, *clear, "--confirm", bucket) == {"deleted": 1}
    client.close()
    assert keys_of(client, bucket) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"], scope="session")
def test_what_one_request_has_no_time_for_the_same_request_goes_on_with(
    database: Database, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each thousand waits for its purge, which takes two seconds here."""
    log = tmp_path_factory.mktemp("prefix") / "log"
    settings = {"purge_timeout": "10", "lease_seconds": "30"}
    with (
        FakeCache("slow") as cache,
        running(database.dsn_service, log, caches=f"slow={cache.url}", **settings) as service,
    ):
        client = service.client(60)

        def takes_part() -> bool:
            cache.told.clear()
            client.put(f"/kv/{bucket}/other", "v")
            return f"/kv/{bucket}/other" in cache.told

        wait_until(takes_part, 60)
        fill(client, bucket, *(f"k{number:04}" for number in range(4500)))
        cache.delay = 1.1  # for each half of a thousand at least
        answers = []
        while not answers or answers[-1]["more"]:
            answers.append(client.delete(f"/kv/{bucket}?prefix=k&confirm=k").json())
            assert answers[-1]["deleted"] > 0
        cache.delay = 0.0
        assert len(answers) > 1
        assert sum(each["deleted"] for each in answers) == 4500
        assert keys_of(client, bucket) == ["other"]
        assert {f"/kv/{bucket}/k{number:04}" for number in range(4500)} <= set(cache.told)
    command(database, "cache", "remove", "slow")


def test_proxies_wait_for_longer_than_one_request_takes() -> None:
    assert batches._PREFIX_SECONDS <= 5
