"""What is compared. A suite sets its stage and yields contests, one after the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from poky.access import RIGHTS, Token
from poky.background import Background
from poky.cache import Caches
from poky.config import Config
from poky.store import Store
from tests.bench import machine
from tests.bench import peers as other
from tests.bench.contest import Contest, Contestant
from tests.bench.load import Http, Mixed, Pgbench, Sample, watch
from tests.bench.stack import PROCESSES, Command, Database, Service, Stack, end
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
        return self.once(self.stack.cached_poky, self.stack.cached)  # type: ignore[return-value]

    @property
    def guarded(self) -> tuple[Service, Service]:
        """Poky's Varnish and the service behind it, where tokens decide."""
        return self.once(self.stack.cached_poky, self.stack.guarded, 1, "tokens")  # type: ignore[return-value]

    @property
    def cached_twice(self) -> tuple[Service, Service]:
        """Two nodes of Poky's Varnish and the service behind them."""
        return self.once(self.stack.cached_poky, self.stack.cached_twice, 2)  # type: ignore[return-value]

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
    stage.once(stage.stack.cached.fill, bucket, keys, value.read_bytes())
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
            **{
                name: Http(
                    cache.ports, "/kv/missed/key-",
                    watched=cache.with_pids_of(service),
                    first_key=itertools.count(1, misses // 10).__next__,
                )
                for name, cache in (("get.miss", varnish), ("plain-varnish-miss", plain))
            },
            "put.direct": put_direct,
            "put.purged": replace(put_direct, ports=service.ports, watched=service.watched),
            "put.through": replace(
                put_direct, ports=varnish.ports, watched=varnish.with_pids_of(service)
            ),
        },
        [
            ("get.miss", "get.direct"),
            ("get.miss", "plain-varnish-miss"),
            ("put.purged", "put.direct"),
            ("put.through", "put.direct"),
        ],
        facts=facts,
    )  # fmt: skip


def peers(stage: Stage) -> Contests:
    """Against what a user would pick instead, and against the previous release."""
    other.install()
    size, keys = KB, 10_000
    bucket, value = stage.bucket(size, keys), stage.stack.value(size)
    text = value.read_bytes()
    redis = other.redis(stage.stack, keys, text)
    etcd = other.etcd(stage.stack, keys, text)
    before, _ = other.previous(stage.stack, bucket, keys, text)

    def contestants(method: str, count: int) -> dict[str, Contestant]:
        put, verb = method == "PUT", method.lower()
        body = value if put else None
        what = {"method": method, "value": body, "clients": count}
        return {
            f"{verb}.direct": stage.http(stage.poky, bucket, keys, **what),
            f"previous-{verb}": stage.http(before, bucket, keys, **what),
            f"etcd-{verb}": Http(
                etcd.ports, f"/v3/kv/{'put' if put else 'range'}", keys, value=body,
                clients=count, watched=etcd.watched,
            ),
            f"redis-{verb}": Http(
                redis.ports, "/SET/key-@" if put else "/GET/key-@.txt", keys, method=method,
                value=body, clients=count, watched=redis.watched,
            ),
            "naive": stage.http(stage.naive, bucket, keys, **what),
            f"pgbench-{'upsert' if put else 'select'}": stage.pgbench(
                UPSERT if put else SELECT, size, keys, count, put=put
            ),
        }  # fmt: skip

    for method, count in itertools.product(("GET", "PUT"), (CLIENTS, 8, 1)):
        ending = "" if count == CLIENTS else f".1k.{count}"
        yield _against_first(contestants(method, count), ending, count)
    for share in (90, 50):
        yield _mixed(stage, share, {"": stage.poky, "previous-": before}, bucket, keys)
    yield from _peers_of_caches(stage, redis, bucket, keys)


def _against_first(
    contestants: dict[str, Contestant], ending: str, count: int, warm_up: Sequence[str] = ()
) -> Contest:
    """All against each other, and the first one measured by each of the others."""
    first, *others = contestants
    return Contest(
        {name + ending: each for name, each in contestants.items()},
        [(first + ending, name + ending) for name in others],
        facts={"clients": count, "value_bytes": KB},
        warm_up=[name + ending for name in warm_up],
    )


def _mixed(
    stage: Stage, share: int, services: dict[str, Service], bucket: str, keys: int
) -> Contest:
    """GETs and PUTs of the same keys at once, ``share`` percent of the clients reading."""
    reading = round(CLIENTS * share / 100) // PROCESSES * PROCESSES
    contestants: dict[str, Contestant] = {}
    for prefix, service in services.items():
        mixed = Mixed(
            {
                "get": stage.http(service, bucket, keys, clients=reading),
                "put": stage.http(
                    service, bucket, keys, method="PUT", value=stage.stack.value(KB),
                    clients=CLIENTS - reading,
                ),
            }
        )  # fmt: skip
        contestants |= {f"{prefix}mixed-{share}.{verb}": mixed.part(verb) for verb in mixed.parts}
    return Contest(
        contestants,
        [(f"mixed-{share}.{verb}", f"previous-mixed-{share}.{verb}") for verb in ("get", "put")],
        facts={"clients": CLIENTS, "reading": reading, "value_bytes": KB},
    )


