"""From flat to partitioned while clients read and write (poky.schema.conversion)."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from poky.schema import SchemaError, Scripts
from poky.schema.migrate import Migrated, Progress, migrate, plan
from poky.schema.plan import SCRIPTS
from tests.conftest import Cluster, Database
from tests.test_schema import SQL, dump, run
from tests.writers import Load

pytestmark = pytest.mark.slow

BUCKETS = ["a", "b", "c", "Long-." + "x" * 250]

CONVERT = """
import sys
from poky.schema.migrate import migrate
report = lambda progress: print(progress.step, flush=True)
migrate(sys.argv[1], kind="partitioned", release="one", progress=report)
"""


class Killed(BaseException):
    """Ends a conversion as a signal would."""


@pytest.fixture(scope="module")
def filled(each_cluster: Cluster) -> Iterator[Database]:
    """A flat database with four buckets, one of them with awkward objects."""
    database = each_cluster.create("flat")
    for bucket in BUCKETS:
        run(database, "SELECT poky.ensure_bucket(%s)", bucket)
        run(
            database,
            "SELECT FROM generate_series(1, 1000) AS n,"
            " poky.put(%s, 'static-' || n, sha256(n::text::bytea), 'text/x-' || n, n)",
            bucket,
        )
    for key, value in (
        ("static-", b""),
        ("static-" + "k" * 1017, b"long"),
        # Two such values fill a batch.
        ("static-~1", random.Random(1).randbytes(5_000_000)),
        ("static-~2", random.Random(2).randbytes(5_000_000)),
        ("static-~3", random.Random(3).randbytes(5_000_000)),
    ):
        run(database, "SELECT poky.put('a', %s, %s, '')", key, psycopg2.Binary(value))
    coded = """'{"content_encoding": "gzip"}'"""
    run(
        database,
        f"SELECT poky.put('a', 'static-coded', '', 't', NULL, NULL, NULL, NULL, {coded}::jsonb)",
    )
    yield database
    each_cluster.drop(database)


@pytest.fixture
def flat(each_cluster: Cluster, filled: Database) -> Iterator[Database]:
    """The filled database, this test's own."""
    database = each_cluster.copy(filled)
    yield database
    each_cluster.drop(database)


@pytest.fixture
def load(flat: Database) -> Load:
    return Load(flat.dsn_service, BUCKETS[:3], new_buckets=True)


def convert(database: Database, progress: Callable[[Progress], None] | None = None) -> Migrated:
    return migrate(database.dsn_owner, kind="partitioned", release="one", progress=progress)


def until(step: str, reports: int = 1) -> Callable[[Progress], None]:
    """A report that ends the conversion when it hears of a step for so many times."""
    remaining = reports

    def report(progress: Progress) -> None:
        nonlocal remaining
        remaining -= progress.step == step
        if remaining == 0:
            raise Killed

    return report


def objects(database: Database) -> Any:
    return run(
        database,
        "SELECT b.name, o.key, o.revision, o.hash, o.modified_at, o.written_at, o.created_at,"
        " o.content_type, o.content_encoding, md5(o.value) FROM poky._object AS o"
        " JOIN poky.bucket AS b ON b.id = o.bucket_id ORDER BY b.name, o.key",
    )


@pytest.mark.slow
def test_clients_notice_nothing(flat: Database, load: Load) -> None:
    steps: dict[str, int] = {}

    def report(progress: Progress) -> None:
        if progress.step not in steps:
            load.wait_for_calls(20)
        steps[progress.step] = progress.done

    with load:
        load.wait_for_calls(300)
        assert convert(flat, report).converted
        load.wait_for_calls(300)
    load.check()
    assert {"Preparing partitions", "Copying", "Changing over"} <= set(steps)
    assert steps["Copying"] >= 4005
    assert any(bucket.startswith("new-") for bucket, _ in load.states)


