"""The command: COUNT=100 SEED=1 ONLY="api/names api/found:12" JOBS=2 python -m tests.mutants."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import pytest
from rich.console import Console

from tests.mutants.mutate import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "service" / "poky"

#: The tests that concern a module: the longest beginning of its path decides.
CONCERN = {
    "access": "test_access test_guarded",
    "api": "test_objects test_batches test_listing test_conditions test_memory",
    "api/admin": "test_admin test_listing test_metrics",
    "api/application": "test_objects test_admin test_errors test_front test_listing test_origins",
    "api/batches": "test_batches test_objects test_delete_prefix test_listing test_conditions"
    " test_memory",
    "api/buckets": "test_listing test_buckets test_access",
    "api/codes": "test_codes",
    "api/changes": "test_following_parts test_following test_changes test_stays",
    "api/conditions": "test_conditions test_objects",
    "api/expiry": "test_expiry",
    "api/found": "test_memory test_batches test_objects test_ranges",
    "api/guard": "test_access test_origins",
    "api/hosts": "test_origins test_admin",
    "api/items": "test_batches test_memory test_expiry",
    "api/later": "test_objects test_sharing test_access",
    "api/lease": "test_cache test_admin test_access test_guarded",
    "api/names": "test_objects test_batches test_functions",
    "api/objects": "test_objects test_batches test_conditions test_ranges test_memory test_listing",
    "api/openapi": "test_snapshot test_openapi test_listing test_codes test_access test_admin",
    "api/origins": "test_origins",
    "api/timing": "test_logs",
    "api/ranges": "test_ranges",
    "api/request": "test_objects test_batches test_listing test_errors test_expiry",
    "api/routes": "test_access test_admin test_listing test_codes",
    "api/strings": "test_memory",
    "api/welcome": "test_admin test_listing test_cli test_page",
    "background": "test_background test_process test_expiry",
    "cache": "test_cache_turns test_cache test_purge",
    "cache/purge": "test_purge test_cache",
    "cli": "test_process test_cli",
    "cli/buckets": "test_cli test_delete_prefix test_access test_process test_expiry"
    " test_following test_shards test_commands",
    "cli/caches": "test_cache test_cli test_process",
    "cli/changes": "test_cli test_following test_commands",
    "cli/context": "test_cli test_served test_transfer test_process test_cache test_shards"
    " test_commands",
    "cli/declared": "test_access test_cli test_commands",
    "cli/durations": "test_cli test_access test_following test_expiry",
    "cli/migrate": "test_process test_cli test_schema test_commands",
    "cli/output": "test_cli test_process test_transfer test_commands",
    "cli/poky1": "test_transfer test_commands",
    "cli/restored": "test_restored",
    "cli/served": "test_served test_commands",
    "cli/shards": "test_shards test_moves test_shards_seen",
    "cli/tokens": "test_access test_cli test_cache",
    "cli/transfer": "test_transfer test_commands",
    "client": "test_client test_filesystem",
    "api/page": "test_page_parts test_page test_fleet test_shards_seen",
    "api/page/shards": "test_page_parts test_page test_fleet test_shards_seen test_shards",
    "api/services": "test_objects test_process",
    "config": "test_config test_cli test_docs test_process",
    "embedded": "test_embedded",
    "feed": "test_following_parts test_following test_changes test_stays test_followers",
    "forms": "test_config test_cache test_cli test_fleet",
    "health": "test_health test_process test_listing test_standby test_shards_seen test_page",
    "http": "test_connection_parts test_workers test_connection test_server test_head test_later"
    " test_stream test_memory",
    "http/head": "test_head test_connection",
    "http/later": "test_workers test_later test_server",
    "http/memory": "test_connection_parts test_memory test_connection",
    "http/server": "test_workers test_server test_connection test_later test_memory test_process",
    "http/stream": "test_workers test_stream test_following",
    "logs": "test_logs test_metrics",
    "figures": "test_exported test_process test_shards_seen",
    "metrics": "test_metrics test_exported test_joined",
    "metrics/history": "test_metrics test_page test_page_parts test_exported",
    "metrics/prometheus": "test_fleet test_page_parts",
    "probe": "test_probe test_shards_seen",
    "process": "test_process test_server test_exported",
    "reaper": "test_expiry test_shards_seen",
    "schema": "test_owner test_schema test_conversion",
    "schema/migrate": "test_owner test_schema test_conversion test_cli test_process test_older",
    "schema/moving": "test_mover test_shards test_stays test_moves",
    "schema/one_mover": "test_mover test_shards test_moves",
    "schema/owner": "test_owner test_schema test_conversion test_cli test_process test_transfer",
    "schema/plan": "test_owner test_schema test_conversion test_older test_process test_restored"
    " test_cli",
    "schema/shards": "test_shards test_moves test_shards_seen",
    "sharing": "test_sharing test_later test_objects test_access",
    "sharing/shards": "test_sharing test_shards test_shards_seen",
    "store": "test_functions test_store test_batches test_objects",
    "store/activity": "test_admin test_process test_page",
    "store/bucket_functions": "test_functions test_store test_sharing test_batches test_objects",
    "store/buckets": "test_functions test_buckets test_expiry test_listing test_store",
    "store/changes": "test_changes test_following",
    "store/errors": "test_store test_errors test_functions",
    "store/expiry": "test_expiry",
    "store/hosts": "test_cli test_standby test_store",
    "store/literals": "test_memory test_functions",
    "store/locks": "test_background test_expiry",
    "store/nodes": "test_cache test_functions",
    "store/objects": "test_functions test_objects test_batches test_conditions test_listing",
    "store/one_shard": "test_placed test_shards test_moves test_store test_shards_seen",
    "store/placements": "test_placed test_shards test_moves",
    "store/pool": "test_store test_errors test_sharing test_standby test_process",
    "store/restore": "test_restored",
    "store/rows": "test_memory test_sharing",
    "store/sharded": "test_placed test_shards test_shards_seen test_stays test_moves",
    "store/shared": "test_sharing test_objects test_access",
    "store/tokens": "test_access test_cache test_cli",
    "transfer": "test_transfer test_commands",
}

#: How many tests that fail once may be left out of a run, and how long a run may take.
_SPARED = 3
_SECONDS = 900

console = Console(width=None if sys.stdout.isatty() else 160)


def concern(module: str) -> list[str]:
    """The test files for a module such as api/names."""
    names = [name for name in CONCERN if module == name or module.startswith(f"{name}/")]
    chosen = CONCERN[max(names, key=len)].split() if names else ["test_objects"]
    return [str(ROOT / "tests" / f"{each}.py") for each in chosen]


def noticed(module: str, mutant: Mutant) -> str:
    """Which test notices this change: the slow ones are asked for what all others let pass."""
    return killer(module, mutant, "not slow") or killer(module, mutant, "slow")


def killer(module: str, mutant: Mutant, marked: str) -> str:
    """Which test of a module, of those marked so, fails with this change in it, twice; or ""."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder) / "poky"
        shutil.copytree(SERVICE, copy, symlinks=False, ignore=shutil.ignore_patterns("*.pyc"))
        (copy / f"{module}.py").write_text(mutant.text)
        spared: list[str] = []  # failed, and passed by itself: the machine's load
        while failed := _failed(
            folder, "-m", marked, *(f"--deselect={each}" for each in spared), *concern(module)
        ):
            if "::" not in failed or len(spared) == _SPARED or _failed(folder, failed):
                return failed
            spared.append(failed)
    return ""


