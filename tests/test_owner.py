"""What the owner does in a database of its own: plans, waits, tries again, and what it says."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from poky.schema import SchemaError, Scripts, conversion
from poky.schema import migrate as migration
from poky.schema.migrate import Migrated, migrate
from poky.schema.owner import OwnerConnection, Progress
from poky.schema.plan import SCRIPTS, Found, plan, script, state, versions
from tests.conftest import Cluster, Database
from tests.service import wait_until
from tests.test_schema import CONTRACT, EXPAND, SQL, next_scripts, run

__all__ = ["next_scripts"]


@pytest.fixture(scope="module")
def owned(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create("partitioned")
    run(database, "CREATE TABLE public.held (n integer)")
    run(database, "ALTER TABLE public.held OWNER TO poky_owner")
    yield database
    cluster.drop(database)


@pytest.fixture
def flat(cluster: Cluster) -> Iterator[Database]:
    database = cluster.create("flat")
    for bucket in ("a", "b"):
        run(database, "SELECT poky.ensure_bucket(%s)", bucket)
        for number in range(3):
            run(database, "SELECT poky.put(%s, %s, 'v', 't')", bucket, f"k{number}")
    yield database
    cluster.drop(database)


# The plan.


def recorded(scripts: Scripts, *names: str) -> dict[str, str]:
    return {name: scripts.checksum(name) for name in names}


def all_of(scripts: Scripts) -> dict[str, str]:
    return recorded(scripts, *scripts.fresh("partitioned"), *scripts.migrations)


def test_a_release_has_the_files_that_it_says(tmp_path: Path) -> None:
    for change in ("missing", "extra"):
        root = tmp_path / change
        shutil.copytree(SQL, root)
        if change == "missing":
            (root / "functions/older.sql").unlink()
        else:
            (root / "functions/other.sql").write_text("")
        with pytest.raises(
            SchemaError, match=r"functions/ should have names, placement, "
        ) as wrong:
            Scripts(root)
        assert wrong.value.code == "schema_refused"


def test_a_database_without_a_schema_gets_all_files(next_scripts: Scripts) -> None:
    for kind, first in ((None, "partitioned"), ("partitioned", "partitioned"), ("flat", "flat")):
        planned = plan(Found(), kind=kind, scripts=next_scripts)  # type: ignore[arg-type]
        assert planned.pending == ["schema.sql", f"{first}.sql", "functions.sql", "grants.sql"]
        assert (planned.state, planned.kind, planned.refusal) == ("missing", None, None)
        assert (planned.schema, planned.contracted, planned.postponed) == (0, 0, [])
        assert (planned.converts, planned.converting) == (False, False)
    assert plan(Found(foreign=True)).refusal is not None


def test_what_is_missing_is_applied_in_its_phase(next_scripts: Scripts) -> None:
    before = all_of(SCRIPTS)
    expand = plan(Found(before), scripts=next_scripts)
    assert expand.pending == [EXPAND, "functions.sql", "grants.sql"]
    assert expand.postponed == [CONTRACT]
    assert (expand.state, expand.refusal) == ("outdated", None)
    latest = versions(SCRIPTS)["schema"]
    assert (expand.schema, expand.contracted) == (latest, 1)
    contract = plan(Found(before), phase="contract", scripts=next_scripts)
    assert contract.pending == [EXPAND, CONTRACT, "functions.sql", "grants.sql"]
    assert contract.postponed == []
    after = all_of(next_scripts)
    done = plan(Found(after), phase="contract", scripts=next_scripts)
    assert (done.pending, done.postponed, done.state) == ([], [], "ok")
    assert (done.schema, done.contracted) == (latest + 2, latest + 2)
    for name, pending in (
        ("functions.sql", ["functions.sql", "grants.sql"]),
        ("grants.sql", ["grants.sql"]),
    ):
        assert plan(Found({**after, name: "x"}), scripts=next_scripts).pending == pending
    assert plan(Found({})).schema == 1
    assert versions(next_scripts) == {
        "schema": latest + 2,
        "schema_min": latest + 1,
        "schema_max": latest + 2,
    }
    assert state(None) == state([]) == "missing"


def test_what_a_database_becomes_is_planned_by_what_it_is() -> None:
    applied = all_of(SCRIPTS)
    assert (plan(Found(applied)).kind, plan(Found(applied, flat=True)).kind) == (
        "partitioned",
        "flat",
    )
    for flat, kind, converts in (
        (True, "partitioned", True),
        (True, "flat", False),
        (True, None, False),
        (False, "partitioned", False),
    ):
        planned = plan(Found(applied, flat=flat), kind=kind)  # type: ignore[arg-type]
        assert (planned.converts, planned.refusal, planned.converting) == (converts, None, False)
    assert "no way back to flat" in (plan(Found(applied), kind="flat").refusal or "")


def test_under_a_conversion_no_table_changes(next_scripts: Scripts) -> None:
    found = Found(all_of(SCRIPTS), flat=True, converting=True)
    assert plan(found).converting
    assert plan(found).refusal is None  # functions may
    for kind, is_refused in ((None, True), ("partitioned", True), ("flat", False)):
        planned = plan(found, kind=kind, scripts=next_scripts)  # type: ignore[arg-type]
        assert (planned.refusal is not None) is is_refused


def test_the_printed_script_names_its_release(next_scripts: Scripts) -> None:
    text = script("flat", release="o'ne", scripts=next_scripts)
    assert f"('{EXPAND}', '{next_scripts.checksum(EXPAND)}', 'o''ne')" in text
    assert "('flat.sql', " in text
    assert "('partitioned.sql', " in script(release="one")


# The conversation.


def test_no_client_s_limit_holds_for_the_owner(owned: Database) -> None:
    limits = "-c statement_timeout=5s -c idle_in_transaction_session_timeout=5s -c search_path=x"
    with OwnerConnection(make_dsn(owned.dsn_owner, options=limits)) as owner:
        assert owner.value("SHOW statement_timeout") == "0"
        assert owner.value("SHOW idle_in_transaction_session_timeout") == "0"
        assert owner.value("SHOW search_path") == "pg_catalog"
        assert owner.value("SELECT current_user") == "poky_owner"
        assert owner.value("SELECT 7 % 4") == 3
        assert owner.run("SELECT %s, 8", 7) == [(7, 8)]
        assert owner.run("SET search_path = pg_catalog") == []
        owner.report(Progress("unheard"))
        pid = owner.value("SELECT pg_backend_pid()")
    gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
    wait_until(lambda: run(owned, gone, pid) == [(0,)])


def test_what_needs_a_lock_is_tried_again_and_given_up_in_words(owned: Database) -> None:
    tries: list[int] = []
    with (
        closing(owned.connect()) as holder,
        OwnerConnection(owned.dsn_owner, patience=0.1) as owner,
    ):
        holder.cursor().execute("LOCK TABLE public.held IN ACCESS EXCLUSIVE MODE")

        def insert() -> int:
            tries.append(len(tries))
            owner.run("INSERT INTO public.held VALUES (1)")
            return 7

        with pytest.raises(SchemaError, match="other transactions held locks that this") as busy:
            owner.atomically(insert)
        assert busy.value.code == "busy"
        assert str(busy.value).startswith("For 0 s ")
        assert "canceling statement due to lock timeout" in str(busy.value)
        assert tries
        owner._patience = 60.0
        tries.clear()

        def insert_later() -> int:
            if len(tries) == 1:
                holder.rollback()
            return insert()

        assert owner.atomically(insert_later) == 7
        assert len(tries) == 2
        assert run(owned, "SELECT count(*) FROM public.held") == [(1,)]
        with pytest.raises(KeyError):
            owner.atomically(lambda: (insert(), {}["x"]))  # type: ignore[func-returns-value]
        assert owner.value("SELECT txid_current_if_assigned()") is None  # it was rolled back
        assert owner.atomically(lambda: owner.value("SHOW lock_timeout")) == "200ms"
    assert run(owned, "SELECT count(*) FROM public.held") == [(1,)]


def test_a_deadlock_is_tried_again(owned: Database) -> None:
    tries: list[int] = []
    with OwnerConnection(owned.dsn_owner) as owner:

        def work() -> str:
            tries.append(1)
            if len(tries) == 1:
                raise psycopg2.errors.DeadlockDetected
            return "done"

        assert owner.atomically(work) == "done"
    assert len(tries) == 2


def failure(dsn: str, statement: str, *, is_lost: bool = False) -> SchemaError:
    def ask() -> None:
        with OwnerConnection(dsn) as owner:
            if is_lost:
                owner._connection.close()
            owner.run(statement)

    with pytest.raises(SchemaError) as failed:
        ask()
    return failed.value


def test_what_ends_the_conversation_is_a_sentence(owned: Database) -> None:
    failed = failure(owned.dsn_owner, "SELECT 1 / 0")
    assert (failed.code, str(failed)) == (
        "database_failed",
        "PostgreSQL refused: division by zero",
    )
    failed = failure(owned.dsn_owner, "SELECT 1", is_lost=True)
    assert failed.code == "database_failed"
    assert str(failed).startswith("The connection was lost: ")
    failed = failure(owned.dsn_service, "CREATE TABLE poky.x ()")
    assert failed.code == "insufficient_privilege"
    assert "poky_service is the role that serves" in str(failed)
    run(owned, "CREATE ROLE stranger LOGIN")
    try:
        failed = failure(make_dsn(owned.dsn_owner, user="stranger"), "CREATE TABLE poky.x ()")
    finally:
        run(owned, "DROP ROLE stranger")
    assert failed.code == "insufficient_privilege"
    assert "The user stranger cannot act as poky_owner" in str(failed)
    assert f"GRANT CREATE ON DATABASE {owned.name} TO poky_owner;" in str(failed)
    with pytest.raises(KeyError), OwnerConnection(owned.dsn_owner):
        raise KeyError


def test_one_migration_at_a_time_and_a_stranger_s_lock_does_not_count(owned: Database) -> None:
    said: list[Progress] = []
    with OwnerConnection(owned.dsn_owner) as first:
        first.keep_others_out()
        assert first._keeper is not None
        with OwnerConnection(owned.dsn_owner, said.append) as second:
            waiting = threading.Thread(target=second.keep_others_out)
            waiting.start()
            while not said:
                waiting.join(0.01)
            waiting.join(0.35)
            assert waiting.is_alive()
            first.__exit__(None, None, None)
            waiting.join(10)
            assert not waiting.is_alive()
            assert [each.step for each in said] == ["Waiting for another migration to end"]
            keeper = second._keeper
        assert keeper is not None
        assert keeper.closed
    with closing(owned.connect(as_service=True)) as stranger:
        stranger.autocommit = True
        stranger.cursor().execute(f"SELECT pg_advisory_lock({0x706F6B79})")
        with OwnerConnection(owned.dsn_owner, said.append) as owner:
            owner.keep_others_out()
    assert len(said) == 1
    with closing(owned.connect()) as other, OwnerConnection(owned.dsn_owner) as owner:
        other.cursor().execute("LOCK TABLE poky.migration IN SHARE UPDATE EXCLUSIVE MODE")
        assert not owner._lock_table()  # whoever has this lock is at it
        other.rollback()
        assert owner._lock_table()


# Migrations.


def test_the_functions_of_buckets_are_renewed_some_at_a_time(
    owned: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migration, "_AT_ONCE", 2)
    ids = []
    for number in range(5):
        run(owned, "SELECT poky.ensure_bucket(%s)", f"renewed{number}")
    for (id,) in run(owned, "SELECT id FROM poky.bucket ORDER BY id"):
        ids.append(id)
        run(owned, "SELECT poky._drop_functions(%s)", id)
    assert len(run(owned, "SELECT poky._outdated_functions()")) == 5
    said: list[Progress] = []
    done = migrate(owned.dsn_owner, release="one", progress=said.append)
    assert done == Migrated([], "partitioned", False)
    renewing = "Renewing the functions of buckets"
    assert said == [(renewing, start, 5) for start in (0, 2, 4)]
    assert run(owned, "SELECT poky._outdated_functions()") == []


def test_a_migration_says_what_it_applies_and_records_its_release(
    empty_database: Database, next_scripts: Scripts
) -> None:
    said: list[Progress] = []
    done = migrate(empty_database.dsn_owner, release="one", progress=said.append)
    files = SCRIPTS.fresh("partitioned")
    assert done == Migrated(files, "partitioned", False)
    assert [each.step for each in said] == [f"Applying {name}" for name in files]
    releases = "SELECT name, release FROM poky.migration"
    assert dict(run(empty_database, releases)) == dict.fromkeys(
        [*files, *SCRIPTS.migrations], "one"
    )
    before = run(empty_database, "SELECT applied_at FROM poky.migration WHERE name = 'grants.sql'")
    done = migrate(empty_database.dsn_owner, release="two", scripts=next_scripts)
    assert done.applied == [EXPAND, "functions.sql", "grants.sql"]
    now = dict(run(empty_database, releases))
    assert {name for name, release in now.items() if release == "two"} == set(done.applied)
    assert before != run(
        empty_database, "SELECT applied_at FROM poky.migration WHERE name = 'grants.sql'"
    )


# Conversions.


class Killed(BaseException):
    """Ends a conversion as a signal would."""


def kill_at(step: str) -> Any:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Killed

    return report


def test_a_conversion_says_how_far_it_is(flat: Database) -> None:
    said: list[Progress] = []
    done = migrate(flat.dsn_owner, kind="partitioned", release="one", progress=said.append)
    assert done == Migrated([], "partitioned", True)
    assert [each for each in said if each.step != "Waiting for older statements to end"] == [
        ("Preparing partitions", 0, 0),
        ("Preparing partitions", 0, 2),
        ("Preparing partitions", 1, 2),
        ("Copying", 3, 6),
        ("Copying", 6, 6),
        ("Changing over", 0, 0),
    ]
    assert run(flat, "SELECT count(*) FROM poky._object") == [(6,)]
    assert ("partitioned.sql",) in run(flat, "SELECT name FROM poky.migration")


def give_up_halfway(database: Database) -> None:
    """Convert, and die; then begin to give that up, and die again."""
    with pytest.raises(Killed):
        migrate(
            database.dsn_owner, kind="partitioned", release="one", progress=kill_at("Changing over")
        )
    with OwnerConnection(database.dsn_owner) as owner:
        owner.atomically(lambda: owner.run(SCRIPTS.text("conversion/give_up.sql")))


def test_a_conversion_that_was_given_up_halfway_begins_anew(flat: Database) -> None:
    """Who gave it up died before the partitions were dropped, in which changes are missing."""
    give_up_halfway(flat)
    with OwnerConnection(flat.dsn_owner) as owner:
        assert conversion._given_up(owner)
    run(flat, "SELECT poky.put('a', 'k0', 'later', 't')")
    run(flat, "SELECT poky.delete('b', 'k1')")
    migrate(flat.dsn_owner, kind="partitioned", release="one")
    found = run(flat, "SELECT convert_from(value, 'UTF8') FROM poky._object ORDER BY 1")
    assert found == [("later",)] + [("v",)] * 4


def test_giving_up_twice_is_giving_up(flat: Database) -> None:
    give_up_halfway(flat)
    done = migrate(flat.dsn_owner, kind="flat", release="one")
    assert done == Migrated([], "flat", False)
    assert run(
        flat, "SELECT to_regclass('poky._conversion'), to_regclass('poky._partitioned')"
    ) == [(None, None)]
    assert run(flat, "SELECT count(*) FROM poky._object") == [(6,)]


def test_a_conversion_waits_for_older_statements_for_so_long(
    flat: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "_SNAPSHOT_PATIENCE_SECONDS", 0.1)
    said: list[str] = []
    with closing(flat.connect(as_service=True)) as old, old.cursor() as cursor:
        old.set_session(isolation_level="REPEATABLE READ")
        cursor.execute("SELECT 1")
        with pytest.raises(SchemaError, match="Everything is copied, but an older statement"):
            migrate(
                flat.dsn_owner,
                kind="partitioned",
                release="one",
                progress=lambda each: said.append(each.step),
            )
        old.rollback()
    assert "Waiting for older statements to end" in said
    assert "Changing over" not in said
    assert migrate(flat.dsn_owner, kind="partitioned", release="one").converted