@pytest.mark.slow
@pytest.mark.parametrize("lines", [(1, 2, 4, 6, 9), ("Copying", "Copying", "Changing over")])
def test_kills_lose_nothing(flat: Database, load: Load, lines: tuple[int | str, ...]) -> None:
    """kill -9 after a number of lines, or after a certain one; the next one goes on."""
    with load:
        load.wait_for_calls(100)
        for kill, line in enumerate(lines, start=1):
            with subprocess.Popen(
                [sys.executable, "-c", CONVERT, flat.dsn_owner], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout
                for number, step in enumerate(process.stdout, start=1):
                    if line in {number, step.strip()}:
                        process.kill()
            # The last kill may come too late: then there is nothing left to do.
            assert process.returncode == -signal.SIGKILL or (
                kill == len(lines) and process.returncode == 0
            )
        convert(flat)
        load.wait_for_calls(100)
    load.check()
    assert plan(flat.dsn_owner).kind == "partitioned"


@pytest.mark.parametrize(
    ("step", "reports"),
    [
        ("Preparing partitions", 1),
        ("Preparing partitions", 3),
        ("Copying", 1),
        ("Copying", 5),
        ("Changing over", 1),
    ],
)
def test_it_goes_on_where_it_was(flat: Database, step: str, reports: int) -> None:
    before = objects(flat)
    with pytest.raises(Killed):
        convert(flat, until(step, reports))
    assert plan(flat.dsn_owner).kind == "flat"
    assert objects(flat) == before

    said: list[Progress] = []
    assert convert(flat, said.append).converted
    assert objects(flat) == before
    if step == "Copying":
        first = next(progress for progress in said if progress.step == "Copying")
        assert first.done > 100 * reports  # more than the first batch: not from the start
    if step == "Changing over":
        assert {progress.step for progress in said} <= {
            "Changing over",
            "Waiting for older statements to end",
        }
    assert convert(flat) == Migrated([], "partitioned", False)


def test_the_result_equals_a_new_partitioned_database(
    each_cluster: Cluster, flat: Database
) -> None:
    run(flat, "SELECT poky.put('undeclared', 'key', 'value', 'text/plain')")
    convert(flat)
    fresh = each_cluster.create("partitioned")
    for bucket in [*BUCKETS, "undeclared"]:
        run(fresh, "SELECT poky.ensure_bucket(%s)", bucket)
    assert dump(each_cluster, flat) == dump(each_cluster, fresh)
    assert run(flat, "SELECT name, leaf FROM poky.bucket ORDER BY id") == run(
        fresh, "SELECT name, leaf FROM poky.bucket ORDER BY id"
    )
    names = {name for (name,) in run(flat, "SELECT name FROM poky.migration")}
    assert "partitioned.sql" in names
    assert plan(flat.dsn_owner).pending == []
    each_cluster.drop(fresh)


def test_buckets_are_what_they_were(flat: Database) -> None:
    """Only declared buckets and those with keys are there, before and after."""
    for bucket in ("with", "emptied", "dropped"):
        run(flat, "SELECT poky.put(%s, 'key', 'value', 'text/plain')", bucket)
    run(flat, "SELECT poky.delete('emptied', 'key')")
    run(flat, "SELECT poky.drop_bucket('dropped', true)")
    names = "SELECT name FROM poky.buckets() ORDER BY name"
    before = run(flat, names, service=True)
    assert {("a",), ("with",)} < set(before)
    convert(flat)
    assert run(flat, names, service=True) == before
    # A writer may be about to use one of the others.
    put = "SELECT outcome FROM poky.put(%s, 'key', 'value', 'text/plain')"
    for bucket in ("emptied", "dropped"):
        assert run(flat, put, bucket, service=True) == [("inserted",)]
    assert run(flat, "SELECT poky.ensure_bucket('dropped')", service=True) == [(True,)]
    assert run(flat, "SELECT poky.ensure_bucket('dropped')", service=True) == [(False,)]
    run(flat, "SELECT poky.drop_bucket('emptied', true)", service=True)
    with pytest.raises(psycopg2.errors.InternalError, match="no bucket named emptied"):
        run(flat, put, "emptied", service=True)


def test_an_old_snapshot_keeps_the_partitions_waiting(flat: Database) -> None:
    """A statement from before the end of the copy would find partitions with holes."""
    waits = threading.Event()

    def report(progress: Progress) -> None:
        if progress.step.startswith("Waiting"):
            waits.set()

    with closing(flat.connect(as_service=True)) as old, old.cursor() as cursor:
        old.set_session(isolation_level="REPEATABLE READ")
        cursor.execute("SELECT 1")
        conversion = threading.Thread(target=convert, args=[flat, report])
        conversion.start()
        assert waits.wait(60)
        cursor.execute("SELECT content_type FROM poky.get('a', 'static-7')")
        assert cursor.fetchall() == [("text/x-7",)]
        assert conversion.is_alive()
    conversion.join(60)
    assert plan(flat.dsn_owner).kind == "partitioned"


def test_it_can_be_given_up(each_cluster: Cluster, flat: Database) -> None:
    before, schema_before = objects(flat), dump(each_cluster, flat)
    for step in ("Preparing partitions", "Copying"):
        with pytest.raises(Killed):
            convert(flat, until(step, 2))
        assert plan(flat.dsn_owner).converting
        done = migrate(flat.dsn_owner, kind="flat", release="one")
        assert (done.kind, done.converted) == ("flat", False)
        assert dump(each_cluster, flat) == schema_before
    assert objects(flat) == before
    assert convert(flat).converted
    assert objects(flat) == before


def test_tables_do_not_change_under_it(flat: Database, tmp_path: Path) -> None:
    shutil.copytree(SQL, tmp_path / "sql")
    number = len(SCRIPTS.migrations) + 2
    (tmp_path / f"sql/migrations/{number:04}_expand_x.sql").write_text(
        "ALTER TABLE poky._object ADD COLUMN x text;"
    )
    following = Scripts(tmp_path / "sql")
    with pytest.raises(Killed):
        convert(flat, until("Copying"))
    with pytest.raises(SchemaError, match="A conversion to the partitioned schema is unfinished"):
        migrate(flat.dsn_owner, release="next", scripts=following)
    assert convert(flat).converted
    assert migrate(flat.dsn_owner, release="next", scripts=following).applied
