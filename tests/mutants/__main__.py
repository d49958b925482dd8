"""The command: COUNT=100 SEED=1 ONLY="api/names api/found:12" JOBS=2 python -m tests.mutants."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from tests.mutants.mutate import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "service" / "poky"

#: The tests that concern a module: the longest beginning of its path decides.
CONCERN = {
    "access": "test_access",
    "api": "test_objects test_batches test_listing test_conditions test_memory",
    "api/admin": "test_admin test_listing test_metrics",
    "api/application": "test_objects test_admin test_errors test_front test_listing test_origins",
    "api/buckets": "test_listing test_buckets test_access",
    "api/codes": "test_codes",
    "api/changes": "test_following",
    "api/conditions": "test_conditions test_objects",
    "api/expiry": "test_expiry",
    "api/found": "test_memory test_batches",
    "api/guard": "test_access test_origins",
    "api/hosts": "test_origins test_admin",
    "api/items": "test_batches test_memory test_expiry",
    "api/later": "test_objects test_sharing test_access",
    "api/lease": "test_cache test_admin",
    "api/names": "test_objects test_batches",
    "api/openapi": "test_openapi test_listing test_codes test_access",
    "api/origins": "test_origins",
    "api/timing": "test_logs",
    "api/ranges": "test_ranges",
    "api/request": "test_objects test_batches test_listing test_errors",
    "api/routes": "test_access test_admin test_listing test_codes",
    "api/strings": "test_memory",
    "api/welcome": "test_admin test_listing test_cli",
    "background": "test_background test_process",
    "cache": "test_cache test_purge",
    "cache/purge": "test_purge test_cache",
    "cli": "test_process test_cli",
    "cli/buckets": "test_cli test_access test_process",
    "cli/caches": "test_cache test_cli test_process",
    "cli/changes": "test_following",
    "cli/declared": "test_access test_cli",
    "cli/durations": "test_access test_following test_expiry",
    "cli/migrate": "test_process test_cli test_schema",
    "cli/poky1": "test_transfer",
    "cli/restored": "test_restored",
    "cli/served": "test_served",
    "cli/tokens": "test_access test_cli test_cache",
    "cli/transfer": "test_transfer",
    "client": "test_client test_filesystem",
    "api/page": "test_page test_fleet",
    "config": "test_config test_cli test_docs",
    "embedded": "test_embedded",
    "feed": "test_following test_changes",
    "health": "test_process test_listing test_front",
    "http": "test_connection test_server test_head test_later",
    "http/head": "test_head test_connection",
    "http/later": "test_later test_server",
    "http/memory": "test_memory test_connection",
    "http/stream": "test_stream test_following",
    "logs": "test_logs test_metrics",
    "figures": "test_exported test_process",
    "metrics": "test_metrics test_exported test_joined",
    "metrics/history": "test_page test_exported",
    "probe": "test_probe",
    "process": "test_process test_server test_exported",
    "reaper": "test_expiry",
    "schema": "test_schema test_conversion",
    "sharing": "test_sharing test_later test_objects test_access",
    "store": "test_functions test_store test_batches",
    "store/changes": "test_changes test_following",
    "store/errors": "test_errors test_store test_functions",
    "store/expiry": "test_expiry",
    "store/hosts": "test_standby",
    "store/literals": "test_memory test_functions",
    "store/nodes": "test_cache test_functions",
    "store/pool": "test_store test_errors test_sharing test_process",
    "store/restore": "test_restored",
    "store/rows": "test_memory test_sharing",
    "store/sharded": "test_shards",
    "store/shared": "test_sharing test_objects test_access",
    "store/tokens": "test_access",
    "transfer": "test_transfer",
}

console = Console(width=None if sys.stdout.isatty() else 160)


def concern(module: str) -> list[str]:
    """The test files for a module such as api/names."""
    names = [name for name in CONCERN if module == name or module.startswith(f"{name}/")]
    chosen = CONCERN[max(names, key=len)].split() if names else ["test_objects"]
    return [str(ROOT / "tests" / f"{each}.py") for each in chosen]


def survives(module: str, mutant: Mutant) -> bool:
    """Whether the tests of a module pass with this change in it, slow ones last."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "poky"
        shutil.copytree(SERVICE, copy, symlinks=False, ignore=shutil.ignore_patterns("*.pyc"))
        (copy / f"{module}.py").write_text(mutant.text)
        return all(_pass(module, folder, marked) for marked in ("not slow", "slow"))


def _pass(module: str, folder: str, marked: str) -> bool:
    try:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
                *("--schema", "partitioned", "-m", marked, *concern(module)),
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
            capture_output=True,
            timeout=600,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False  # it hung: noticed
    return done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)


def is_named(module: str, line: int, only: Sequence[str]) -> bool:
    """Whether ONLY names it: the beginning of its path, or module:line. Nothing names all."""
    return not only or any(
        each == f"{module}:{line}" if ":" in each else module.startswith(each) for each in only
    )


def main() -> int:
    count = int(os.environ.get("COUNT", "20"))
    seed = int(os.environ.get("SEED", str(random.randrange(10**6))))
    jobs = int(os.environ.get("JOBS", str(os.cpu_count() or 1)))
    only = os.environ.get("ONLY", "").split()
    every = [
        (module, mutant)
        for path in sorted(SERVICE.rglob("*.py"))
        for module in [str(path.relative_to(SERVICE).with_suffix(""))]
        if not path.name.startswith("__")
        for mutant in mutants(path.read_text())
        if is_named(module, mutant.line, only)
    ]
    chosen = random.Random(seed).sample(every, min(count, len(every)))
    console.print(f"{len(chosen)} of {len(every)} mutants, SEED={seed}, {jobs} at a time")
    alive = []
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(lambda each: survives(*each), chosen)
        for number, ((module, mutant), survived) in enumerate(zip(chosen, outcomes, strict=True)):
            word = "[red]survived[/red]" if survived else "killed"
            where = f"service/poky/{module}.py:{mutant.line}"
            console.print(f"{number + 1:4} {word} {where}", end="  ", highlight=False)
            console.print(mutant.says, markup=False, highlight=False)
            if survived:
                alive.append((where, mutant.says))
    console.print(f"{len(alive)} of {len(chosen)} survived")
    for where, says in alive:
        console.print(f"  {where}  {says}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
