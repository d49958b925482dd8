"""What is seen of several databases, and that what goes through all of them does not wait for one.

Shard 1 is a PostgreSQL of its own here, which can be stopped.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from poky import embedded
from poky.schema import moving
from poky.schema.migrate import migrate
from poky.schema.shards import join_shards
from poky.store import Bucket, ShardedStore, Store
from tests.conftest import HASTY, Cluster, Database
from tests.service import Client, Service, running, wait_until
from tests.support.databases import hung
from tests.test_exported import documented, exported, samples, value
from tests.test_page import show, state_of
from tests.test_probe import node, reads

PUBLIC = {"statement_timeout": "4", "metrics_buckets": "5"}


@dataclass
class Several:
    """Control, a shard of its own server, and a service over both."""

    control: Database
    server: embedded.Embedded
    home: Path

    @property
    def shards(self) -> str:
        return f"1={self.server.dsn_service}"

    def store(self) -> ShardedStore:
        return ShardedStore(self.control.dsn_service, {1: self.server.dsn_service})


@pytest.fixture(scope="module")
def several(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Several]:
    control = cluster.create("partitioned")
    home = tmp_path_factory.mktemp("shard")
    server = embedded.ensure_running(home, settings=HASTY)
    migrate(server.dsn_owner, kind="partitioned", release="tests")
    join_shards(control.dsn_owner, {1: server.dsn_owner})
    several = Several(control, server, home)
    with closing(several.store()) as store:
        for bucket in ("here", "there"):
            store.ensure_bucket(bucket, int(bucket == "there"))
            store.put(bucket, "k", b"v", "text/plain")
    yield several
    several.server.close()
    cluster.drop(control)


@pytest.fixture(scope="module")
def service(several: Several, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    log = tmp_path_factory.mktemp("service") / "log"
    with running(several.control.dsn_service, log, shards=several.shards, **PUBLIC) as service:
        for bucket in ("here", "there"):
            assert service.client().get(f"/kv/{bucket}/k").status == 200
        yield service


def test_metrics_are_those_of_one_database_by_shard(service: Service) -> None:
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(exported(service.admin()))
    }
    page = documented()
    assert {name for name in page if name.startswith("poky_shard_")} <= set(families) <= set(page)
    for name, family in families.items():
        kind, labels, help = page[name]
        assert (kind, help) == (family.type, family.documentation), name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= set(labels), name
    for name in ("busy", "idle", "pool_size", "waits_total", "connects_total", "retries_total"):
        shards = {
            dict(labels)["shard"]
            for metric, labels in samples(service.admin())
            if metric == f"poky_database_{name}"
        }
        assert shards == {"0", "1"}, name
    for number in ("0", "1"):
        assert value(service.admin(), "poky_shard_up", shard=number) == 1
        assert value(service.admin(), "poky_shard_bytes", shard=number) > 1e6
        assert value(service.admin(), "poky_shard_buckets", shard=number) >= 1
        assert value(service.admin(), "poky_database_connects_total", shard=number) >= 1


def test_the_page_shows_each_database_and_where_buckets_are(service: Service) -> None:
    page = show(service.admin()).body.decode()
    assert "All is well" in page
    assert re.search(r"<td><b>0</b> \(control\)</td><td><span class=\"good\">answers", page)
    assert re.search(r"<td><b>1</b></td><td><span class=\"good\">answers", page)
    rows = dict(re.findall(r"<tr><td><a[^>]*>(here|there)</a></td>(.*?)</tr>", page))
    assert rows["here"].endswith("<td>0</td>")
    assert rows["there"].endswith("<td>1</td>")
    for bucket, words in {
        "here": "It is on control (shard 0).",
        "there": "It is on shard 1.",
    }.items():
        assert words in show(service.admin(), f"/browse?bucket={bucket}").body.decode()


def test_the_status_has_each_database(service: Service) -> None:
    shards = service.client().get("/status?verbose").json()["shards"]
    assert [(each["shard"], each["database"], each["schema"]) for each in shards] == [
        (0, "ok", "ok"),
        (1, "ok", "ok"),
    ]


def test_what_is_wrong_with_a_shard_is_seen_while_the_others_go_on(
    several: Several, service: Service
) -> None:
    admin = service.admin()
    with hung(several.server):
        began = time.monotonic()
        assert value(admin, "poky_shard_up", shard="1") == 0
        assert value(admin, "poky_shard_up", shard="0") == 1
        said = state_of(admin)
        assert "The database of shard 1 does not answer." in said
        assert "Is PostgreSQL up there" in said
        page = show(admin).body.decode()
        assert "Those of shard 1 are not known now." in page
        assert ">here</a>" in page
        status = service.client().get("/status?verbose")
        assert status.status == 200
        assert [each["database"] for each in status.json()["shards"]] == ["ok", "unavailable"]
        assert time.monotonic() - began < 15
    wait_until(lambda: "All is well" in state_of(admin))


def test_control_that_is_away_is_told_though_the_service_goes_on(
    cluster: Cluster, tmp_path: Path
) -> None:
    shard = cluster.create("partitioned")
    with embedded.ensure_running(tmp_path / "control", settings=HASTY) as control:
        migrate(control.dsn_owner, kind="partitioned", release="tests")
        join_shards(control.dsn_owner, {1: shard.dsn_owner})
        with closing(ShardedStore(control.dsn_service, {1: shard.dsn_service})) as store:
            store.ensure_bucket("there", 1)
        with running(
            control.dsn_service, tmp_path / "log", shards=f"1={shard.dsn_service}"
        ) as service:
            assert service.client().get("/kv/there/k").status == 404
            assert "All is well" in state_of(service.admin())
            with hung(control):
                wait_until(lambda: service.client().get("/status").status == 200)
                began = time.monotonic()
                page = show(service.admin()).body.decode()
                assert time.monotonic() - began < 3
                assert "The database of control (shard 0) does not answer." in page
                assert ">there</a>" in page
                assert "Those of shard 0 are not known now." in page
    cluster.drop(shard)


def test_a_database_under_a_wrong_number_is_told(several: Several, tmp_path: Path) -> None:
    wrong = several.shards.replace("1=", "2=")
    with running(several.control.dsn_service, tmp_path / "log", shards=wrong) as service:
        said = state_of(service.admin())
        assert "The database that the settings call shard 2 is shard 1." in said


def test_what_expires_is_removed_while_another_database_hangs(
    several: Several, service: Service
) -> None:
    client = service.client()
    client.request("PUT", "/kv/here/soon", "v", {"Poky-TTL": "1"})

    def is_removed() -> bool:
        with closing(several.control.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM poky._object WHERE key = 'soon'")
            return bool(cursor.fetchone() == (0,))

    assert not is_removed()
    with hung(several.server):
        time.sleep(6)  # a run that began before
        client.request("PUT", "/kv/here/soon", "v", {"Poky-TTL": "1"})
        wait_until(is_removed, 20)
    tasks = {each["name"] for each in service.client().get("/status?verbose").json()["background"]}
    assert {"reap", "reap-1"} <= tasks


def test_changes_are_told_while_another_database_hangs(
    cluster: Cluster, several: Several, tmp_path: Path
) -> None:
    with closing(Store(several.control.dsn_owner, pool_size=1)) as owner:
        owner.ensure_bucket("followed")
        owner.keep_changes("followed", 86_400)
    with closing(several.store()) as store:
        store.ensure_bucket("followed-there", 1)
    with closing(Store(several.server.dsn_owner, pool_size=1)) as owner:
        owner.keep_changes("followed-there", 86_400)
    with running(
        several.control.dsn_service, tmp_path / "log", shards=several.shards, **PUBLIC
    ) as service:
        assert service.client().put("/kv/followed/k", "v").status == 200

        def follow(bucket: str, after: str, wait: int) -> Any:
            return service.client().get(f"/changes/{bucket}?after={after}&wait={wait}").json()

        after = follow("followed", "0", 1)["next"]
        there = follow("followed-there", "0", 1)["next"]
        others = [
            threading.Thread(target=follow, args=("followed-there", there, 20)) for _ in range(4)
        ]
        for each in others:
            each.start()
        time.sleep(0.5)
        with hung(several.server):
            time.sleep(0.5)  # for a look that waits
            for number in range(5):
                told: list[Any] = []
                follower = threading.Thread(
                    target=lambda: told.append(follow("followed", after, 20))  # noqa: B023
                )
                follower.start()
                time.sleep(0.2)
                began = time.monotonic()
                service.client().put(f"/kv/followed/k{number}", "v")
                follower.join()
                assert time.monotonic() - began < 1
                assert [each["key"] for each in told[0]["changes"]] == [f"k{number}"]
                after = told[0]["next"]
        assert service.client().put("/kv/followed-there/k", "v").status == 200
        for each in others:
            each.join()


def test_every_database_has_a_canary(several: Several, tmp_path: Path) -> None:
    with node(0) as cache:
        settings = {"probe": f"one={cache.url}", "probe_seconds": "0.1", "shards": several.shards}
        with running(several.control.dsn_service, tmp_path / "log", **settings) as service:
            cache.target = service.port
            admin: Client = service.admin()
            wait_until(lambda: reads(admin, "one", "fresh") > 5)
            with closing(several.store()) as store:
                wait_until(lambda: len(store.list_page("poky-probe-1", "", "", 9).entries) == 1)
                assert [store.find_shard(f"poky-probe{each}") for each in ("", "-1")] == [0, 1]
            cache.keeps = True
            wait_until(lambda: value(admin, "poky_probe_stale_total", node="one") > 5)


def test_a_bucket_that_moves_is_in_every_list(cluster: Cluster) -> None:
    """Also one that goes from a database that is listed later to one that was listed before."""
    database = cluster.create_sharded(2)
    shards = {1: database.others[0].dsn_service}
    owners = {0: database.dsn_owner, 1: database.others[0].dsn_owner}
    with closing(ShardedStore(database.dsn_service, shards)) as store:
        store.ensure_bucket("moves", 1)
        is_over = threading.Event()
        seen: list[list[str]] = []

        def look() -> None:
            with closing(ShardedStore(database.dsn_service, shards)) as other:
                while not is_over.is_set():
                    seen.append([each.name for each in other.buckets()])

        reader = threading.Thread(target=look)
        reader.start()
        for target in (0, 1, 0, 1, 0, 1):
            moving.move(owners, "moves", target)
        is_over.set()
        reader.join()
        assert {tuple(each) for each in seen} == {("moves",)}
        assert store.buckets() == [
            Bucket("moves", "partitioned", 0, store.buckets()[0].bytes, None, None, 1)
        ]
    cluster.drop(replace(database))
