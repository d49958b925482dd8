"""What is compared. A suite sets its stage and yields contests, one after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from tests.bench import machine
from tests.bench.contest import Contest, Contestant
from tests.bench.load import Http, Pgbench, Sample, watch
from tests.bench.stack import Command, Service, Stack, end
from tests.service import free_ports

KB = 1024
CLIENTS = 32
SELECT = (
    "SELECT revision, hash, modified_at, written_at, content_type, value FROM bench.object"
    " WHERE bucket_id = {bucket_id} AND key = 'key-' || :key"
)
UPSERT = (
    "INSERT INTO bench.object AS o (bucket_id, key, revision, hash, modified_at, written_at,"
    " created_at, content_type, value) VALUES ({bucket_id}, 'key-' || :key,"
    " nextval('bench.revision'), '12345678', 1, 1, 1, 'text/plain', :value) ON CONFLICT"
    " (bucket_id, key) DO UPDATE SET revision = excluded.revision, hash = excluded.hash,"
    " modified_at = excluded.modified_at, written_at = excluded.written_at,"
    " content_type = excluded.content_type, value = excluded.value"
)

Contests = Iterator[Contest]


@dataclass
class Stage:
    """The stack, and what several suites share of it; made when first asked for."""

    stack: Stack
    large: bool = False  #: also what takes minutes: 10^7 keys, a million requests
    _made: dict[object, object] = field(default_factory=dict)

    def once(self, make: Callable[..., object], *arguments: object) -> object:
        """What ``make`` returned the first time."""
        key = make, arguments
        if key not in self._made:
            self._made[key] = make(*arguments)
        return self._made[key]

    @property
    def poky(self) -> Service:
        """Two processes of four threads on the partitioned schema."""
        return self.once(self.stack.poky, self.stack.partitioned)  # type: ignore[return-value]

    @property
    def flat(self) -> Service:
        """The same on the flat schema."""
        return self.once(self.stack.poky, self.stack.flat)  # type: ignore[return-value]

    @property
    def naive(self) -> Service:
        """The naive app, likewise."""
        return self.once(self.stack.naive)  # type: ignore[return-value]

    @property
    def cached(self) -> tuple[Service, Service]:
        """Poky's Varnish and the service behind it."""
        return self.once(self.stack.cached_poky)  # type: ignore[return-value]

    def bucket(self, size: int, keys: int) -> str:
        """A bucket filled alike for Poky, for pgbench and for the naive app."""
        return self.once(self._bucket, size, keys)  # type: ignore[return-value]

    def _bucket(self, size: int, keys: int) -> str:
        bucket, value = f"values-{size}", self.stack.value(size).read_bytes()
        for database in (self.stack.partitioned, self.stack.flat):
            database.fill(bucket, keys, value)
        self.stack.partitioned.fill_yardsticks(bucket, size, keys, value)
        for database in (self.stack.partitioned, self.stack.flat):
            database.settle()
        return bucket

    def http(self, service: Service, bucket: str, keys: int, **what: object) -> Http:
        """Requests for random keys of a bucket."""
        path = f"/kv/{bucket}/key-"
        return Http(service.ports, path, keys, watched=service.watched, **what)  # type: ignore[arg-type]

    def pgbench(self, statement: str, size: int, keys: int, clients: int, *, put: bool) -> Pgbench:
        """The limit below: the bare statement on a table of the same shape."""
        return Pgbench(
            self.stack.partitioned.service,
            statement.format(bucket_id=size),
            keys,
            self.stack.value(size) if put else None,
            clients,
            self.stack.watched(),
        )


def _cells() -> Iterator[tuple[int, int, int, str]]:
    """Sizes, keys, clients, and how names end: the first cell is the one that goals speak of."""
    for (size, keys), clients in itertools.product(((KB, 10_000), (64 * KB, 500)), (32, 8, 1)):
        ending = "" if (size, clients) == (KB, CLIENTS) else f".{size // KB}k.{clients}"
        yield size, keys, clients, ending