def _failed(folder: str, *arguments: str) -> str:
    """The first test that fails, or in a word why there was none; "" if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, "--schema", "partitioned", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "it hung"
    if done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return ""
    named = re.search(r"^(?:FAILED|ERROR) (tests/.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return named[1] if named else f"pytest ended with {done.returncode}"


def is_named(module: str, line: int, only: Sequence[str]) -> bool:
    """Whether ONLY names it: the beginning of its path, or module:line. Nothing names all."""
    return not only or any(
        each == f"{module}:{line}" if ":" in each else module.startswith(each) for each in only
    )


def _where(module: str, mutant: Mutant) -> str:
    return f"service/poky/{module}.py:{mutant.line}  {mutant.says}"


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
    alive = dict(enumerate(chosen, start=1))
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(noticed, *each): n for n, each in alive.items()}
        for done in as_completed(running):
            number, failed = running[done], done.result()
            word = "killed" if failed else "[red]survived[/red]"
            console.print(f"{number:4} {word}", end="  ", highlight=False)
            console.print(f"{_where(*alive[number])}  {failed}", markup=False, highlight=False)
            if failed:
                del alive[number]
    console.print(f"{len(alive)} of {len(chosen)} survived")
    for each in alive.values():
        console.print(f"  {_where(*each)}", markup=False, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
