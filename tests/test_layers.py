"""Imports run one way: every package and module of the service knows only what is below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "service" / "poky"

# What each package, or module beside the packages, may import of ours. Below comes first.
LAYERS: dict[str, set[str]] = {
    "client": set(),
    "forms": set(),
    "config": {"forms"},
    "embedded": set(),
    "http": set(),
    "logs": set(),
    "metrics": {"logs"},
    "store": set(),
    "schema": set(),
    "access": {"store"},
    "health": {"schema", "store"},
    "background": {"metrics", "store"},
    "cache": {"background", "config", "forms", "metrics", "store"},
    "feed": {"background", "metrics", "store"},
    "sharing": {"metrics", "store"},
    "reaper": {"background", "metrics", "store"},
    "probe": {"background", "config", "forms", "metrics", "sharing", "store"},
    "api": {
        "access",
        "config",
        "feed",
        "forms",
        "health",
        "http",
        "logs",
        "metrics",
        "sharing",
        "store",
    },
    "figures": {"access", "config", "health", "http", "logs", "metrics", "store"},
    "transfer": {"api", "store"},
    "process": {
        "access",
        "api",
        "background",
        "cache",
        "config",
        "feed",
        "figures",
        "health",
        "http",
        "logs",
        "metrics",
        "probe",
        "reaper",
        "sharing",
        "store",
    },
    "cli": {
        "access",
        "background",
        "cache",
        "config",
        "embedded",
        "forms",
        "process",
        "schema",
        "store",
        "transfer",
    },
    "__main__": {"cli"},
}

# Libraries that only these may import.
LIBRARIES = {
    "bottle": {"api"},
    "cheroot": {"http"},
    "click": {"cli"},
    "fsspec": {"client"},
    "prometheus_client": {"metrics"},
    "psycopg2": {"schema", "store", "transfer"},
    "rich": {"cli"},
    "urllib3": {"client"},
}


def modules() -> dict[str, Path]:
    """Every module of the service but poky itself, by its name after "poky."."""
    named = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if name := ".".join(part for part in parts if part != "__init__"):
            named[name] = path
    return named


def unit(module: str) -> str:
    """The package that a module is in; its own name if it is beside the packages."""
    return module.partition(".")[0]


def imports(path: Path) -> set[str]:
    """All that a module imports, wherever it stands in it, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: import by full names"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def of_ours(path: Path) -> set[str]:
    """The modules of the service that a module imports; what a package exports is its own."""
    known = modules()
    found = set()
    for name in imports(path):
        if name.startswith("poky."):
            rest = name.removeprefix("poky.")
            while rest and rest not in known:
                rest = rest.rpartition(".")[0]
            found.add(rest)
    return found - {""}


def test_every_package_has_its_layer() -> None:
    assert {unit(module) for module in modules()} == set(LAYERS)


def test_layers_only_look_down() -> None:
    below: set[str] = set()
    for name, allowed in LAYERS.items():
        assert allowed <= below, name
        below.add(name)


@pytest.mark.parametrize("module", modules())
def test_modules_import_only_what_is_below_them(module: str) -> None:
    path = modules()[module]
    assert {unit(name) for name in of_ours(path)} - {unit(module)} <= LAYERS[unit(module)]


def test_no_modules_import_each_other() -> None:
    arrows = {name: of_ours(path) - {name} for name, path in modules().items()}
    while leaves := {name for name, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"a cycle among {sorted(arrows)}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_known_in_few_places(library: str) -> None:
    knowing = {
        unit(module)
        for module, path in modules().items()
        if library in {name.partition(".")[0] for name in imports(path)}
    }
    assert knowing <= LIBRARIES[library]


def test_planning_a_migration_needs_no_library() -> None:
    # The Ansible role plans by it, where psycopg2 is not installed.
    for name in ("schema", "schema.plan"):
        assert not {library for library in imports(modules()[name]) if "psycopg2" in library}
        assert of_ours(modules()[name]) <= {"schema.plan"}