def get(stage: Stage) -> Contests:
    """GET at the service itself: no cache, no proxy."""
    for size, keys, clients, ending in _cells():
        bucket = stage.bucket(size, keys)
        yield _single("get", "select", ending, stage, size, keys, clients, bucket)
    size, keys = KB, 10_000
    bucket = stage.bucket(size, keys)
    direct = stage.http(stage.poky, bucket, keys)
    yield Contest(
        {
            "get.direct": direct,
            "get.flat": stage.http(stage.flat, bucket, keys),
            "get.not-found": replace(direct, path=f"/kv/{bucket}/none-", allow_refusals=True),
            "get.not-modified": replace(direct, headers=("If-None-Match: *",)),
        },
        [(name, "get.direct") for name in ("get.flat", "get.not-found", "get.not-modified")],
        facts={"clients": CLIENTS, "value_bytes": size},
    )


def put(stage: Stage) -> Contests:
    """PUT and DELETE at the service itself."""
    for size, keys, clients, ending in _cells():
        bucket = stage.bucket(size, keys)
        yield _single("put", "upsert", ending, stage, size, keys, clients, bucket)
    size, keys = KB, 10_000
    bucket, value = stage.bucket(size, keys), stage.stack.value(KB)
    direct = stage.http(stage.poky, bucket, keys, method="PUT", value=value)
    stage.stack.partitioned.fill("deleted", 300_000, b"gone soon")  # spare rounds, too
    delete = Http(
        stage.poky.ports, "/kv/deleted/key-", method="DELETE", watched=stage.poky.watched,
        first_key=itertools.count(1, 15_000).__next__,
    )  # fmt: skip
    yield Contest(
        {
            "put.direct": direct,
            "put.flat": stage.http(stage.flat, bucket, keys, method="PUT", value=value),
            "put.dated": replace(
                direct, headers=("If-Unmodified-Since: Fri, 02 Jan 2026 00:00:00 GMT",)
            ),
            "put.if-match": replace(direct, headers=("If-Match: *",)),
            "delete": delete,
        },
        [(name, "put.direct") for name in ("put.flat", "put.dated", "put.if-match", "delete")],
        facts={"clients": CLIENTS, "value_bytes": size},
    )  # fmt: skip


def _single(
    name: str, statement: str, ending: str, stage: Stage,
    size: int, keys: int, clients: int, bucket: str,
) -> Contest:  # fmt: skip
    what: dict[str, object] = {"clients": clients}
    if name == "put":
        what |= {"method": "PUT", "value": stage.stack.value(size)}
    contestants: dict[str, Contestant] = {
        f"{name}.direct": stage.http(stage.poky, bucket, keys, **what),
        "naive": stage.http(stage.naive, bucket, keys, **what),
    }
    if size == KB or clients == CLIENTS:
        contestants[f"pgbench-{statement}"] = stage.pgbench(
            SELECT if name == "get" else UPSERT, size, keys, clients, put=name == "put"
        )
    return Contest(
        {each + ending: contestants[each] for each in contestants},
        [(f"{name}.direct{ending}", each + ending) for each in list(contestants)[1:]],
        facts={"clients": clients, "value_bytes": size},
    )


def batch(stage: Stage) -> Contests:
    """Batches and listings, in objects per second, against single statements."""
    size, keys = KB, 10_000
    bucket = stage.bucket(size, keys)
    for verb, method, yardstick in (("set", "PUT", "upsert"), ("get", "POST", "select")):
        value = stage.stack.value(size) if verb == "set" else None
        contestants: dict[str, Contestant] = {
            f"batch-{verb}-{items}": Http(
                stage.poky.ports, f"/multi/{bucket}", keys, method=method, value=value,
                items=items, clients=8, watched=stage.poky.watched,
            )
            for items in (1, 10, 100, 1000)
        }  # fmt: skip
        if verb == "get":
            contestants["list-100"] = Http(
                stage.poky.ports, f"/kv/{bucket}?limit=100&after=key-", keys, clients=8,
                items=100, watched=stage.poky.watched,
            )  # fmt: skip
        name = f"pgbench-{yardstick}"
        statement = UPSERT if verb == "set" else SELECT
        limit = stage.pgbench(statement, size, keys, 8, put=verb == "set")
        yield Contest(
            {**contestants, name: limit},
            [(each, name) for each in contestants],
            unit="objects/s",
            facts={"clients": 8, "value_bytes": size},
        )


