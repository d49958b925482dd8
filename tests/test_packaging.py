"""The wheel and the sdist: complete, nothing more, and at work in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK_FILES = sorted(ROOT.glob("requirements*.txt"))


def tracked(*paths: str) -> list[str]:
    return subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z", *paths], text=True).split(
        "\0"
    )[:-1]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Run a command as a newcomer's shell would: with nothing of our environment but pip's."""
    pips = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": os.defpath, "HOME": os.environ.get("HOME", "/"), **pips, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make wheel` builds in a checkout in which files lie around, ignored ones and others."""
    tree = tmp_path_factory.mktemp("tree")
    run(ROOT / ".ci/tracked", tree, cwd=ROOT)
    run("git", "init", "--quiet", cwd=tree)
    run("git", "add", "--all", cwd=tree)
    for junk in (
        ".poky/postgresql/data/secret",
        "service/poky/__pycache__/app.pyc",
        "service/poky/notes.py",
        "sql/mine.sql",
        "dist/old.whl",
        "passwords",
    ):
        (tree / junk).parent.mkdir(parents=True, exist_ok=True)
        (tree / junk).write_text("not to be shipped")
    # The environment of these tests, as it is. The wheel is built from the sdist: this proves both.
    environment = Path(sys.prefix)
    run("make", f"--old-file={environment}/.dev", f"VENV={environment}", "wheel", cwd=tree)
    (tree / "dist/old.whl").unlink()
    return tree / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


def test_the_wheel_carries_the_sql_of_the_repository(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        carried = {
            name.removeprefix("poky/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("poky/sql/")
        }
    assert sorted(carried) == sorted(tracked("sql"))
    assert carried == {name: (ROOT / name).read_bytes() for name in carried}


def test_the_wheel_carries_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {name.removeprefix("service/") for name in tracked("service/poky")} - {"poky/sql"}
    assert names == package | {f"poky/{name}" for name in tracked("sql")}


def test_the_sdist_carries_nothing_that_is_not_tracked(dist: Path) -> None:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    sql_by_the_link = {f"service/poky/{name}" for name in tracked("sql")}
    assert names - {"PKG-INFO"} - sql_by_the_link <= set(tracked())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "venv", tmp_path / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=True)
    python, poky = environment / "bin/python", environment / "bin/poky"
    install = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, "--require-hashes", f"-r{ROOT / 'requirements.txt'}", cwd=empty)
    run(*install, "--no-deps", wheel, cwd=empty)

    run(python, "-m", "pip", "check", cwd=empty)
    version = PROJECT_VERSION.search((ROOT / "service/poky/__init__.py").read_text())
    assert version
    assert run(poky, "version", cwd=empty).startswith(f"poky {version[1]}\n")
    assert run(python, "-m", "poky", "version", cwd=empty).startswith(f"poky {version[1]}\n")
    assert "CREATE SCHEMA poky" in run(poky, "migrate", "--print", cwd=empty)
    run(python, "-c", IMPORT_EVERY_MODULE, cwd=empty)
    assert not list(empty.iterdir())

    run(*install, "--require-hashes", f"-r{ROOT / 'requirements-embedded.txt'}", cwd=empty)
    run(poky, "bucket", "create", "greetings", cwd=empty, POKY_HOME=str(tmp_path / "home"))
    listed = run(poky, "bucket", "list", "--json", cwd=empty, POKY_HOME=str(tmp_path / "home"))
    assert '"greetings"' in listed


PROJECT_VERSION = re.compile(r'__version__ = "(.+)"')
# An import that no dependency declares is found here, and not by the first user.
IMPORT_EVERY_MODULE = """
import importlib, pkgutil, poky
for module in pkgutil.iter_modules(poky.__path__):
    if module.name == "client":
        try:
            importlib.import_module("poky.client")
        except ImportError as error:  # it is an extra
            assert "pip install 'poky[client]'" in str(error)
        else:
            raise AssertionError("urllib3 is there without the extra client")
    elif module.name != "__main__":
        importlib.import_module(f"poky.{module.name}")
"""


@pytest.mark.parametrize("lock_file", LOCK_FILES, ids=lambda file: file.name)
def test_locks_hold_versions_and_hashes_and_no_address(lock_file: Path) -> None:
    text = lock_file.read_text()
    assert not re.search(r"://|^\s*-[^-]|--(index-url|extra-index-url|find-links)", text, re.M)
    for requirement in re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n", "", text)):
        assert re.match(r"[\w.\-\[\]]+==\S+", requirement), requirement
        assert "--hash=sha256:" in requirement, requirement


@pytest.mark.parametrize(
    ("lock_file", "wanted"),
    [
        ("requirements.txt", PROJECT["project"]["dependencies"]),
        ("requirements-client.txt", PROJECT["project"]["optional-dependencies"]["client"]),
        ("requirements-embedded.txt", PROJECT["project"]["optional-dependencies"]["embedded"]),
        ("requirements-build.txt", PROJECT["dependency-groups"]["build"]),
        ("requirements-dev.txt", PROJECT["dependency-groups"]["dev"]),
    ],
)
def test_locks_hold_what_the_project_wants(lock_file: str, wanted: list[str]) -> None:
    locked = {
        canonicalize_name(name): version
        for name, version in re.findall(r"(?m)^([\w.\-]+)==(\S+)", (ROOT / lock_file).read_text())
    }
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not locked: make lock"
        assert version in requirement.specifier, f"{requirement} is locked at {version}: make lock"


def test_make_lists_every_verb() -> None:
    verbs = set(re.findall(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text()))
    listed = set(re.findall(r"(?m)^make ([a-z-]+) ", run("make", cwd=ROOT)))
    assert listed == verbs
    assert {"run", "check", "test", "lint", "wheel", "clean"} <= listed
