"""Documents, routes and settings agree: a fact is written once, or compared here."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from poky.api import ADMIN_ROUTES, ROUTES
from poky.config import Config

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


def test_every_module_is_in_the_code_map() -> None:
    code_map = read("docs/architecture.md")
    for module in PACKAGE.rglob("*.py"):
        if not module.stem.startswith("__"):
            assert f"`{module.stem}`" in code_map, module.stem
    for package in PACKAGE.rglob("*/__init__.py"):
        assert f"`{package.parent.name}/`" in code_map, package.parent.name


def test_links_between_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_readme_names_every_top_level_folder() -> None:
    named = read("README.md")
    for folder in ("service", "sql", "roles", "inventories", "playbooks", "tests", "docs"):
        assert (ROOT / folder).is_dir()
        assert f"| `{folder}" in named


# Decisions.


def test_the_index_of_decisions_is_complete() -> None:
    directory = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \|", read("docs/decisions/README.md"), re.M)
    assert listed == [(p.name[:4], p.name) for p in sorted(directory.glob("[0-9]*.md"))]
