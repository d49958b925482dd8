"""What PostgreSQL logs, with the settings that the role gives it: what happened, and no value."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from poky import embedded
from tests.conftest import Database
from tests.service import running, wait_until
from tests.support import roles

pytestmark = pytest.mark.slow

# PostgreSQL's own defaults, which the embedded server has set otherwise for itself.
DEFAULTS = {
    "log_min_error_statement": "error",
    "log_checkpoints": "on",
    "deadlock_timeout": "100ms",
}
SECRET = "SECRET-value-of-an-object"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Embedded]:
    role = roles.variables("postgresql")["_postgresql_settings"]
    logging = {name: str(value) for name, value in role.items() if name.startswith("log_")}
    home = tmp_path_factory.mktemp("logs")
    with embedded.ensure_running(home, settings={**DEFAULTS, **logging}) as server:
        yield server


@pytest.fixture(scope="module")
def log(server: embedded.Embedded) -> Path:
    (found,) = server.data.parent.glob("server.log")
    return found


def execute(server: embedded.Embedded, statement: str, parameters: Any = None) -> str:
    """Run a statement in a connection of its own; return the error's message, if it failed."""
    with closing(psycopg2.connect(server.dsn_owner)) as connection:
        connection.autocommit = True
        try:
            connection.cursor().execute(statement, parameters)
        except psycopg2.Error as error:
            return str(error)
    return ""


def test_no_statement_detail_or_parameter_is_logged(server: embedded.Embedded, log: Path) -> None:
    execute(server, "CREATE TABLE kept (key text PRIMARY KEY, value text CHECK (value <> ''))")
    insert = "INSERT INTO kept VALUES (%s, %s)"
    assert not execute(server, insert, [SECRET, SECRET])
    # A row that exists, one that a constraint refuses, one for no table, and a mistake in words.
    assert SECRET in execute(server, insert, [SECRET, SECRET])
    assert SECRET in execute(server, "UPDATE kept SET value = '' WHERE value = %s", [SECRET])
    assert execute(server, "INSERT INTO nowhere VALUES (%s)", [SECRET])
    assert execute(server, "SELECT FROM WHERE %s", [SECRET])
    # Slow, sorted on disk, and cancelled.
    assert not execute(server, "SELECT pg_sleep(1.2), %s", [SECRET])
    sort = (
        "SET work_mem = '64kB'; SELECT %s || n AS x FROM generate_series(1, 400000) AS n ORDER BY x"
    )
    assert not execute(server, sort, [SECRET])
    assert execute(server, "SET statement_timeout = 100; SELECT pg_sleep(9), %s", [SECRET])
    # A prepared statement with parameters.
    assert execute(
        server,
        "PREPARE p (text) AS INSERT INTO kept VALUES ($1, $1); EXECUTE p (%s)",
        [SECRET],
    )
    wait_until(lambda: "temporary file" in log.read_text(), what="the sort is logged")
    text = log.read_text()
    assert "duplicate key" in text
    assert "statement timeout" in text
    assert SECRET not in text


def test_a_wait_for_a_lock_is_logged_without_its_statement(
    server: embedded.Embedded, log: Path
) -> None:
    execute(server, "CREATE TABLE IF NOT EXISTS locked AS SELECT 1 AS n")
    with closing(psycopg2.connect(server.dsn_owner)) as holder:
        holder.cursor().execute("UPDATE locked SET n = 2")
        waiter = threading.Thread(
            target=execute, args=(server, "UPDATE locked SET n = length(%s)", [SECRET])
        )
        waiter.start()
        wait_until(lambda: "still waiting for" in log.read_text(), what="the wait is logged")
        holder.rollback()
        waiter.join(20)
    assert SECRET not in log.read_text()


def test_no_request_brings_a_value_into_the_log(
    server: embedded.Embedded, log: Path, tmp_path: Path
) -> None:
    from poky.schema.migrate import migrate

    migrate(server.dsn_owner, release="tests")
    before = log.stat().st_size
    value = SECRET * 40_000
    with running(server.dsn_service, tmp_path / "poky.log") as service:
        client = service.client()
        service.admin().request("PUT", "/buckets/b")
        for number in range(20):
            assert client.put(f"/kv/nowhere/{number}", value).status == 404
            assert client.batch("PUT", "nowhere", [{"key": "k", "data": value}]).status == 404
        assert client.put("/kv/b/k", value).status == 200
        assert client.put("/kv/b/k", f"{SECRET}\0").status == 200
    text = log.read_text()
    assert SECRET not in text
    assert log.stat().st_size - before < 40_000
    assert SECRET not in (tmp_path / "poky.log").read_text()


@pytest.mark.parametrize("kind", ["partitioned"])
def test_server_timing_and_json_by_setting(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    settings = {"server_timing": "on", "log_format": "json"}
    with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
        service.admin().request("PUT", "/buckets/b")
        client = service.client()
        put = client.put("/kv/b/k", "v", x_request_id="one")
        got = client.get("/kv/b/k?secret=1", x_request_id="two")
        listed = client.get("/kv/b")
        for answer, stages in (
            (put, ["wait", "db", "caches", "total"]),
            (got, ["wait", "db", "caches", "total"]),
            (listed, ["total"]),
            (client.get("/kv/b/missing"), ["wait", "db", "caches", "total"]),
        ):
            said = answer.headers["Server-Timing"]
            parts = dict(part.split(";dur=") for part in said.split(", "))
            assert list(parts) == stages
            times = [float(part) for part in parts.values()]
            assert all(0 <= part <= 30_000 for part in times)
            assert sum(times[:-1]) <= times[-1] + 0.1 * len(times)
        assert "Server-Timing" not in service.admin().get("/buckets").headers

        def lines() -> list[dict[str, object]]:
            text = service.log.read_text()
            return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

        wait_until(lambda: [each for each in lines() if each.get("id") == "two"])
        by_id = {each["id"]: each for each in lines() if "id" in each}
        assert by_id["one"]["outcome"] == "inserted"
        assert by_id["two"]["path"] == "/kv/b/k"
        assert any(each.get("logger") == "poky.process" for each in lines())
        assert "secret" not in service.log.read_text()


@pytest.mark.parametrize("kind", ["partitioned"])
def test_answers_have_no_server_timing_unless_asked(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with running(own_database.dsn_service, tmp_path / "log") as service:
        assert "Server-Timing" not in service.client().get("/kv/b/k").headers