def cache(stage: Stage) -> Contests:
    """Through Poky's Varnish, against a Varnish that does nothing else; and through nginx."""
    size, keys = KB, 10_000
    bucket = stage.bucket(size, keys)
    varnish, service = stage.cached
    plain: Service = stage.once(stage.stack.plain_varnish, service.ports[0])  # type: ignore[assignment]
    nginx: Service = stage.once(stage.stack.nginx, varnish.ports[0])  # type: ignore[assignment]
    misses, value = 200_000, stage.stack.value(size)
    stage.stack.cached.fill(bucket, keys, value.read_bytes())
    stage.stack.cached.fill("missed", misses, value.read_bytes())
    stage.stack.cached.settle()
    hit = stage.http(varnish, bucket, 1000)
    direct = stage.http(service, bucket, keys)
    put_direct = stage.http(stage.poky, bucket, keys, method="PUT", value=value)
    facts = {"clients": CLIENTS, "value_bytes": size}
    yield Contest(
        {
            "plain-varnish": stage.http(plain, bucket, 1000),
            "get.hit": hit,
            "get.chain": stage.http(nginx, bucket, 1000),
        },
        [("get.hit", "plain-varnish"), ("get.chain", "plain-varnish")],
        facts=facts,
        warm_up=("plain-varnish", "get.hit"),
    )
    yield Contest(
        {
            "get.direct": direct,
            "get.miss": Http(
                varnish.ports, "/kv/missed/key-",
                watched=varnish.with_pids_of(service),
                first_key=itertools.count(1, misses // 10).__next__,
            ),
            "put.direct": put_direct,
            "put.purged": replace(put_direct, ports=service.ports, watched=service.watched),
            "put.through": replace(
                put_direct, ports=varnish.ports, watched=varnish.with_pids_of(service)
            ),
        },
        [
            ("get.miss", "get.direct"),
            ("put.purged", "put.direct"),
            ("put.through", "put.direct"),
        ],
        facts=facts,
    )  # fmt: skip


def buckets(stage: Stage) -> Contests:
    """A thousand buckets of a hundred keys against one of a hundred thousand, in both schemas."""
    many, keys, value = 1000, 100, stage.stack.value(100)
    for kind, service in (("", stage.poky), (".flat", stage.flat)):
        database = stage.stack.flat if kind else stage.stack.partitioned
        crowded = stage.stack.poky(database)  # processes that know all the buckets
        database.fill_many("many-", many, keys, value.read_bytes())
        database.fill("one", many * keys, value.read_bytes())
        database.settle()
        for method, ending in (("GET", ""), ("PUT", ".put")):
            what = {"method": method, "value": value if method == "PUT" else None}
            yield Contest(
                {
                    f"buckets-1000{ending}{kind}": Http(
                        crowded.ports, "/kv/many-#/key-", keys, many,
                        watched=crowded.watched, **what,
                    ),
                    f"buckets-1{ending}{kind}": stage.http(service, "one", many * keys, **what),
                },
                [(f"buckets-1000{ending}{kind}", f"buckets-1{ending}{kind}")],
                # Every connection meets every table once, and that takes PostgreSQL a millisecond.
                warm_up=(f"buckets-1000{ending}{kind}",) * 10,
                facts={"clients": CLIENTS, "value_bytes": 100},
            )  # fmt: skip


def keys(stage: Stage) -> Contests:
    """Random reads from small to large buckets."""
    sizes = [10**4, 10**5, 10**6, *([10**7] if stage.large else [])]
    value = stage.stack.value(100).read_bytes()
    for size in sizes:
        stage.stack.partitioned.fill(f"keys-{size}", size, value)
    stage.stack.partitioned.settle()
    names = {size: f"keys-1e{len(str(size)) - 1}" for size in sizes}
    contestants: dict[str, Contestant] = {
        names[size]: stage.http(stage.poky, f"keys-{size}", size) for size in sizes
    }
    yield Contest(
        contestants,
        [(name, "keys-1e5") for name in contestants if name != "keys-1e5"],
        facts={"clients": CLIENTS, "value_bytes": 100},
    )


def sizes(stage: Stage) -> Contests:
    """Values from 100 B to 10 MB."""
    for size, number in (
        (100, 1000), (KB, 10_000), (10 * KB, 1000), (100 * KB, 100), (KB**2, 20), (10 * KB**2, 4),
    ):  # fmt: skip
        bucket = stage.bucket(size, number)
        for method in ("GET", "PUT"):
            value = stage.stack.value(size) if method == "PUT" else None
            what = {"method": method, "value": value, "clients": 4}
            ending = f".{size}B"
            yield Contest(
                {
                    f"{method.lower()}.size{ending}": stage.http(
                        stage.poky, bucket, number, **what
                    ),
                    f"naive{ending}": stage.http(stage.naive, bucket, number, **what),
                },
                [(f"{method.lower()}.size{ending}", f"naive{ending}")],
                facts={"clients": 4, "value_bytes": size},
                least_seconds=3 if size > KB**2 else 1,
            )


def clients(stage: Stage) -> Contests:
    """From one client to 256."""
    number = 10_000
    bucket = stage.bucket(KB, number)
    for count in (1, 4, 16, 64, 256):
        for method in ("GET", "PUT"):
            value = stage.stack.value(KB) if method == "PUT" else None
            what = {"method": method, "value": value, "clients": count}
            name = f"{method.lower()}.clients.{count}"
            yield Contest(
                {
                    name: stage.http(stage.poky, bucket, number, **what),
                    f"naive.{count}": stage.http(stage.naive, bucket, number, **what),
                },
                [(name, f"naive.{count}")],
                facts={"clients": count, "value_bytes": KB},
            )


@dataclass(frozen=True)
class _Start:
    """From the start of a process to its first answer."""

    stack: Stack
    command: Callable[[], Command]

    def run(self, seconds: int) -> Sample:
        """Start a process and end it."""
        return watch(self.stack.watched(), self._run)

    def _run(self) -> tuple[float, float, float, float]:
        command = self.command()
        started = time.monotonic()
        process = self.stack.start(command)
        command.wait(process, pause=0.002)
        elapsed = time.monotonic() - started
        end(process)
        return elapsed * 1000, 1, 0, 0


def start(stage: Stage) -> Contests:
    """Time to the first answer."""
    stack = stage.stack
    yield Contest(
        {
            "start": _Start(stack, lambda: stack.poky_command(stack.partitioned, *free_ports(3))),
            "naive": _Start(stack, lambda: stack.naive_command(*free_ports(1))),
        },
        [("start", "naive")],
        unit="ms",
    )


@dataclass(frozen=True)
class _Memory:
    """RAM of the larger of a service's processes."""

    service: Service

    def run(self, seconds: int) -> Sample:
        return Sample(max(map(machine.resident_bytes, self.service.watched.service)) / machine.MB)


@dataclass
class _MemoryAfter:
    """The same after some requests; the first run makes them all."""

    load: Http
    service: Service
    requests: int
    _done: int = 0

    def run(self, seconds: int) -> Sample:
        while self._done < self.requests:
            self._done += int(self.load.run(5).rate * 5)
        return _Memory(self.service).run(seconds)


def memory(stage: Stage) -> Contests:
    """Memory of a process: idle, and under load of reads and writes."""
    keys = 10_000
    bucket, value = stage.bucket(KB, keys), stage.stack.value(KB)
    fresh, naive = stage.stack.poky(stage.stack.partitioned), stage.stack.naive()
    yield Contest(
        {"memory.idle": _Memory(fresh), "naive": _Memory(naive)},
        [("memory.idle", "naive")],
        unit="MB",
    )
    put = stage.http(fresh, bucket, keys, method="PUT", value=value)
    _MemoryAfter(put, fresh, 20_000).run(1)
    early = _Memory(fresh).run(1).rate
    requests = 1_000_000 if stage.large else 100_000
    yield Contest(
        {
            "memory.loaded": _MemoryAfter(stage.http(fresh, bucket, keys), fresh, requests),
            "memory.early": _Constant(early),
        },
        [("memory.loaded", "memory.early")],
        unit="MB",
        facts={"requests": requests},
    )


@dataclass(frozen=True)
class _Constant:
    """What was measured before."""

    value: float

    def run(self, seconds: int) -> Sample:
        return Sample(self.value)


USUAL = {
    "get": get,
    "put": put,
    "batch": batch,
    "cache": cache,
    "buckets": buckets,
    "keys": keys,
    "start": start,
    "memory": memory,
}
LONGER = {"sizes": sizes, "clients": clients}
