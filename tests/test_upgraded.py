"""Another major version of PostgreSQL by pg_upgrade: tags, copies and cursors stay good."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from poky import embedded
from poky.schema.migrate import migrate
from poky.schema.plan import Kind
from poky.store import Store
from tests.conftest import HASTY
from tests.service import running
from tests.test_standby import query

pytestmark = pytest.mark.slow

BUCKET = "tips"
#: Debian's PostgreSQL, which is older than the wheel's
OLDER = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


# The wheel's PostgreSQL is built without lz4, which Debian's has.
NO_LZ4 = """
    DO $$
    DECLARE
        v_column record;
    BEGIN
        FOR v_column IN
            SELECT attrelid::regclass AS relation, attname AS name
            FROM pg_attribute WHERE attcompression = 'l'
        LOOP
            EXECUTE format(
                'ALTER TABLE %s ALTER %I SET COMPRESSION pglz', v_column.relation, v_column.name
            );
        END LOOP;
    END $$
"""


@contextmanager
def opened(server: embedded.Embedded) -> Iterator[Store]:
    with closing(Store(server.dsn_owner, pool_size=2)) as store:
        yield store


def upgrade(home: Path) -> None:
    """As docs/upkeep.md has it: an empty cluster of the newer version, and pg_upgrade."""
    folder = home / "postgresql"
    # It is used by nobody, so this starts no server.
    server = embedded.Embedded(home, embedded._bindir_of_wheel(), {})
    short = Path(tempfile.mkdtemp(prefix="poky-"))  # a socket's path has 107 bytes at most
    short.chmod(0o755)
    try:
        new, work = folder / "new", folder / "upgrade"
        for directory in (new, work, short / "run"):
            server._make_directory(directory, server._server)
        for name in ("pg_hba.conf", "poky.conf"):
            (work / name).write_bytes((server.data / name).read_bytes())
        server._run(
            *("initdb", "-D", str(new), "-U", "postgres", "--auth=trust", "--no-sync"),
            *("--encoding=UTF8", "--locale=C", "--data-checksums"),
        )
        done = subprocess.run(
            [
                *(*server._identity(), str(server._bin / "pg_upgrade")),
                *("--old-bindir", str(OLDER), "--old-datadir", str(server.data)),
                *("--new-bindir", str(server._bin), "--new-datadir", str(new)),
                *("--username", "postgres", "--socketdir", str(short / "run")),
            ],
            cwd=work,
            capture_output=True,
            text=True,
            check=False,
        )
        logs = [
            log.read_text() for log in new.glob("pg_upgrade_output.d/*/log/pg_upgrade_dump*.log")
        ]
        assert done.returncode == 0, "\n".join([done.stdout, *logs])
        server._write(new / "pg_hba.conf", (work / "pg_hba.conf").read_text())
        with (new / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude_if_exists = 'poky.conf'\n")
        server.data.rename(folder / "former")
        new.rename(server.data)
    finally:
        server.close()
        shutil.rmtree(short)


def test_an_upgraded_server_goes_on_where_the_former_ended(tmp_path: Path, kind: Kind) -> None:
    home = tmp_path / "home"
    with embedded.ensure_running(home, bindir=OLDER, settings=HASTY) as server:
        former = query(server, "SHOW server_version_num")
        migrate(server.dsn_owner, release="tests", kind=kind)
        query(server, NO_LZ4)
        with opened(server) as store:
            store.ensure_bucket(BUCKET)
            store.keep_changes(BUCKET, 86400)
            store.register_node("cache1", "http://127.0.0.1:6091")
        with running(server.dsn_service, tmp_path / "former.log") as service:
            client = service.client()
            for number in range(50):
                assert client.put(f"/kv/{BUCKET}/{number}", f"value {number}").status == 200
            client.delete(f"/kv/{BUCKET}/0")
            before = client.get(f"/kv/{BUCKET}/7")
        with opened(server) as store:
            cursor = store.changes(BUCKET).next
            store.put(BUCKET, "unread", b"v", "text/plain")
            (node,) = store.nodes()
    upgrade(home)
    with embedded.ensure_running(home, settings=HASTY) as server:
        assert int(query(server, "SHOW server_version_num")) > int(former)
        # There is nothing to migrate, and the statistics are made as everywhere.
        query(server, "ANALYZE")
        with opened(server) as store:
            assert store.nodes() == [node], "a cache may go on with its copies"
            assert [each.key for each in store.changes(BUCKET, cursor).changes] == ["unread"]
        with running(server.dsn_service, tmp_path / "newer.log") as service:
            client = service.client()
            after = client.get(f"/kv/{BUCKET}/7")
            for name in ("ETag", "Last-Modified", "Content-Type"):
                assert after.headers[name] == before.headers[name]
            assert after.body == before.body
            tag = before.headers["ETag"]
            assert client.get(f"/kv/{BUCKET}/7", If_None_Match=tag).status == 304
            assert client.get(f"/kv/{BUCKET}/0").status == 404
            assert client.put(f"/kv/{BUCKET}/7", "newer", If_Match=tag).status == 200
            newer = client.get(f"/kv/{BUCKET}/7").headers["ETag"]
            assert int(newer.strip('"').split("-")[0]) > int(tag.strip('"').split("-")[0])
        with opened(server) as store:
            keys = [each.key for each in store.changes(BUCKET, cursor).changes]
            assert keys == ["unread", "7"]
