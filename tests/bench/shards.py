"""Several databases: what they cost, and what the others notice when one of them fails."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg2

from poky import embedded
from poky.schema.migrate import migrate
from poky.schema.shards import join_shards
from poky.store import ShardedStore
from tests.bench.contest import Contest, Contestant
from tests.bench.load import Http, LoadError, Mixed, MixedPart, Sample
from tests.bench.stack import Database, Service, Stack
from tests.bench.suites import CLIENTS, KB, Contests, Stage, _Cpu
from tests.service import wait_until
from tests.support.databases import hung
from tests.support.slow import SlowWay

KEYS = 1000
_SETTLE_SECONDS = 1.0
_FAULT_SECONDS = 5
_TEMPLATES: set[str] = set()
_NUMBERS = itertools.count(1)
MANY, MANY_BUCKETS, MANY_KEYS = 8, 200, 50


@dataclass(frozen=True)
class Sharded:
    """Control, the other databases, and instances over all of them."""

    control: Database
    others: dict[int, Database]
    service: Service

    def store(self) -> ShardedStore:
        """A store over them."""
        shards = {number: each.service for number, each in self.others.items()}
        return ShardedStore(self.control.service, shards)

    def fill(self, buckets: dict[str, int], keys: int, value: bytes) -> None:
        """Buckets on these shards, with ``keys`` objects each."""
        with closing(self.store()) as store:
            for name, number in buckets.items():
                store.ensure_bucket(name, number)
        for name, number in buckets.items():
            database = self.others[number] if number else self.control
            database.fill_there(name, keys, value)
        for database in (self.control, *self.others.values()):
            database.settle()


def sharded(stack: Stack, others: dict[int, Database], processes: int, cache: str = "") -> Sharded:
    """Instances over a new control and these."""
    control = _migrated(stack)
    join_shards(control.owner, {number: each.owner for number, each in others.items()})
    given = " ".join(f"{number}={each.service}" for number, each in others.items())
    return Sharded(control, others, stack.poky(control, processes, shards=given, cache=cache))


def _migrated(stack: Stack) -> Database:
    """An empty database of this release."""
    name = f"empty_{stack.folder.name.replace('-', '_')}"
    if name not in _TEMPLATES:
        _TEMPLATES.add(name)
        migrate(stack.empty_database(name).owner, kind="partitioned", release="bench")
    return stack.empty_database(f"shard_{next(_NUMBERS)}", name)


def shards(stage: Stage) -> Contests:
    """CPU of a request: three databases against one, as many clients, on the same server."""
    value = stage.stack.value(KB)
    three = sharded(stage.stack, {n: _migrated(stage.stack) for n in (1, 2)}, 1)
    three.fill({f"s-{n + 1}": n for n in range(3)}, KEYS, value.read_bytes())
    alone = _migrated(stage.stack)
    one = stage.stack.poky(alone, 1)
    for number in (1, 2, 3):
        alone.fill(f"s-{number}", KEYS, value.read_bytes())
    alone.settle()
    for clients in (CLIENTS, 3 * CLIENTS):
        for method in ("GET", "PUT"):
            contestants: dict[str, Contestant] = {}
            for name, service in (("shards-3", three.service), ("shards-1", one)):
                contestants[f"{name}.{method.lower()}.{clients}"] = _Cpu(
                    Http(
                        service.ports, "/kv/s-#/key-", KEYS, 3, method=method,
                        value=value if method == "PUT" else None, clients=clients,
                        watched=service.watched,
                    )
                )  # fmt: skip
            names = list(contestants)
            yield Contest(
                contestants,
                [(names[0], names[1])],
                unit="us",
                warm_up=names,
                facts={"clients": clients, "value_bytes": KB},
                least_seconds=2,
            )


class _Bother(Http):
    """Clients of the shard that fails: refusals, or no answer at all, are what they get."""

    def run_alone(self, seconds: int) -> tuple[float, float, float, float]:
        try:
            return super().run_alone(seconds)
        except LoadError:
            return 0.0, 0, 0.0, 0.0


@dataclass
class _During(Mixed):
    """Loads side by side, while a fault lasts."""

    fault: Callable[[], AbstractContextManager[Any]] = nullcontext
    ready: Callable[[], None] = lambda: None

    def _run(self, seconds: int) -> None:
        with self.fault():
            time.sleep(_SETTLE_SECONDS)
            super()._run(seconds)
        self.ready()


@dataclass(frozen=True)
class _Slowest:
    """What 99 of 100 requests of a part stay below, in microseconds."""

    part: MixedPart

    def run(self, seconds: int) -> Sample:
        sample = self.part.run(seconds)
        return replace(sample, rate=sample.p99)


@dataclass
class _Shard:
    """A PostgreSQL of its own, which may be treated badly."""

    home: Path
    server: embedded.Embedded

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It is not there: connections are refused."""
        self.server.close()
        try:
            yield
        finally:
            self.server = embedded.ensure_running(self.home)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Its processes exist and do nothing."""
        with hung(self.server):
            yield

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Every write is refused, as by a standby."""
        self._set("ALTER SYSTEM SET default_transaction_read_only = on")
        try:
            yield
        finally:
            self._set("ALTER SYSTEM RESET default_transaction_read_only")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """No statement on an object gets its lock."""
        with closing(psycopg2.connect(self.server.dsn_owner)) as connection:
            connection.cursor().execute("LOCK TABLE poky._object IN ACCESS EXCLUSIVE MODE")
            yield

    def _set(self, statement: str) -> None:
        with closing(psycopg2.connect(self.server.dsn_owner)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(statement)
            cursor.execute("SELECT pg_reload_conf()")


def shard_faults(stage: Stage) -> Contests:
    """The slowest hundredth of other buckets' requests, one shard failing, against before."""
    value = stage.stack.value(KB)
    home = stage.stack.folder / "shard"
    server = embedded.ensure_running(home)
    shard = _Shard(home, server)
    try:
        migrate(server.dsn_owner, kind="partitioned", release="bench")
        there = {1: Database(server.dsn_owner, server.dsn_service)}
        with SlowWay(server.dsn_service) as way:
            whole = sharded(stage.stack, there, 1)
            whole.fill({"here": 0, "there": 1}, KEYS, value.read_bytes())
            by_way = stage.stack.poky(whole.control, 1, shards=f"1={way.dsn}")
            faults: dict[str, Callable[[], AbstractContextManager[Any]]] = {
                "stopped": shard.stopped,
                "hung": shard.hung,
                "read-only": shard.read_only,
                "locked": shard.locked,
                "slow": lambda: way.slow(0.2),
            }
            for name, fault in faults.items():
                service = by_way if name == "slow" else whole.service
                yield _beside(service, name, fault, value)
    finally:
        shard.server.close()


def _beside(
    service: Service, name: str, fault: Callable[[], AbstractContextManager[Any]], value: Any
) -> Contest:
    put = {"method": "PUT", "value": value}
    # All rest between requests: the waits are looked for, not who gets a CPU that is full.
    put = {"method": "PUT", "value": value, "pace": 20}
    here, there = "/kv/here/key-", "/kv/there/key-"
    ports, watched = service.ports, service.watched
    parts = {
        "get": Http(ports, here, KEYS, clients=8, pace=10, watched=watched),
        "put": Http(ports, here, KEYS, clients=4, watched=watched, **put),
        "there.get": _Bother(ports, there, KEYS, clients=8, pace=20, allow_refusals=True),
        "there.put": _Bother(ports, there, KEYS, clients=4, allow_refusals=True, **put),
    }

    def ready_again() -> None:
        """Until the shard serves again, whose clients would else be slow in the next slice."""
        probe = Http(ports, there, KEYS, clients=2, **put)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                probe.run_alone(1)
            except LoadError:
                time.sleep(0.2)
            else:
                return

    well, ill = _During(parts), _During(parts, fault=fault, ready=ready_again)
    contestants: dict[str, Contestant] = {}
    pairs: list[tuple[str, str]] = []
    for verb in ("get", "put"):
        contestants[f"others.{verb}.{name}"] = _Slowest(ill.part(verb))
        contestants[f"others.{verb}.well"] = _Slowest(well.part(verb))
        pairs.append((f"others.{verb}.{name}", f"others.{verb}.well"))
    return Contest(
        contestants,
        pairs,
        unit="us",
        facts={"clients": 24, "value_bytes": KB},
        least_seconds=_FAULT_SECONDS,
    )


def _many(stage: Stage, cache: str = "") -> tuple[Sharded, float]:
    """Eight databases with 200 buckets; the busiest's share of requests, if those are skewed."""
    value = stage.stack.value(KB).read_bytes()
    others = {number: _migrated(stage.stack) for number in range(1, MANY)}
    whole = sharded(stage.stack, others, 2, cache=cache)
    ranks = [*range(1, MANY_BUCKETS + 1)]
    random.Random(1).shuffle(ranks)  # nobody knows beforehand which bucket will be popular
    with closing(whole.store()) as store:
        for rank in ranks:
            store.ensure_bucket(f"z-{rank}")
        places = store.places()
    load = dict.fromkeys(range(MANY), 0.0)
    for name, number in places.items():
        load[number] += 1 / int(name[2:])
    for number in range(MANY):
        database = others[number] if number else whole.control
        database.fill_those("z-", MANY_KEYS, value)
    return whole, max(load.values()) / sum(load.values())


def shards_skewed(stage: Stage) -> Contests:
    """Eight databases against one: buckets of which the n-th is asked for 1 / n as often."""
    whole, busiest = _many(stage)
    alone = _migrated(stage.stack)
    alone.fill_many("z-", MANY_BUCKETS, MANY_KEYS, stage.stack.value(KB).read_bytes())
    alone.settle()
    one = stage.stack.poky(alone, 2)
    for method in ("GET", "PUT"):
        value = stage.stack.value(KB) if method == "PUT" else None
        loads = {
            name: Http(
                service.ports, "/kv/z-#/key-", MANY_KEYS, MANY_BUCKETS, method=method, value=value,
                clients=3 * CLIENTS, watched=service.watched, is_skewed=is_skewed,
            )
            for name, service, is_skewed in (
                (f"shards-8.{method.lower()}.skewed", whole.service, True),
                (f"shards-8.{method.lower()}.even", whole.service, False),
                (f"shards-1.{method.lower()}.skewed", one, True),
            )
        }  # fmt: skip
        first, second, third = loads
        yield Contest(
            dict(loads),
            [(first, second), (first, third)],
            warm_up=(first, second, third),
            facts={"clients": 3 * CLIENTS, "value_bytes": KB, "busiest": round(busiest, 3)},
            least_seconds=2,
        )


def shards_told(stage: Stage) -> Contests:
    """PUT over eight databases with as many cache nodes to tell."""
    value = stage.stack.value(KB)
    with ExitStack() as nodes:
        services = {}
        for count in (0, 1, 16):
            told = nodes.enter_context(_nodes(count)) if count else ""
            whole, _ = _many(stage, told)
            with closing(whole.store()) as store:
                wait_until(lambda: len(_taking_part(store)) == count, 60)  # noqa: B023
            services[count] = whole.service
        loads = {
            f"put.told-{count}": Http(
                service.ports, "/kv/z-#/key-", MANY_KEYS, MANY_BUCKETS, method="PUT", value=value,
                clients=CLIENTS, watched=service.watched, is_skewed=True,
            )
            for count, service in services.items()
        }  # fmt: skip
        yield Contest(
            dict(loads),
            [("put.told-16", "put.told-1"), ("put.told-1", "put.told-0")],
            warm_up=tuple(loads),
            facts={"clients": CLIENTS, "value_bytes": KB},
            least_seconds=2,
        )


@contextmanager
def _nodes(count: int) -> Iterator[str]:
    """Cache nodes in a process of their own; their POKY_CACHES."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.nodes", f"{count}"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(10)


def _taking_part(store: ShardedStore) -> list[str]:
    return [each.name for each in store.nodes() if each.suspended_at is None]


SHARDS: dict[str, Callable[[Stage], Contests]] = {
    "shards": shards,
    "shards-skewed": shards_skewed,
    "shards-told": shards_told,
    "shard-faults": shard_faults,
}
