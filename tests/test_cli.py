"""The command ``poky``: what people and programs are told when it fails."""

from __future__ import annotations

import json
import subprocess
from contextlib import closing

import pytest

from poky.store import Store
from tests.conftest import Database
from tests.test_process import poky

AWAY = "host=/nowhere/at/all"


def failure(said: subprocess.CompletedProcess[str]) -> tuple[int, str]:
    """The exit status and the code of a command that failed with --json."""
    assert said.returncode, said.stdout
    assert not said.stdout
    error = json.loads(said.stderr.splitlines()[-1])
    assert set(error) == {"code", "detail"}
    assert error["detail"]
    return said.returncode, error["code"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("bucket drop nowhere --json", (1, "bucket_not_found")),
        ("bucket create no/name --json", (1, "bad_bucket_name")),
        (f"bucket list --json -d {AWAY}", (1, "database_unavailable")),
        (f"cache status --json -d {AWAY}", (1, "database_unavailable")),
        (f"migrate --json -d {AWAY}", (1, "database_unavailable")),
        (f"migrate --plan --json -d {AWAY}", (1, "database_unavailable")),
        ("migrate --json -d nonsense=1", (1, "bad_dsn")),
    ],
)
def test_a_failure_has_a_code_for_programs(
    database: Database, arguments: str, expected: tuple[int, str]
) -> None:
    env = {"POKY_DSN": database.dsn_service}
    assert failure(poky(*arguments.split(), env=env)) == expected


def test_a_bucket_with_keys_is_refused_by_its_code(database: Database, bucket: str) -> None:
    with closing(Store(database.dsn_service)) as store:
        store.put(bucket, "k", b"v", "text/plain")
    env = {"POKY_DSN": database.dsn_service}
    assert failure(poky("bucket", "drop", bucket, "--json", env=env)) == (1, "bucket_not_empty")


def test_settings_that_cannot_be_used_have_a_code() -> None:
    assert failure(poky("config", "--json", env={"POKY_PORT": "x"})) == (2, "bad_settings")


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_schema_that_cannot_be_changed_has_a_code(own_database: Database) -> None:
    env = {"POKY_OWNER_DSN": own_database.dsn_owner}
    said = poky("migrate", "--schema", "flat", "--json", env=env)
    assert failure(said) == (1, "schema_refused")
