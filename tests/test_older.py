"""The previous release's database, and its calls on this release's.

tests/older has what release 0.1.0 makes of an empty database. Its statements are those that its
store prepares; they have to work as long as an instance of it may run beside this release.
"""

from __future__ import annotations

import subprocess
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from poky.schema.migrate import migrate, plan
from poky.schema.plan import Kind
from poky.store import Store
from tests.conftest import Cluster, Database
from tests.test_schema import dump, run

pytestmark = pytest.mark.slow

OLDER = Path(__file__).parent / "older"
CALLS = [
    "SELECT revision, hash, modified_at, unchanged_since, content_type, value"
    " FROM poky.get('b'::text, 'k'::text)",
    "SELECT poky.reader('b')",
    "SELECT poky.writer('b', 'put')",
    "SELECT outcome, revision, hash, modified_at, outbox_id FROM poky.put('b'::text, 'k'::text,"
    " 'v'::bytea, 't'::text, NULL::bigint, {if_match}::text, NULL::text, NULL::text)",
    "SELECT key, revision, hash, modified_at, content_type, value"
    " FROM poky.get_many('b', '{{k}}'::text[])",
    "SELECT ordinal, outcome, revision, hash, modified_at, outbox_id FROM poky.put_many('b'::text,"
    " '{{k}}'::text[], '{{v}}'::bytea[], '{{t}}'::text[], NULL::bigint[], NULL::text[],"
    " NULL::text[], false, '{{12345678}}'::text[])",
    "SELECT key, size, revision, hash, modified_at, content_type FROM poky.list('b', '', '', 9)",
    "SELECT ordinal, outcome, revision, hash, modified_at, outbox_id FROM poky.delete_many("
    "'b'::text, '{{k}}'::text[], NULL::text[], NULL::text[], NULL::bigint[], true)",
    "SELECT outcome, outbox_id FROM poky.delete('b'::text, 'k'::text, NULL::text, NULL::text,"
    " NULL::bigint)",
    "SELECT name, url, generation, lease_seconds, leased_at, suspended_at, drained, held,"
    " purged_at FROM poky.nodes()",
]


@pytest.fixture
def older(cluster: Cluster, empty_database: Database, kind: Kind) -> Database:
    """A database of 0.1.0 with two buckets in use, whose functions that release has made."""
    psql = [cluster.server._bin / "psql", "-q", "-v", "ON_ERROR_STOP=1"]
    subprocess.run([*psql, "-f", OLDER / f"0.1.0-{kind}.sql", empty_database.dsn_owner], check=True)
    for bucket in "bc":
        run(empty_database, f"SELECT poky.ensure_bucket('{bucket}')")
        run(empty_database, f"SELECT poky.put('{bucket}', 'kept', 'value', 't')")
        for call in ("reader('{}')", "writer('{}', 'put')", "writer('{}', 'delete')"):
            run(empty_database, "SELECT poky." + call.format(bucket))
    return empty_database


def test_its_database_is_migrated_to_what_a_new_one_is(
    cluster: Cluster, older: Database, kind: Kind
) -> None:
    assert plan(older.dsn_owner).state == "outdated"
    migrate(older.dsn_owner, release="this")
    fresh = cluster.create(kind)
    for bucket in "bc":
        run(fresh, f"SELECT poky.ensure_bucket('{bucket}')")
    try:
        assert dump(cluster, older) == dump(cluster, fresh)
    finally:
        cluster.drop(fresh)
    with closing(Store(older.dsn_service)) as store:
        found = store.get("b", "kept")
        assert found is not None
        assert (bytes(found.value), found.content_encoding) == (b"value", None)


def test_its_calls_go_on_working(older: Database) -> None:
    """Also statements that it has prepared before the migration."""
    with closing(older.connect(as_service=True)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for if_match in ("NULL", "'*'"):
                for call in CALLS:
                    cursor.execute(call.format(if_match=if_match))
            for number, call in enumerate(CALLS):
                cursor.execute(f"PREPARE s{number} AS {call.format(if_match='NULL')}")
            migrate(older.dsn_owner, release="this")
            for number in range(len(CALLS)):
                cursor.execute(f"EXECUTE s{number}")
            for if_match in ("NULL", "'*'"):
                for call in CALLS:
                    cursor.execute(call.format(if_match=if_match))
            # What it finds out about functions of single buckets: there are none for it.
            cursor.execute("SELECT poky.reader('b'), poky.writer('b', 'put')")
            assert cursor.fetchall() == [("", "")]


def test_its_put_takes_the_coding_of_an_object_away(older: Database) -> None:
    migrate(older.dsn_owner, release="this")
    with closing(Store(older.dsn_service)) as store:
        for if_match in (None, "*"):
            store.put("b", "k", b"coded", "t", content_encoding="gzip")
            run(older, "SELECT poky.put('b', 'k', 'plain', 't', NULL, %s)", if_match, service=True)
            found = store.get("b", "k")
            assert found is not None
            assert (bytes(found.value), found.content_encoding) == (b"plain", None)


def test_it_lists_and_purges_keys_with_slashes_that_this_release_stored(older: Database) -> None:
    """Its router knows no path for them; its sweeper and its lists have to live with them."""
    migrate(older.dsn_owner, release="this")
    run(older, "SELECT poky.register_node('n', 'http://127.0.0.1:1')")
    with closing(Store(older.dsn_service)) as store:
        store.put("b", "a/b", b"value", "t")
    with closing(older.connect(as_service=True)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT key FROM poky.list('b', '', '', 9)")
        assert cursor.fetchall() == [("a/b",), ("kept",)]
        cursor.execute("SELECT key FROM poky.list('b', 'a', '', 1)")
        assert cursor.fetchall() == [("a/b",)]
        cursor.execute("SELECT convert_from(value, 'UTF8') FROM poky.get('b', 'a/b')")
        assert cursor.fetchall() == [("value",)]
        cursor.execute("SELECT bucket, key FROM poky.unconfirmed(0, 9)")
        assert cursor.fetchall() == [("b", "a/b")]


def test_its_functions_of_single_buckets_are_gone(older: Database) -> None:
    migrate(older.dsn_owner, release="this")
    with pytest.raises(psycopg2.errors.UndefinedFunction):
        run(older, "SELECT poky.get_1('k')", service=True)