def _peers_of_caches(stage: Stage, redis: Service, bucket: str, keys: int) -> Contests:
    """Hits against Redis and a plain Varnish; writes that one and two caches are told of."""
    value = stage.stack.value(KB)
    for database in (stage.stack.cached, stage.stack.cached_twice):
        stage.once(database.fill, bucket, keys, value.read_bytes())
        stage.once(database.settle)
    varnish, service = stage.cached
    _, service_of_two = stage.cached_twice
    plain: Service = stage.once(stage.stack.plain_varnish, service.ports[0])  # type: ignore[assignment]
    for count in (CLIENTS, 8):
        yield _against_first(
            {
                "get.hit": stage.http(varnish, bucket, 1000, clients=count),
                "redis-get": Http(
                    redis.ports, "/GET/key-@.txt", keys, clients=count, watched=redis.watched
                ),
                "plain-varnish": stage.http(plain, bucket, 1000, clients=count),
            },
            "" if count == CLIENTS else f".1k.{count}",
            count,
            warm_up=("get.hit", "plain-varnish"),
        )
    direct = stage.http(stage.poky, bucket, keys, method="PUT", value=value)
    through = varnish.with_pids_of(service)
    yield Contest(
        {
            "put.direct": direct,
            "put.direct.1k.128": replace(direct, clients=128),
            "put.purged": replace(direct, ports=service.ports, watched=service.watched),
            "put.purged-2": replace(
                direct, ports=service_of_two.ports, watched=service_of_two.watched
            ),
            "put.through": replace(direct, ports=varnish.ports, watched=through),
        },
        [
            (name, "put.direct")
            for name in ("put.direct.1k.128", "put.purged", "put.purged-2", "put.through")
        ],
        facts={"clients": CLIENTS, "value_bytes": KB},
    )


def access(stage: Stage) -> Contests:
    """With a token against open: hits, GET and PUT at the service; the time of a revocation."""
    size, keys = KB, 10_000
    bucket, value = stage.bucket(size, keys), stage.stack.value(KB)
    stage.once(stage.stack.guarded.fill, bucket, keys, value.read_bytes())
    stage.once(stage.stack.cached.fill, bucket, keys, value.read_bytes())
    varnish, _ = stage.cached
    guarded, _ = stage.guarded
    asked: Service = stage.once(_asked, stage.stack)  # type: ignore[assignment]
    put: dict[str, object] = {"method": "PUT", "value": value}
    pairs = {
        "hit": (guarded, stage.stack.guarded, varnish, 1000, {}),
        "get": (asked, stage.stack.partitioned, stage.poky, keys, {}),
        "put": (asked, stage.stack.partitioned, stage.poky, keys, put),
    }
    facts = {"clients": CLIENTS, "value_bytes": size}
    for name, (service, database, yardstick, number, what) in pairs.items():
        header = f"Authorization: Bearer {stage.once(_token, database)}"
        loads = {
            f"{name}.tokens": stage.http(service, bucket, number, headers=(header,), **what),
            f"{name}.open": stage.http(yardstick, bucket, number, **what),
        }
        with_token, without = loads
        yield Contest(dict(loads), [(with_token, without)], facts=facts, warm_up=(*loads,))
        yield Contest(
            {f"{each}.cpu": _Cpu(load) for each, load in loads.items()},
            [(f"{with_token}.cpu", f"{without}.cpu")],
            unit="us",
            facts=facts,
        )
    yield Contest(
        {
            "revoke": _Revoke(stage.stack.guarded),
            "revoke.no-cache": _Revoke(stage.stack.partitioned),
        },
        [("revoke", "revoke.no-cache")],
        unit="ms",
    )


def _asked(stack: Stack) -> Service:
    """The service alone, which asks for tokens."""
    return stack.poky(stack.partitioned, access="tokens")


def _token(database: Database) -> Token:
    """A token that may do everything."""
    made = Token.create()
    database.execute(
        "SELECT poky.create_token(%(id)s, %(name)s, %(hash)s, %(grants)s, NULL)",
        id=made.id, name=made.id, hash=made.hash,
        grants=[f"{right}:*" for right in RIGHTS],
    )  # fmt: skip
    return made


@dataclass(frozen=True)
class _Cpu:
    """CPU time of a request, the service's (or cache's) and PostgreSQL's, in microseconds."""

    load: Http

    def run(self, seconds: int) -> Sample:
        sample = self.load.run(seconds)
        return replace(sample, rate=sample.service_us + sample.postgres_us)


@dataclass(frozen=True)
class _Revoke:
    """From asking for a token's end to its acknowledgement, as ``poky token revoke`` does it."""

    database: Database

    def run(self, seconds: int) -> Sample:
        """The median of those that fit into so many seconds."""
        store = Store(self.database.owner, pool_size=1)
        config = Config.from_env({"POKY_DSN": self.database.owner})
        caches = Caches(store, config, Background(store))
        times = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            token = _token(self.database)
            began = time.monotonic()
            outbox_id = store.revoke_token(token.id)
            if outbox_id is not None:
                caches.forget_policy(outbox_id)
            times.append(time.monotonic() - began)
        caches.stop()
        store.close()
        return Sample(median(times) * 1000)


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
LONGER = {"sizes": sizes, "clients": clients, "access": access, "peers": peers}
