"""What /metrics exports is what docs/metrics.md says, and moves when something happens."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Database
from tests.fake_cache import FakeCache
from tests.service import Client, Service, running, wait_until

ROOT = Path(__file__).parent.parent

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def documented() -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Kind, labels and sentence by name, as the page has them."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    return {
        name: (kind, tuple(sorted(re.findall(r"`(\w+)`", labels))), help)
        for name, kind, labels, help in rows
    }


def exported(admin: Client) -> str:
    answer = admin.get("/metrics")
    assert answer.status == 200
    return answer.body.decode()


def samples(admin: Client) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exported(admin))
        for sample in family.samples
    }


def value(admin: Client, name: str, **labels: str) -> float:
    return samples(admin).get((name, frozenset(labels.items())), 0.0)


@pytest.fixture
def cache() -> Iterator[FakeCache]:
    with FakeCache("one") as cache:
        yield cache


@pytest.fixture
def service(own_database: Database, tmp_path: Path, cache: FakeCache) -> Iterator[Service]:
    """An instance with everything that has metrics."""
    with running(
        own_database.dsn_service,
        tmp_path / "log",
        caches=f"one={cache.url}",
        lease_seconds="2",
        metrics_buckets="2",
        statement_timeout="30",
    ) as service:
        yield service


@pytest.mark.parametrize("kind", ["partitioned"])
def test_every_metric_is_documented_and_no_other(kind: str, service: Service) -> None:
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(exported(service.admin()))
    }
    page = {name: each for name, each in documented().items() if not name.startswith("poky_shard_")}
    assert sorted(families) == sorted(page)
    for name, family in families.items():
        kind_said, labels, help = page[name]
        assert (kind_said, help) == (family.type, family.documentation), name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} <= set(labels) - {"shard"}, name


@pytest.mark.parametrize("kind", ["partitioned"])
def test_nothing_is_counted_before_it_has_happened(kind: str, service: Service) -> None:
    """Whether it can serve was asked, which takes connections; and tasks have run."""
    counted = {
        family.name
        for family in text_string_to_metric_families(exported(service.admin()))
        if family.type in ("counter", "histogram")
        if any(sample.value and "_created" not in sample.name for sample in family.samples)
    }
    assert counted - {"process_cpu_seconds", "poky_background_runs", "poky_cache_leases"} <= {
        "poky_requests",
        "poky_request_seconds",
        "poky_sent_bytes",
        "poky_database_connects",
    }
    assert value(service.admin(), "poky_inflight") == 0
    assert value(service.admin(), "poky_followers") == 0
    assert value(service.admin(), "poky_cache_waiting") == 0


@pytest.mark.parametrize("kind", ["partitioned"])
def test_metrics_move_with_what_happens(
    kind: str, service: Service, own_database: Database, cache: FakeCache
) -> None:
    client, admin = service.client(), service.admin()
    assert admin.request("PUT", "/buckets/b").status == 200
    client.put("/kv/b/k", "12345")
    client.get("/kv/b/k")
    client.batch("PUT", "b", [{"key": "k1", "data": "a"}, {"key": "k2", "data": "b"}])
    client.get("/kv/nothing/k")
    now = samples(admin)

    def seen(name: str, **labels: str) -> float:
        return now.get((name, frozenset(labels.items())), 0.0)

    assert seen("poky_received_bytes_total") >= 5
    assert seen("poky_sent_bytes_total") >= 5
    assert seen("poky_batch_items_sum", method="PUT") == 2
    assert seen("poky_shared_writes_group_objects_count") == 1
    assert seen("poky_shared_writes_objects_total") == 1
    assert seen("poky_shared_reads_statements_total") == 2
    assert seen("poky_bucket_requests_total", bucket="b", method="PUT") == 2
    assert seen("poky_bucket_requests_total", bucket="-", method="GET") == 1
    assert seen("poky_bucket_received_bytes_total", bucket="b") >= 5
    assert not [labels for _, labels in now if ("bucket", "nothing") in labels]
    assert seen("poky_database_pool_size") == 8
    assert seen("poky_inflight_bytes_limit") > 0
    assert seen("process_cpu_seconds_total") > 0

    # Once the cache takes part, purges and leases are counted by node.
    wait_until(
        lambda: (
            value(admin, "poky_cache_node_suspended", node="one") == 0.0
            and ("poky_cache_node_suspended", frozenset({("node", "one")})) in samples(admin)
        ),
        what="the cache takes part",
    )
    confirmed = {"node": "one", "outcome": "confirmed"}

    def is_confirmed() -> bool:
        client.put("/kv/b/k", "2")  # on a busy machine the cache's answer may come too late
        return value(admin, "poky_cache_purge_seconds_count", **confirmed) >= 1

    wait_until(is_confirmed)
    lease = Client(service.lease_port)
    assert lease.get("/lease", poky_node="one").status == 200
    assert lease.get("/lease", poky_node="unknown").status == 403
    assert value(admin, "poky_cache_leases_total", outcome="granted") == 1
    assert value(admin, "poky_cache_leases_total", outcome="refused") == 1
    wait_until(lambda: value(admin, "poky_cache_node_lease_timestamp_seconds", node="one") > 0)

    # A connection that the database ends is an error with its SQLSTATE, and a retry.
    connection = psycopg2.connect(own_database.dsn_owner)
    connection.autocommit = True
    connection.cursor().execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    connection.close()
    assert client.get("/kv/b/k").status == 200
    now = samples(admin)
    errors = {
        dict(labels)["sqlstate"]: number
        for (name, labels), number in now.items()
        if name == "poky_database_errors_total"
    }
    assert sum(errors.values()) >= 1, errors
    assert seen("poky_database_retries_total") >= 1
    assert seen("poky_database_connects_total") >= 1


@pytest.mark.parametrize("kind", ["partitioned"])
def test_clients_cannot_use_the_series_of_buckets_up(kind: str, service: Service) -> None:
    client, admin = service.client(), service.admin()
    for number in range(20):
        client.get(f"/kv/invented-{number}/k")
        client.get(f"/kv/%62{number}?x")
        client.put(f"/multi/invented-{number}", "[]")
    for name in ("first", "second", "third"):
        admin.request("PUT", f"/buckets/{name}")
        client.put(f"/kv/{name}/k", "v")
    named = {
        dict(labels)["bucket"]
        for (name, labels) in samples(admin)
        if name == "poky_bucket_requests_total"
    }
    assert named == {"first", "second", "-"}


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_refused_token_is_counted(kind: str, own_database: Database, tmp_path: Path) -> None:
    with running(own_database.dsn_service, tmp_path / "log", access="tokens") as service:
        client, admin = service.client(), service.admin()
        assert client.get("/kv/b/k").status == 401
        assert value(admin, "poky_tokens_refused_total", verdict="unknown") == 1
        assert value(admin, "poky_tokens_refused_total", verdict="refused") == 0


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_wait_for_a_connection_is_counted(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    settings = {"pool_size": "1", "pool_timeout": "0.2", "threads": "4", "lock_timeout": "4"}
    with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
        admin = service.admin()
        admin.request("PUT", "/buckets/b")
        owner = psycopg2.connect(own_database.dsn_owner)
        owner.cursor().execute("LOCK TABLE poky.bucket IN ACCESS EXCLUSIVE MODE")

        def read() -> None:
            service.client().get("/kv/b/k")

        readers: list[threading.Thread] = []

        def one_waits() -> bool:
            readers.append(threading.Thread(target=read))
            readers[-1].start()  # those that come in one moment share a connection
            return value(admin, "poky_database_wait_timeouts_total") >= 1

        wait_until(one_waits)
        owner.rollback()
        owner.close()
        for reader in readers:
            reader.join(30)
        assert value(admin, "poky_database_waits_total") >= 1
        assert value(admin, "poky_database_wait_seconds_total") > 0
