"""Documents, routes, settings and imports agree: a fact is written once, or compared here."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest

from poky.app import ADMIN_ROUTES, ROUTES
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
    for module in PACKAGE.glob("*.py"):
        if not module.stem.startswith("__"):
            assert f"`{module.stem}`" in code_map, module.stem


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_the_readme_names_every_top_level_folder() -> None:
    named = read("README.md")
    for folder in ("service", "sql", "roles", "inventories", "playbooks", "tests", "docs"):
        assert (ROOT / folder).is_dir()
        assert f"| `{folder}" in named


# Imports.

LAYERS = {
    "config": set(),
    "conditions": set(),
    "names": set(),
    "answers": set(),
    "request_head": set(),
    "embedded": set(),
    "store": set(),
    "metrics": set(),
    "purge": set(),
    "owner": set(),
    "connection": {"request_head"},
    "conversion": {"owner"},
    "schema": {"conversion", "owner"},
    "openapi": {"config"},
    "health": {"schema", "store"},
    "batch": {"answers", "conditions", "names", "store"},
}


def imports(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("poky"):
            _, _, inner = (node.module or "").partition(".")
            found |= {inner} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.partition(".")[2] for a in node.names if a.name.startswith("poky.")}
    return {name for name in found if (PACKAGE / f"{name}.py").exists()}


@pytest.mark.parametrize(("module", "allowed"), LAYERS.items(), ids=LAYERS)
def test_modules_import_only_what_is_below_them(module: str, allowed: set[str]) -> None:
    assert imports(module) <= allowed


def test_nothing_imports_the_command() -> None:
    for module in PACKAGE.glob("*.py"):
        if module.stem not in ("cli", "__main__"):
            assert "cli" not in imports(module.stem), module.stem


def test_only_the_store_and_migrate_know_psycopg2() -> None:
    knowing = {
        module.stem for module in PACKAGE.glob("*.py") if "import psycopg2" in module.read_text()
    }
    assert knowing <= {"store", "schema", "owner", "conversion"}


def test_only_the_application_knows_bottle() -> None:
    knowing = {m.stem for m in PACKAGE.glob("*.py") if "import bottle" in m.read_text()}
    assert knowing == {"app"}
