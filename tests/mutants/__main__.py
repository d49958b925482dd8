"""The command: COUNT=100 SEED=1 ONLY=api/names python -m tests.mutants."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.mutants.mutate import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "service" / "poky"

#: The tests that concern a module: the longest beginning of its path decides.
CONCERN = {
    "api": "test_objects test_batches test_listing test_conditions test_memory",
    "api/access": "test_access",
    "api/conditions": "test_conditions test_objects",
    "api/guard": "test_access",
    "api/items": "test_batches test_memory",
    "api/found": "test_memory test_batches",
    "api/strings": "test_memory",
    "api/names": "test_objects test_batches",
    "api/openapi": "test_openapi test_listing",
    "access": "test_access",
    "background": "test_background test_process",
    "cache": "test_cache test_purge",
    "cache/purge": "test_purge",
    "cli": "test_process test_cli",
    "config": "test_config",
    "embedded": "test_embedded",
    "health": "test_process test_listing",
    "http": "test_connection test_server test_head test_later",
    "http/head": "test_head test_connection",
    "http/memory": "test_memory test_connection",
    "metrics": "test_metrics test_process",
    "process": "test_process",
    "schema": "test_schema test_conversion",
    "store": "test_functions test_store test_batches",
    "store/literals": "test_memory test_functions",
    "store/rows": "test_memory",
}

console = Console(width=None if sys.stdout.isatty() else 160)


def concern(module: str) -> list[str]:
    """The test files for a module such as api/names."""
    names = [name for name in CONCERN if module == name or module.startswith(f"{name}/")]
    chosen = CONCERN[max(names, key=len)].split() if names else ["test_objects"]
    return [str(path) for each in chosen if (path := ROOT / "tests" / f"{each}.py").exists()]


def survives(module: str, mutant: Mutant, seconds: float = 600) -> bool:
    """Whether the tests of a module pass with this change in it."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "poky"
        shutil.copytree(SERVICE, copy, symlinks=False, ignore=shutil.ignore_patterns("*.pyc"))
        (copy / f"{module}.py").write_text(mutant.text)
        try:
            done = subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
                    *("--schema", "partitioned", "-m", "not slow", *concern(module)),
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
                capture_output=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False  # it hung: noticed
        return done.returncode == 0


def main() -> int:
    count = int(os.environ.get("COUNT", "20"))
    seed = int(os.environ.get("SEED", str(random.randrange(10**6))))
    only = os.environ.get("ONLY", "")
    every = [
        (module, mutant)
        for path in sorted(SERVICE.rglob("*.py"))
        for module in [str(path.relative_to(SERVICE).with_suffix(""))]
        if module.startswith(only) and not path.name.startswith("__")
        for mutant in mutants(path.read_text())
    ]
    chosen = random.Random(seed).sample(every, min(count, len(every)))
    console.print(f"{len(chosen)} of {len(every)} mutants, SEED={seed}")
    alive = []
    for number, (module, mutant) in enumerate(chosen, 1):
        survived = survives(module, mutant)
        word = "[red]survived[/red]" if survived else "killed"
        where = f"service/poky/{module}.py:{mutant.line}"
        console.print(f"{number:4} {word} {where}", end="  ", highlight=False)
        console.print(mutant.says, markup=False, highlight=False)
        if survived:
            alive.append((where, mutant.says))
    console.print(f"{len(alive)} of {len(chosen)} survived")
    for where, says in alive:
        console.print(f"  {where}  {says}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
