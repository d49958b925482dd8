"""Documents, routes and settings agree: a fact is written once, or compared here."""

from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from poky.api import ADMIN_ROUTES, ROUTES
from poky.config import Config
from tests.coherence.faults import FAULTS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "service" / "poky"


def read(name: str) -> str:
    return (ROOT / name).read_text()


# Routes.


@pytest.mark.parametrize("route", [*ROUTES, *ADMIN_ROUTES], ids=lambda route: route.path)
def test_every_route_is_documented(route: object) -> None:
    path = re.sub("<(.*?)>", r"{\1}", route.path)  # type: ignore[attr-defined]
    assert path in read("docs/http-api.md")


def test_every_documented_status_has_a_route_or_a_reason() -> None:
    documented = set(re.findall(r"^\| ([0-9, ]+) \|", read("docs/http-api.md"), re.MULTILINE))
    listed = {status for cell in documented for status in cell.split(", ")}
    used = {status for route in [*ROUTES, *ADMIN_ROUTES] for status in route.statuses.split()}
    assert used - {"200", "304"} <= listed


# Settings.


def test_every_setting_is_documented_with_its_default_and_meaning() -> None:
    rows = dict(
        re.findall(r"^\| `(POKY_[A-Z_]+)` \| (.*) \|$", read("docs/configuration.md"), re.MULTILINE)
    )
    assert set(rows) == {f"POKY_{each.name.upper()}" for each in fields(Config)}
    for each in fields(Config):
        default, meaning, also = rows[f"POKY_{each.name.upper()}"].split(" | ")
        shown = f"{each.default:g}" if isinstance(each.default, float) else str(each.default or "")
        unit = each.metadata["unit"]
        if each.default == 0:
            shown = "0"
        if each.default != ():
            assert default.strip() == (f"{shown} {unit}" if unit and shown else shown), each.name
        assert meaning == each.metadata["help"], each.name
        for alias in each.metadata["aliases"]:
            assert f"`{alias}`" in also


def test_the_roles_environment_file_knows_only_settings() -> None:
    template = read("roles/poky/templates/poky.env.j2")
    named = set(re.findall(r"^(POKY_[A-Z_]+)=", template, re.MULTILINE))
    assert named
    assert named <= {f"POKY_{each.name.upper()}" for each in fields(Config)}


# The tree.


def test_the_code_map_is_the_package_as_it_is() -> None:
    mapped: set[str] = set()
    rows = re.findall(
        r"^\| (`.+?) \|", read("docs/architecture.md").split("## The code map")[1], re.M
    )
    for row in rows:
        package, _, modules = row.rpartition("/`: ")
        mapped |= {
            f"{package.strip('`')}/{each}".strip("/") for each in re.findall("`([^`]+)`", modules)
        }
    there = {
        str(path.relative_to(PACKAGE).with_suffix(""))
        for path in PACKAGE.rglob("*.py")
        if not path.stem.startswith("__")
    }
    assert mapped == there


def test_the_tree_is_the_repository_as_it_is() -> None:
    tree = read("docs/architecture.md").partition("## The tree")[2].partition("\n## ")[0]
    named = set(re.findall("`([^`]+)`", "\n".join(re.findall(r"^\| (`.+?) \|", tree, re.M))))
    tracked = subprocess.check_output(["git", "-C", ROOT, "ls-files"], text=True).split("\n")
    there = {name.rpartition("/")[0] for name in tracked if "/" in name}
    # What a folder of many alike holds is said once, on its line.
    alike = {
        ".config",
        ".github",
        "inventories",
        "plugins",
        "roles",
        "service/poky",
        "tests/molecule",
    }
    for folder in {"/".join(path.split("/")[:2]) for path in there}:
        assert folder in named or any(f"{folder}/".startswith(f"{each}/") for each in alike), folder
    assert all((ROOT / folder).is_dir() for folder in named), named


def test_no_module_is_long() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path): count for path, count in lines.items() if count > 500} == {}


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_readme_names_every_top_level_folder() -> None:
    named = read("README.md")
    folders = ("service", "sql", "roles", "inventories", "plugins", "playbooks", "tests", "docs")
    for folder in folders:
        assert (ROOT / folder).is_dir()
        assert f"| `{folder}" in named


# Decisions.


def test_the_index_of_decisions_is_complete() -> None:
    directory = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \|", read("docs/decisions/README.md"), re.M)
    assert listed == [(p.name[:4], p.name) for p in sorted(directory.glob("[0-9]*.md"))]


# Words.


def test_prose_names_the_mechanism() -> None:
    """Sentences that hang on persons say less than the name of what acts."""
    text = re.compile(r"\b(nobody|whoever|somebody|anybody)\b", re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in [
            *ROOT.glob("*.md"),
            *(ROOT / "docs").rglob("*.md"),
            ROOT / "sql/migrations/README.md",
        ]
        for line in path.read_text().splitlines()
        if text.search(line.replace("user `nobody`", ""))
    ]
    assert not found


def test_code_names_the_mechanism() -> None:
    """The same in code, with room for the system's user of that name and a few that fit."""
    text = re.compile(r"\b(nobody|whoever)\b", re.IGNORECASE)
    folders = ("service", "sql", "roles", "playbooks", "plugins")
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".sql", ".yml", ".j2", ".vcl", ".conf")
        for line in path.read_text().splitlines()
        if text.search(line)
    ]
    assert len(found) <= 8, "\n".join(found)


# Reliability.


def test_every_fault_has_a_test_that_exists_or_a_reason() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", read("docs/reliability.md"), re.M)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *(?:async )?def (test_\w+)", path.read_text(), re.M)
    }
    cases = {path.name for path in (ROOT / "tests/vcl").glob("*.vtc")}
    faults = {f"FAULT={fault.name}" for fault in FAULTS}
    for number, row in rows:
        _, _, proof, _ = row.split(" | ")
        named = set(re.findall(r"`((?:test_|FAULT=|\d\d-)[^`]+)`", proof))
        assert named or proof.startswith("not tested here, because "), number
        assert named <= tests | cases | faults, (number, named - tests - cases - faults)
