"""What every test may ask for: a real PostgreSQL, a migrated database of its own, a bucket.

There is no fake store and no skipping: without PostgreSQL the session fails with a sentence.

The tests of the HTTP contract can be pointed at a Poky that was deployed, and what is before it:

    POKY_TEST_URL=http://HOST POKY_TEST_ADMIN_URL=http://127.0.0.1:9081 \\
        .venv/bin/pytest --schema partitioned tests/test_objects.py tests/test_batches.py …

Tests marked `inside`, which look at more than HTTP, are left out then.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg2
import pytest

from poky import embedded
from poky.store import ShardedStore
from tests.service import Client, Deployed, Service, deployed, running

KINDS = ("partitioned", "flat")

# Functions that the service may not call: tokens and public buckets are the administrator's.
ADMINISTRATION = {
    "create_token",
    "change_token",
    "rotate_token",
    "revoke_token",
    "tokens",
    "publish_bucket",
    "import_staged",
    "after_restore",
    "keep_changes",
}

# Nothing in a test's database has to survive the machine.
HASTY = {
    "fsync": "off",
    "synchronous_commit": "off",
    "shared_buffers": "64MB",
    "wal_level": "logical",  # for buckets that move
    "max_replication_slots": "10",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("poky")
    group.addoption(
        "--schema",
        choices=[*KINDS, "both"],
        default="both",
        help="which schema the tests with a `database` run on (default: both, one after the other)",
    )
    group.addoption(
        "--shards",
        type=int,
        default=1,
        help="how many databases the service of the HTTP contract's tests has (with --schema"
        " partitioned): its buckets are in each of them",
    )
    group.addoption(
        "--bindir",
        type=Path,
        help="use this PostgreSQL, not the wheel's: /usr/lib/postgresql/15/bin",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what depends on the schema once for each kind, unless it chooses the kind itself."""
    if "kind" in metafunc.fixturenames and not any(
        "kind" in str(mark.args[0]).split(",")
        for mark in metafunc.definition.iter_markers("parametrize")
    ):
        chosen = metafunc.config.getoption("--schema")
        metafunc.parametrize("kind", KINDS if chosen == "both" else [chosen], scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a Poky that was deployed, or has several databases, look at what HTTP shows."""
    if deployed() or config.getoption("--shards") > 1:
        inside = [item for item in items if item.get_closest_marker("inside")]
        config.hook.pytest_deselected(items=inside)
        items[:] = [item for item in items if item not in inside]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failure: what was not seen to work does not count as working."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if skipped and os.environ.get("CI") == "true":
        reporter.write_line("")
        reporter.write_line(f"CI=true and {len(skipped)} skipped: this is a failure", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@dataclass(frozen=True)
class Database:
    """A migrated database: how its owner and the service reach it."""

    name: str
    kind: str
    dsn_owner: str
    dsn_service: str
    others: tuple[Database, ...] = ()  #: shards, if this is control

    @property
    def shards(self) -> str:
        """The setting POKY_SHARDS."""
        return " ".join(f"{n}={each.dsn_service}" for n, each in enumerate(self.others, start=1))

    @property
    def owner_shards(self) -> str:
        """The setting POKY_OWNER_SHARDS."""
        return " ".join(f"{n}={each.dsn_owner}" for n, each in enumerate(self.others, start=1))

    def connect(self, *, as_service: bool = False) -> psycopg2.extensions.connection:
        return psycopg2.connect(self.dsn_service if as_service else self.dsn_owner)


class Cluster:
    """The session's PostgreSQL: hands out databases, each a copy of one migrated once."""

    def __init__(self, server: embedded.Embedded) -> None:
        self.server = server
        self._numbers = itertools.count(1)
        self._templates: dict[str, str] = {}

    def _database(self, name: str, kind: str) -> Database:
        return Database(
            name,
            kind,
            self.server.dsn_owner.replace("/poky?", f"/{name}?"),
            self.server.dsn_service.replace("/poky?", f"/{name}?"),
        )

    def _execute(self, statement: str) -> None:
        # A database is not made inside a transaction; psycopg2's `with` would begin one.
        with closing(psycopg2.connect(self.server.dsn_owner)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)

    def create(self, kind: str = "") -> Database:
        """Make a database: a copy of the migrated one of that kind, or an empty one."""
        template = self._template(kind) if kind else "template0"
        database = self._database(f"{kind or 'empty'}_{next(self._numbers)}", kind)
        self._execute(f"CREATE DATABASE {database.name} TEMPLATE {template} OWNER poky_owner")
        return database

    def create_sharded(self, count: int) -> Database:
        """Make control and further databases, ``count`` together."""
        from poky.schema.shards import join_shards

        control = self.create("partitioned")
        others = tuple(self.create("partitioned") for _ in range(count - 1))
        join_shards(
            control.dsn_owner, {n: each.dsn_owner for n, each in enumerate(others, start=1)}
        )
        return replace(control, others=others)

    def copy(self, database: Database) -> Database:
        """Make a copy of a database that nobody is connected to."""
        copy = self._database(f"{database.name}_{next(self._numbers)}", database.kind)
        self._execute(f"CREATE DATABASE {copy.name} TEMPLATE {database.name} OWNER poky_owner")
        return copy

    def drop(self, database: Database) -> None:
        for other in database.others:
            self.drop(other)
        self._execute(f"DROP DATABASE {database.name} WITH (FORCE)")

    def _template(self, kind: str) -> str:
        if kind not in self._templates:
            database = self.create()
            from poky.schema.migrate import migrate

            migrate(database.dsn_owner, kind=kind, release="tests")
            self._templates[kind] = database.name
        return self._templates[kind]


@pytest.fixture(scope="session")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A PostgreSQL of this session's own."""
    try:
        server = embedded.ensure_running(
            tmp_path_factory.mktemp("cluster"),
            bindir=request.config.getoption("--bindir"),
            settings=HASTY,
        )
    except embedded.EmbeddedError as error:
        pytest.exit(f"The tests need a PostgreSQL, and there is none: {error}", returncode=1)
    with server:
        yield Cluster(server)


@pytest.fixture(scope="session", params=["wheel", pytest.param("debian", marks=pytest.mark.slow)])
def each_cluster(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """First the session's PostgreSQL, then Debian's, which is years older."""
    if request.param == "wheel":
        yield cluster
        return
    bindirs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not bindirs:
        pytest.fail("This test needs Debian's PostgreSQL as well: make packages")
    server = embedded.ensure_running(
        tmp_path_factory.mktemp("debian"), bindir=bindirs[0].parent, settings=HASTY
    )
    with server:
        yield Cluster(server)


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest, cluster: Cluster, kind: str) -> Iterator[Database]:
    """A migrated database that the tests of one module share; each uses a bucket of its own."""
    count = request.config.getoption("--shards")
    database = cluster.create(kind) if count == 1 else cluster.create_sharded(count)
    yield database
    cluster.drop(database)


@pytest.fixture
def own_database(cluster: Cluster, kind: str) -> Iterator[Database]:
    """A migrated database of one test's own."""
    database = cluster.create(kind)
    yield database
    cluster.drop(database)


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[Database]:
    """A database that was never migrated."""
    database = cluster.create()
    yield database
    cluster.drop(database)


@pytest.fixture(scope="session")
def bucket_names() -> Callable[[], str]:
    numbers = itertools.count(1)
    # What was deployed may remember the session before this one.
    session = f"{time.time():.0f}-{os.getpid()}-" if deployed() else ""
    return lambda: f"bucket-{session}{next(numbers)}"


@pytest.fixture
def bucket(request: pytest.FixtureRequest, kind: str, bucket_names: Callable[[], str]) -> str:
    """The name of a new bucket, this test's own: nothing has to be cleaned."""
    name = bucket_names()
    if there := deployed():
        assert there.admin().request("PUT", f"/buckets/{name}").status == 200
        return name
    database: Database = request.getfixturevalue("database")
    if database.others:
        shard = int(name.rpartition("-")[2]) % (len(database.others) + 1)
        shards = {n: each.dsn_service for n, each in enumerate(database.others, start=1)}
        with closing(ShardedStore(database.dsn_service, shards)) as store:
            store.ensure_bucket(name, shard)
        return name
    with database.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT poky.ensure_bucket(%s)", [name])
    connection.close()
    return name


@pytest.fixture(scope="module")
def service(
    request: pytest.FixtureRequest, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service | Deployed]:
    """A running ``poky serve`` that the tests of one module share; or one that was deployed."""
    if there := deployed():
        yield there
        return
    database: Database = request.getfixturevalue("database")
    log = tmp_path_factory.mktemp("service") / "log"
    # Patient: what is tested with it is not how long a busy machine takes.
    with running(
        database.dsn_service, log, statement_timeout="30", shards=database.shards
    ) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    """A client of the service."""
    client = service.client()
    yield client
    client.close()


@pytest.fixture
def admin(service: Service) -> Iterator[Client]:
    """A client of the service's admin listener."""
    client = service.admin()
    yield client
    client.close()


# For those that ask.


@pytest.fixture
def quick_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that stops waits for idle clients for a moment only."""
    monkeypatch.setattr("poky.http.workers.QUIET_SECONDS", 0.05)


@pytest.fixture
def every_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
