"""How a database gets to the release's schema (docs: sql/migrations/README.md).

A release of the future is made up here: the files of today with an expand and a contract migration.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from poky import embedded, schema
from poky.schema import SchemaError, Scripts, state
from poky.schema.migrate import migrate, plan
from poky.schema.owner import OwnerConnection
from tests.conftest import ADMINISTRATION, HASTY, KINDS, Cluster, Database
from tests.service import wait_until
from tests.writers import Load

SQL = Path(__file__).parent.parent / "sql"
NEXT = len(schema.SCRIPTS.migrations) + 2
EXPAND = f"{NEXT:04}_expand_add_note.sql"
CONTRACT = f"{NEXT + 1:04}_contract_drop_ensure_bucket.sql"

NEXT_MIGRATIONS = {
    EXPAND: """
        ALTER TABLE poky.bucket ADD COLUMN note text;
        ALTER TABLE poky._object ADD COLUMN note text NOT NULL DEFAULT '';
        ALTER TYPE poky.listed ADD ATTRIBUTE note text;
    """,
    CONTRACT: """
        DROP FUNCTION poky.ensure_bucket(text);
        ALTER TABLE poky.cache_node DROP COLUMN registered_at;
    """,
}
# The same in the files that new databases are made of. The new signature of ensure_bucket stands
# beside the old one until the contract.
NEXT_FILES = {
    "schema.sql": [
        (r"(CREATE TABLE poky.bucket \((?:\n    .*)*)(\n\);)", r"\1,\n    note text\2"),
        (r"(CREATE TABLE poky._object \((?:\n    .*)*?)(\n    PRIMARY KEY)",
         r"\1\n    note text NOT NULL DEFAULT '',\2"),
        (r"(TYPE poky.listed AS \([^)]*)(\n\))", r"\1,\n    note text\2"),
        (r",\n    registered_at timestamptz [^\n]*", ""),
    ],
    "functions/listing.sql": [
        (r"\(expires_at\) FROM poky", "(expires_at), note FROM poky"),
    ],
    "functions/buckets.sql": [
        (r"poky.ensure_bucket\(p_bucket text\)", "poky.ensure_bucket(p_bucket text, p_note text)"),
        (r"FUNCTION poky.ensure_bucket IS", "FUNCTION poky.ensure_bucket(text, text) IS"),
    ],
}  # fmt: skip


@pytest.fixture
def next_scripts(tmp_path: Path) -> Scripts:
    """The next release: it lists notes."""
    root = tmp_path / "sql"
    shutil.copytree(SQL, root)
    for name, text in NEXT_MIGRATIONS.items():
        (root / "migrations" / name).write_text(text)
    for name, changes in NEXT_FILES.items():
        text = (root / name).read_text()
        for pattern, replacement in changes:
            text, found = re.subn(pattern, replacement, text)
            assert found == 1, (name, pattern, found)
        (root / name).write_text(text)
    return Scripts(root)


@pytest.fixture
def empty(each_cluster: Cluster) -> Iterator[Database]:
    database = each_cluster.create()
    yield database
    each_cluster.drop(database)


@pytest.fixture
def migrated(each_cluster: Cluster, kind: str) -> Iterator[Database]:
    database = each_cluster.create(kind)
    yield database
    each_cluster.drop(database)


def run(database: Database, statement: str, *values: object, service: bool = False) -> Any:
    with closing(database.connect(as_service=service)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else None


def dump(cluster: Cluster, database: Database) -> str:
    """The schema as pg_dump writes it."""
    text = subprocess.run(
        [cluster.server._bin / "pg_dump", "--schema-only", database.dsn_owner],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    # Newer versions of pg_dump put a random word here.
    return re.sub(r"(?m)^\\(un)?restrict .*\n", "", text)


# Create and upgrade


def test_sql_can_be_sent_in_any_encoding() -> None:
    for file in SQL.rglob("*.sql"):
        assert file.read_bytes().isascii(), f"{file} has a character that LATIN1 may not have"


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_database_gets_everything_and_then_nothing(empty: Database, kind: str) -> None:
    files = ["schema.sql", f"{kind}.sql", "functions.sql", "grants.sql"]
    before = plan(empty.dsn_owner, kind=kind)
    assert (before.state, before.kind, before.pending) == ("missing", None, files)
    assert run(empty, "SELECT to_regnamespace('poky')") == [(None,)]

    done = migrate(empty.dsn_owner, kind=kind, release="one")
    assert (done.applied, done.kind, done.converted) == (files, kind, False)
    records = dict(run(empty, "SELECT name, checksum FROM poky.migration WHERE release = 'one'"))
    assert records == {
        name: schema.SCRIPTS.checksum(name) for name in files + schema.SCRIPTS.migrations
    }

    after = plan(empty.dsn_owner)
    assert (after.state, after.kind, after.pending, after.postponed) == ("ok", kind, [], [])
    assert migrate(empty.dsn_owner, release="two").applied == []
    assert run(empty, "SELECT DISTINCT release FROM poky.migration") == [("one",)]
    json.dumps(dataclasses.asdict(after))


def test_partitioned_is_the_default(empty: Database) -> None:
    assert migrate(empty.dsn_owner, release="one").kind == "partitioned"


@pytest.mark.parametrize("kind", KINDS)
def test_a_migrated_database_equals_a_new_one(
    each_cluster: Cluster, migrated: Database, empty: Database, kind: str, next_scripts: Scripts
) -> None:
    run(migrated, "SELECT poky.ensure_bucket('b')")

    seen = plan(migrated.dsn_owner, scripts=next_scripts)
    assert seen.state == "outdated"
    assert seen.pending == [EXPAND, "functions.sql", "grants.sql"]
    assert seen.postponed == [CONTRACT]
    done = migrate(migrated.dsn_owner, release="next", scripts=next_scripts)
    assert done.applied == seen.pending
    expanded = plan(migrated.dsn_owner, scripts=next_scripts)
    assert (expanded.state, expanded.pending, expanded.postponed) == ("ok", [], [CONTRACT])
    assert (expanded.schema, expanded.contracted) == (NEXT, 1)
    # Both the previous release's call and the next one's.
    assert run(migrated, "SELECT poky.ensure_bucket('b')", service=True) == [(False,)]
    assert run(migrated, "SELECT poky.ensure_bucket('c', 'note')", service=True) == [(True,)]

    done = migrate(migrated.dsn_owner, release="next", phase="contract", scripts=next_scripts)
    assert done.applied == [CONTRACT, "functions.sql", "grants.sql"]
    after = plan(migrated.dsn_owner, phase="contract", scripts=next_scripts)
    assert (after.pending, after.postponed, after.contracted) == ([], [], NEXT + 1)

    migrate(empty.dsn_owner, kind=kind, release="next", scripts=next_scripts)
    for bucket in "bc":
        run(empty, "SELECT poky.ensure_bucket(%s, 'note')", bucket)
    assert dump(each_cluster, migrated) == dump(each_cluster, empty)
    names = "SELECT name FROM poky.migration ORDER BY name"
    assert run(migrated, names) == run(empty, names)


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_script_makes_the_same_database(
    each_cluster: Cluster, migrated: Database, empty: Database, kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "schema.sql"
    file.write_text(schema.script(kind))
    psql = [each_cluster.server._bin / "psql", "-q", "-v", "ON_ERROR_STOP=1"]
    subprocess.run([*psql, "-f", file, empty.dsn_owner], check=True)
    assert dump(each_cluster, empty) == dump(each_cluster, migrated)
    seen = plan(empty.dsn_owner)
    assert (seen.state, seen.kind, seen.pending) == ("ok", kind, [])


def test_changed_functions_are_applied_with_their_grants(
    migrated: Database, next_scripts: Scripts
) -> None:
    run(migrated, "UPDATE poky.migration SET checksum = '' WHERE name = 'functions.sql'")
    assert migrate(migrated.dsn_owner, release="two").applied == ["functions.sql", "grants.sql"]
    run(migrated, "UPDATE poky.migration SET checksum = '' WHERE name = 'grants.sql'")
    assert migrate(migrated.dsn_owner, release="two").applied == ["grants.sql"]
    assert migrate(migrated.dsn_owner, release="two").applied == []


def test_a_migration_that_fails_leaves_nothing_behind(
    each_cluster: Cluster, migrated: Database, next_scripts: Scripts, tmp_path: Path
) -> None:
    before = dump(each_cluster, migrated)
    path = tmp_path / "sql" / "migrations" / CONTRACT
    path.write_text("DROP FUNCTION poky.ensure_bucket(text); SELECT 1 / 0;")
    with pytest.raises(SchemaError, match="division by zero"):
        migrate(migrated.dsn_owner, release="next", phase="contract", scripts=next_scripts)
    assert dump(each_cluster, migrated) == before
    assert plan(migrated.dsn_owner).state == "ok"


def test_two_at_once_do_it_once(empty: Database) -> None:
    applied: list[list[str]] = []
    threads = [
        threading.Thread(
            target=lambda: applied.append(migrate(empty.dsn_owner, release="one").applied)
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, applied)) == [0, 0, 0, 4]


def test_who_waits_says_so(empty: Database) -> None:
    said: list[str] = []
    with OwnerConnection(empty.dsn_owner) as other:
        other.keep_others_out()
        waiting = threading.Thread(
            target=lambda: migrate(
                empty.dsn_owner, release="one", progress=lambda p: said.append(p.step)
            )
        )
        waiting.start()
        wait_until(lambda: said)
        assert said == ["Waiting for another migration to end"]
        assert run(empty, "SELECT to_regnamespace('poky')") == [(None,)]
    waiting.join(30)
    assert plan(empty.dsn_owner).state == "ok"


def test_revisions_start_and_step_as_told(empty: Database) -> None:
    migrate(empty.dsn_owner, release="one", kind="flat", revision_start=2, revision_increment=10)
    put = "SELECT (poky.put('b', 'key', '', 'text/plain')).revision"
    revisions = [run(empty, put) for _ in range(3)]
    assert revisions[0] == [(2,)]
    assert all(rows[0][0] % 10 == 2 for rows in revisions)


# Refuse


def test_a_newer_database_is_refused(migrated: Database, next_scripts: Scripts) -> None:
    migrate(migrated.dsn_owner, release="next", scripts=next_scripts)
    assert plan(migrated.dsn_owner).state == "ok"
    with pytest.raises(SchemaError, match=f"newer than this release, which does not know {EXPAND}"):
        migrate(migrated.dsn_owner, release="this")
    migrate(migrated.dsn_owner, release="next", phase="contract", scripts=next_scripts)
    assert plan(migrated.dsn_owner).state == "newer"
    with pytest.raises(
        SchemaError, match=f"newer than this release, which does not know {CONTRACT}"
    ):
        migrate(migrated.dsn_owner, release="this")


def test_a_changed_migration_is_refused(
    migrated: Database, next_scripts: Scripts, tmp_path: Path
) -> None:
    migrate(migrated.dsn_owner, release="next", scripts=next_scripts)
    path = tmp_path / "sql" / "migrations" / EXPAND
    path.write_text(path.read_text() + "-- better\n")
    with pytest.raises(SchemaError, match=f"{EXPAND} has changed since it was applied"):
        migrate(migrated.dsn_owner, release="next", scripts=next_scripts)


def test_there_is_no_way_back_to_flat(each_cluster: Cluster) -> None:
    database = each_cluster.create("partitioned")
    with pytest.raises(SchemaError, match="partitioned, and there is no way back to flat"):
        migrate(database.dsn_owner, kind="flat", release="one")
    each_cluster.drop(database)


def test_a_strange_schema_is_refused(empty: Database) -> None:
    run(empty, "CREATE SCHEMA poky")
    sentence = "a schema named poky that poky migrate did not make"
    assert sentence in (plan(empty.dsn_owner).refusal or "")
    with pytest.raises(SchemaError, match=sentence):
        migrate(empty.dsn_owner, release="one")


def test_a_wrong_dsn_is_a_sentence_without_secrets() -> None:
    with pytest.raises(SchemaError, match="not one that PostgreSQL understands") as refused:
        migrate("password=secret nonsense", release="one")
    assert "secret" not in str(refused.value)


def test_no_database_is_a_sentence() -> None:
    with pytest.raises(SchemaError, match="Cannot connect to the database: "):
        migrate("postgresql://user:secret@127.0.0.1:1/none?connect_timeout=2", release="one")


@pytest.mark.parametrize("name", ["3_expand_x.sql", "0003_grow_x.sql", "0009_expand_x.sql"])
def test_misnamed_migrations_are_refused(tmp_path: Path, name: str) -> None:
    shutil.copytree(SQL, tmp_path / "sql")
    (tmp_path / "sql" / "migrations" / name).write_text("")
    with pytest.raises(SchemaError):
        Scripts(tmp_path / "sql")


# What the running service makes of it


def test_state(next_scripts: Scripts) -> None:
    this = ["schema.sql", "flat.sql", "functions.sql", "grants.sql", *schema.SCRIPTS.migrations]
    assert state(None) == state([]) == "missing"
    assert state(this) == "ok"
    # This release with the next one's database: during a deployment, or after a rollback.
    assert state([*this, EXPAND]) == "ok"
    assert state([*this, EXPAND, CONTRACT]) == "newer"
    # The next release.
    assert state(this, next_scripts) == "outdated"
    assert state([*this, EXPAND], next_scripts) == "ok"
    assert state([*this, EXPAND, CONTRACT], next_scripts) == "ok"


def test_versions_agree_with_state(migrated: Database, next_scripts: Scripts) -> None:
    """A rollback's guard compares numbers (RELEASE.json); the service compares names."""
    this, following = schema.versions(), schema.versions(next_scripts)
    assert this == {"schema": NEXT - 1, "schema_min": NEXT - 1, "schema_max": NEXT - 1}
    assert following == {"schema": NEXT + 1, "schema_min": NEXT, "schema_max": NEXT + 1}

    def suits(release: dict[str, int]) -> bool:
        seen = plan(migrated.dsn_owner)
        return seen.schema >= release["schema_min"] and seen.contracted <= release["schema_max"]

    assert (suits(this), suits(following)) == (True, False)
    migrate(migrated.dsn_owner, release="next", scripts=next_scripts)
    assert (suits(this), suits(following)) == (True, True)
    migrate(migrated.dsn_owner, release="next", phase="contract", scripts=next_scripts)
    assert (suits(this), suits(following)) == (False, True)


