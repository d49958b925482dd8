"""Commands in a second terminal find the embedded database that is being served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from poky.cli.served import noted, served_homes
from tests.service import Client, free_ports, wait_until
from tests.test_process import poky


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A user who has set nothing."""
    return {"XDG_DATA_HOME": str(tmp_path / "data"), "POKY_STATEMENT_TIMEOUT": "30"}


@contextmanager
def serving(home: Path, env: dict[str, str]) -> Iterator[int]:
    """A service on an embedded database; yields its port."""
    port, admin_port = free_ports(2)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POKY_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "poky", "serve", "-p", str(port), "--home", str(home)],
        env={**clean, **env, "POKY_ADMIN_PORT": str(admin_port)},
    )
    try:
        wait_until(lambda: _serves(port), timeout=60, what="it serves")
        yield port
    finally:
        process.terminate()
        assert process.wait(60) == 0


def _serves(port: int) -> bool:
    try:
        return Client(port).get("/status").status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_a_command_finds_the_database_that_is_being_served(
    tmp_path: Path, env: dict[str, str]
) -> None:
    home = tmp_path / "of the service"
    with serving(home, env) as port:
        made = poky("bucket", "create", "x", "--json", env=env)
        assert (made.returncode, json.loads(made.stdout)) == (0, {"x": "created"})
        assert str(home) in made.stderr
        listed = Client(port).get("/buckets").json()["buckets"]
        assert [each["name"] for each in listed] == ["x"]
        assert not (tmp_path / "data/poky/postgresql").exists()
        for command in ("bucket list", "cache status", "migrate --plan", "migrate"):
            assert poky(*command.split(), env=env).returncode == 0
            away = {**env, "POKY_DSN": "host=/nowhere"}  # the command line wins
            named = poky(*command.split(), "--home", str(home), env=away)
            assert named.returncode == 0, named.stderr
        assert not (tmp_path / "data/poky/postgresql").exists()
        other = {**env, "POKY_HOME": str(tmp_path / "another")}
        assert json.loads(poky("bucket", "list", "--json", env=other).stdout) == []


def test_several_are_refused_by_name(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", env["XDG_DATA_HOME"])
    with noted(tmp_path / "one"), noted(tmp_path / "two"):
        said = poky("bucket", "create", "x", "--json", env=env)
    assert said.returncode == 1
    error = json.loads(said.stderr.splitlines()[-1])
    assert error["code"] == "several_databases"
    for name in (str(tmp_path / "one"), str(tmp_path / "two"), "--home", "POKY_HOME"):
        assert name in error["detail"]


def test_a_home_is_noted_as_long_as_a_process_serves_it(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", env["XDG_DATA_HOME"])
    assert served_homes() == []
    with ExitStack() as first, noted(tmp_path / "häuser\n"):
        first.enter_context(noted(tmp_path / "häuser\n"))
        assert served_homes() == [tmp_path / "häuser\n"]
        first.close()
        assert served_homes() == [tmp_path / "häuser\n"]
    assert served_homes() == []
    assert list((tmp_path / "data/poky/served").iterdir()) == []

    # One that was killed leaves its file, and no lock.
    code = "import os, pathlib as p, poky.cli.served as s\nwith s.noted(p.Path('/k')): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(list((tmp_path / "data/poky/served").iterdir())) == 1
    assert served_homes() == []
    assert list((tmp_path / "data/poky/served").iterdir()) == []


@pytest.mark.parametrize("data", ["/proc/nowhere", "/dev/null/x"])
def test_without_a_place_for_the_note_it_serves(
    data: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", data)
    with noted(tmp_path):
        assert served_homes() == []


def test_two_databases_are_one_too_many() -> None:
    said = poky("bucket", "list", "--home", "/x", "-d", "host=/y")
    assert said.returncode == 2
    assert "--home" in said.stderr
