"""Build the Ansible collection ``poky.poky``: roles, plugins, playbooks, and the release's wheels.

    .venv-deploy/bin/python .ci/collection.py --into dist [--target cp311-x86_64 …]

What it installs needs neither a checkout nor a package index: ``ansible-playbook
poky.poky.deploy -i INVENTORY``. The targets are the Pythons of Debian 12 and 13 unless named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("cp311-x86_64", "cp313-x86_64")
# Everything that a playbook reads on the controller; the rest of the project is in the wheel.
CARRIED = (
    *("galaxy.yml", "meta", "plugins", "roles", "playbooks", "inventories", "sql", "ansible.cfg"),
    *("README.md", "CHANGELOG.md", "LICENSE", "docs", "requirements-deploy.txt"),
    *("service/poky/schema", "service/poky/__init__.py"),
)
# Links for a checkout; an installed collection finds its plugins by its own name.
LINKS = ("roles", "action_plugins", "filter_plugins", "library", "module_utils")


def load(path: Path) -> ModuleType:
    """A plugin or module of Ansible, imported as a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copy(tree: Path, stage: Path) -> None:
    """Copy what the collection carries."""
    for name in CARRIED:
        source = tree / name
        if source.is_dir():
            shutil.copytree(source, stage / name, symlinks=True)
        elif source.exists():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, stage / name)
    for name in LINKS:
        (stage / "playbooks" / name).unlink(missing_ok=True)


def qualify_filters(stage: Path) -> None:
    """Give our filters their full names: Ansible finds a collection's filters by no other."""
    names: set[str] = set()
    for path in sorted((stage / "plugins" / "filter").glob("*.py")):
        names |= set(load(path).FilterModule().filters())
    piped = re.compile(rf"(\|\s*|\bmap\(['\"])({'|'.join(sorted(names))})\b")
    for path in (*stage.glob("roles/**/*"), *stage.glob("playbooks/**/*")):
        if path.suffix in (".yml", ".j2"):
            text = path.read_text()
            path.write_text(piped.sub(r"\1poky.poky.\2", text))


def carry_release(tree: Path, stage: Path, identity: dict[str, str], targets: set[str]) -> None:
    """Build the release, and put there what a deploy sends to hosts: one archive, its manifest."""
    builder = load(tree / "plugins" / "modules" / "poky_build.py")
    with tempfile.TemporaryDirectory() as scratch:
        built = builder.build(tree, Path(scratch), identity, targets)
        manifest: dict[str, Any] = json.loads((built / "manifest.json").read_text())
        into = stage / "dist" / "releases" / identity["id"]
        into.mkdir(parents=True)
        shutil.copy2(built / "release.tar", into)
        manifest["files"] = {"release.tar": manifest["files"]["release.tar"]}
        (into / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def build(into: Path, targets: set[str]) -> Path:
    """Build the collection of this checkout's tracked files; its archive."""
    builder = load(ROOT / "plugins" / "modules" / "poky_build.py")
    identity = builder.identify(ROOT, True)
    into.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        tree, stage = Path(scratch) / "tree", Path(scratch) / "stage"
        subprocess.run([ROOT / ".ci" / "tracked", tree], check=True)
        copy(tree, stage)
        qualify_filters(stage)
        carry_release(tree, stage, identity, targets)
        galaxy = yaml.safe_load((stage / "galaxy.yml").read_text())
        galaxy |= {"version": identity["version"]}
        del galaxy["build_ignore"]  # of what a checkout has, nothing is left in the stage
        (stage / "galaxy.yml").write_text(yaml.safe_dump(galaxy, sort_keys=False))
        command = Path(sys.executable).with_name("ansible-galaxy")
        subprocess.run(
            [command, "collection", "build", "--force", "--output-path", into.resolve(), stage],
            check=True,
            cwd=scratch,  # where no ansible.cfg is
            stdout=subprocess.DEVNULL,
        )
    return into / f"poky-poky-{identity['version']}.tar.gz"


def main() -> None:
    """Build it and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "dist")
    parser.add_argument("--target", action="append", help="such as cp311-x86_64")
    arguments = parser.parse_args()
    print(build(arguments.into, set(arguments.target or TARGETS)))


if __name__ == "__main__":
    main()