# Rights


def test_roles_are_made_by_any_user_with_the_right(each_cluster: Cluster, tmp_path: Path) -> None:
    """On a cluster without any role of Poky."""
    bindir = each_cluster.server._bin
    with embedded.ensure_running(tmp_path, bindir=bindir, settings=HASTY) as server:
        admin = server.dsn_owner.replace("/poky?", "/postgres?")
        with closing(psycopg2.connect(admin)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in (
                    "DROP DATABASE poky",
                    "DROP ROLE poky_owner, poky_service",
                    "CREATE ROLE nobody LOGIN",
                    "CREATE ROLE maker LOGIN CREATEROLE",
                    "CREATE DATABASE poky OWNER maker",
                ):
                    cursor.execute(statement)

                def dsn(user: str) -> str:
                    return server.dsn_owner.replace("postgres@", f"{user}@")

                with pytest.raises(SchemaError) as refused:
                    migrate(dsn("nobody"), release="one")
                assert "The user nobody cannot act as poky_owner" in str(refused.value)
                commands = [line for line in str(refused.value).splitlines() if line.endswith(";")]
                assert migrate(dsn("maker"), release="one").applied
                assert plan(dsn("maker")).state == "ok"
                with pytest.raises(SchemaError, match="nobody cannot act as poky_owner"):
                    plan(dsn("nobody"))

                # The commands of the refusal do what is missing.
                cursor.execute("DROP DATABASE poky")
                cursor.execute(
                    "DROP ROLE poky_owner, poky_service, poky_reader, poky_monitor, maker"
                )
                cursor.execute("CREATE DATABASE poky")
                for command in commands:
                    cursor.execute(command)
                assert migrate(dsn("nobody"), release="one").applied
                cursor.execute(
                    "SELECT rolname, rolcanlogin, rolsuper FROM pg_roles"
                    " WHERE rolname LIKE 'poky%' ORDER BY 1"
                )
                assert cursor.fetchall() == [
                    ("poky_monitor", False, False),
                    ("poky_owner", False, False),
                    ("poky_reader", False, False),
                    ("poky_service", True, False),
                ]


def test_the_owner_owns_everything(migrated: Database) -> None:
    run(migrated, "SELECT poky.ensure_bucket('b')", service=True)
    owners = run(
        migrated,
        "SELECT DISTINCT pg_get_userbyid(owner) FROM ("
        " SELECT relowner AS owner FROM pg_class WHERE relnamespace = 'poky'::regnamespace"
        " UNION SELECT proowner FROM pg_proc WHERE pronamespace = 'poky'::regnamespace"
        " UNION SELECT nspowner FROM pg_namespace WHERE nspname = 'poky') AS o",
    )
    assert owners == [("poky_owner",)]


def test_the_service_calls_functions_and_nothing_else(migrated: Database) -> None:
    run(migrated, "SELECT poky.ensure_bucket('b')")
    functions = run(
        migrated,
        "SELECT p.proname, has_function_privilege('poky_service', p.oid, 'EXECUTE'),"
        " has_function_privilege('public', p.oid, 'EXECUTE'), p.prosecdef,"
        " 'search_path=poky, pg_temp' = ANY (p.proconfig), obj_description(p.oid) IS NOT NULL"
        " FROM pg_proc AS p WHERE p.pronamespace = 'poky'::regnamespace",
    )
    assert {"get", "put", "delete", "list", "status", "_put"} <= {row[0] for row in functions}
    for name, service, public, definer, path, comment in functions:
        private = name.startswith("_")
        allowed = not private and name not in ADMINISTRATION
        assert (service, public, definer) == (allowed, False, not private), name
        assert path or private, name  # private ones run under their caller's
        assert comment or name[-1].isdigit(), name  # a bucket's own are made of templates
    relations = run(
        migrated,
        "SELECT c.relname FROM pg_class AS c CROSS JOIN unnest(ARRAY['poky_service', 'poky_reader',"
        " 'poky_monitor']) AS r (name), unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE',"
        " 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS p (privilege)"
        " WHERE c.relnamespace = 'poky'::regnamespace AND c.relkind IN ('r', 'p')"
        " AND has_table_privilege(r.name, c.oid, p.privilege)",
    )
    assert relations == []
    for statement in (
        "SELECT FROM poky.bucket",
        "DELETE FROM poky._object",
        "SELECT nextval('poky.revision')",
        "CREATE TABLE poky.mine ()",
        "DROP FUNCTION poky.get(text, text)",
        "SELECT poky._is_flat()",
        "SET ROLE poky_owner",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            run(migrated, statement, service=True)


def test_tables_and_types_have_comments(migrated: Database) -> None:
    silent = run(
        migrated,
        "SELECT relname FROM pg_class WHERE relnamespace = 'poky'::regnamespace"
        " AND relkind IN ('r', 'p', 'S') AND obj_description(oid, 'pg_class') IS NULL"
        " AND pg_get_serial_sequence('poky.bucket', 'id') <> 'poky.' || relname"
        " AND pg_get_serial_sequence('poky._outbox', 'id') <> 'poky.' || relname"
        " UNION SELECT typname FROM pg_type JOIN pg_class AS c ON c.oid = typrelid"
        " WHERE typnamespace = 'poky'::regnamespace AND relkind = 'c'"
        " AND obj_description(pg_type.oid) IS NULL",
    )
    assert silent == []


# Under load


@pytest.mark.slow
def test_an_upgrade_goes_unnoticed(migrated: Database, next_scripts: Scripts) -> None:
    """Clients of the previous release write through both phases; a long reader is in the way."""
    for bucket in ("a", "b"):
        run(migrated, "SELECT poky.ensure_bucket(%s)", bucket)
    with Load(migrated.dsn_service, ["a", "b"]) as load:
        load.wait_for_calls(200)
        with closing(migrated.connect()) as long, long.cursor() as cursor:
            cursor.execute("LOCK TABLE poky._object IN ACCESS SHARE MODE")
            upgrade = threading.Thread(
                target=migrate,
                args=[migrated.dsn_owner],
                kwargs={"release": "next", "scripts": next_scripts},
            )
            upgrade.start()
            load.wait_for_calls(500)
            time.sleep(1.5)  # longer than clients wait for a lock: were it held up, they would fail
            assert upgrade.is_alive()
        upgrade.join(60)
        assert not upgrade.is_alive()
        load.wait_for_calls(200)
        assert plan(migrated.dsn_owner, scripts=next_scripts).schema == NEXT
    load.check()


def test_no_sql_file_is_long() -> None:
    assert {
        str(file): n
        for file in SQL.rglob("*.sql")
        if (n := len(file.read_text().splitlines())) > 350
    } == {}
