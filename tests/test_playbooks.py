"""What the playbooks decide: releases, rolls, locks, buckets, units. No host is needed.

The plugins are imported as Python packages; Ansible itself comes from the deploy environment. What
they do to real hosts is proved in tests/molecule.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import yaml

import poky
from poky.access import Grants
from poky.config import Config
from poky.schema import SCRIPTS, Scripts
from poky.schema.migrate import migrate, plan
from poky.schema.owner import OwnerConnection
from poky.schema.plan import Kind, Phase
from tests.conftest import Database

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
ROLE = ROOT / "roles/poky"
DEPLOY = ROOT / ".venv-deploy"
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))


def plugin(name: str) -> ModuleType:
    """A plugin of the collection, such as "modules.poky_lock"."""
    packages = next(DEPLOY.glob("lib/python3*/site-packages"), None)
    assert packages, "The deploy environment is missing: make .venv-deploy/.deploy"
    if str(packages) not in sys.path:
        sys.path.append(str(packages))
    return importlib.import_module(f"plugins.{name}")


@pytest.fixture(scope="module")
def releases() -> ModuleType:
    return plugin("filter.poky_releases")


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    return plugin("modules.poky_lock")


@pytest.fixture(scope="module")
def lock_rules() -> ModuleType:
    return plugin("action.poky_lock")


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    return plugin("modules.poky_build")


# The journal, and where a rollback leads.


def told(*entries: str) -> list[dict[str, str]]:
    """A journal from words like "deploy v1 good"."""
    journal = []
    for number, entry in enumerate(entries):
        verb, release, outcome = entry.split()
        journal.append({"at": f"{number:04}", "verb": verb, "to": release, "outcome": outcome})
    return journal


@pytest.mark.parametrize(
    ("entries", "current", "target"),
    [
        (["deploy v1 good", "deploy v2 good"], "v2", "v1"),
        (["deploy v1 good", "deploy v2 good", "rollback v1 good", "deploy v3 good"], "v3", "v1"),
        (["deploy v1 good", "deploy v2 good", "deploy v3 good", "rollback v2 good"], "v2", "v1"),
        (["deploy v1 good", "deploy v2 good", "deploy v1 good"], "v1", "v2"),
        (["deploy v1 good", "deploy v2 good", "restart v2 good"], "v2", "v1"),
        # A failed deploy has gone back already: its rollback completes that, and goes no further.
        (["deploy v1 good", "deploy v2 good", "deploy v3 bad"], "v2", "v2"),
        (["deploy v1 good", "deploy v2 good", "deploy v3 bad"], "v3", "v2"),
        # Once it is completed, the next one goes further.
        (["deploy v1 good", "deploy v2 good", "deploy v3 bad", "rollback v2 good"], "v2", "v1"),
        # Good once, bad since: never again by itself.
        (["deploy v1 good", "deploy v2 good", "deploy v2 bad", "deploy v3 good"], "v3", "v1"),
    ],
)
def test_rollback_goes_to_the_last_good_release(
    releases: ModuleType, entries: list[str], current: str, target: str
) -> None:
    assert releases.poky_rollback_target(told(*entries), current) == target


def test_rollback_of_a_run_that_never_finished_goes_to_what_was_good(releases: ModuleType) -> None:
    journal = told("deploy v1 good", "deploy v2 good")
    assert releases.poky_rollback_target(journal, "v2", unfinished=True) == "v2"


def test_a_run_that_rolls_nothing_is_told_if_it_cures_a_failure(releases: ModuleType) -> None:
    assert releases.poky_unsettled(told("deploy v1 good", "deploy v2 bad"))
    assert not releases.poky_unsettled(told("deploy v1 good", "deploy v2 bad", "rollback v1 good"))
    assert not releases.poky_unsettled([])


def test_rollback_refuses_a_bad_release_and_an_empty_journal(releases: ModuleType) -> None:
    with pytest.raises(ValueError, match="marked bad"):
        releases.poky_rollback_target(told("deploy v1 bad"), "v2", "v1")
    with pytest.raises(ValueError, match="no good release"):
        releases.poky_rollback_target(told("deploy v1 good"), "v1")


def test_journals_of_several_hosts_are_one(releases: ModuleType) -> None:
    old, new = (json.dumps(entry) for entry in told("deploy v1 good", "deploy v2 good"))
    merged = releases.poky_journal([f"{old}\n{new}\n", f'{new}\n{{"at": "torn'])
    assert [entry["to"] for entry in merged] == ["v1", "v2"]


def test_prune_keeps_what_is_needed_and_the_last_good_ones(releases: ModuleType) -> None:
    journal = told(*(f"deploy v{number} good" for number in range(1, 6)), "deploy v6 bad")
    present = ["v1", "v2", "v3", "v4", "v5", "v6", "unfinished"]
    gone = releases.poky_prunable(present, journal, keep=2, needed=["v5", "v1", ""])
    assert gone == ["v2", "v3", "v6", "unfinished"]


# What has to be rolled.


def instance(port: int, **changes: Any) -> dict[str, Any]:
    """An instance in good health on release v2, as poky_instances reports it."""
    status = {"code": 200, "release": "v2", "database": "ok", "schema": "ok"}
    found = {"port": port, "release": "v2", "stale": [], "status": status, "active": "active"}
    return {**found, "pid": 1, "restarts": 0, **changes}


@pytest.mark.parametrize(
    "wrong",
    [
        {"release": "v1"},
        {"stale": ["POKY_THREADS"]},
        {"status": None},
        {"status": {"code": 503, "release": "v2"}},
        {"status": {"code": 200, "release": "v1"}},
    ],
)
def test_what_is_right_is_left_alone_and_the_rest_is_rolled(
    releases: ModuleType, wrong: dict[str, Any]
) -> None:
    seen = {"instances": [instance(8081), instance(8082, **wrong)]}
    assert releases.poky_todo(seen, [{}], "v2", ["a_8081", "a_8082"]) == [8082]
    assert sorted(releases.poky_todo(seen, [{}], "v2", ["a", "b"], all_of_them=True)) == [
        8081,
        8082,
    ]


def test_a_drained_instance_is_rolled_and_those_that_do_not_serve_come_first(
    releases: ModuleType,
) -> None:
    seen = {"instances": [instance(8081, release="v1"), instance(8082), instance(8083)]}
    caches = [{"backends": {"a_8082": {"drained": True, "healthy": False}}}]
    todo = releases.poky_todo(seen, caches, "v2", ["a_8081", "a_8082", "a_8083"])
    assert todo == [8082, 8081]


@pytest.mark.parametrize(
    ("current", "running", "before"),
    [("v1", "v1", "v1"), ("v2", "v1", "v1"), ("v2", "v2", ""), ("", "", "")],
)
def test_what_to_go_back_to_survives_an_interrupted_run(
    releases: ModuleType, current: str, running: str, before: str
) -> None:
    seen = {"current": current, "instances": [{"release": running}]}
    assert releases.poky_before(seen, "v2") == before


def test_a_release_is_refused_where_the_schema_has_gone_on_without_it(
    releases: ModuleType,
) -> None:
    release = {"release": "v1", "schema_min": 3, "schema_max": 5}
    assert not releases.poky_schema_refusal(release, {"schema": 7, "contracted": 5})
    assert "took away" in releases.poky_schema_refusal(release, {"schema": 7, "contracted": 6})
    assert "never applied" in releases.poky_schema_refusal(release, {"schema": 2, "contracted": 1})


def serving(dsn: str) -> dict[str, Any]:
    """What the release that serves says of a database, in ``poky migrate --plan --json``."""
    said: dict[str, Any] = json.loads(json.dumps(asdict(plan(dsn))))
    return said


def checksums() -> dict[str, str]:
    files = [*SCRIPTS.migrations, "functions.sql", "grants.sql"]
    return {name: SCRIPTS.checksum(name) for name in files}


def planned(releases: ModuleType, phase: str, kind: str, seen: dict[str, Any]) -> Any:
    """The plan before the release is staged; without ``recorded``, it must be the same."""
    first = {name: value for name, value in seen.items() if name != "recorded"}
    plans = [
        releases.poky_planned(str(ROOT), phase, kind, given, checksums()) for given in (seen, first)
    ]
    assert plans[0]["pending"] == plans[1]["pending"]
    return plans[0]


def test_a_plan_for_a_virgin_database_is_what_migrate_does(
    releases: ModuleType, empty_database: Database, kind: Kind
) -> None:
    pending = planned(releases, "expand", kind, {})["pending"]
    assert (
        pending == planned(releases, "expand", kind, serving(empty_database.dsn_owner))["pending"]
    )
    assert migrate(empty_database.dsn_owner, release="t", kind=kind).applied == pending


@pytest.mark.parametrize("changed", [[], ["grants.sql"], ["functions.sql"]])
def test_a_plan_for_a_database_in_use_is_what_migrate_does(
    releases: ModuleType, own_database: Database, kind: Kind, changed: list[str]
) -> None:
    with OwnerConnection(own_database.dsn_owner) as owner:
        for name in changed:
            owner.run("UPDATE poky.migration SET checksum = 'older' WHERE name = %s", name)
    for phase in ("expand", "contract"):
        pending = planned(releases, phase, kind, serving(own_database.dsn_owner))["pending"]
        applied = migrate(own_database.dsn_owner, release="t", phase=phase).applied
        assert applied == pending
        assert set(changed) <= set(applied) or phase == "contract"


@pytest.mark.parametrize("phase", ["expand", "contract"])
def test_a_plan_knows_the_migrations_of_a_release_that_is_not_staged(
    releases: ModuleType, own_database: Database, kind: Kind, phase: Phase, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "sql", tmp_path / "sql")
    (tmp_path / "service").symlink_to(ROOT / "service")
    number = len(Scripts(tmp_path / "sql").migrations) + 2
    files = [f"{number:04}_expand_a.sql", f"{number + 1:04}_contract_b.sql"]
    for name in files:
        (tmp_path / "sql/migrations" / name).write_text("SELECT 1;\n")
    scripts = Scripts(tmp_path / "sql")
    seen = serving(own_database.dsn_owner)
    plans = [
        releases.poky_planned(str(tmp_path), phase, kind, given, checksums())
        for given in (seen, {**seen, "recorded": None})
    ]
    applied = migrate(own_database.dsn_owner, release="t", phase=phase, scripts=scripts).applied
    assert [plan["pending"] for plan in plans] == [applied, applied]
    assert plans[0]["postponed"] == (files[1:] if phase == "expand" else [])
    # After a rollback, the release that serves knows less than the database has.
    if phase == "expand":
        again = serving(own_database.dsn_owner)
        assert releases.poky_planned(str(tmp_path), phase, kind, again, {})["pending"] == []


def test_buckets_become_what_is_declared(releases: ModuleType) -> None:
    declared = [{"name": "a"}, {"name": "b"}, {"name": "old", "state": "absent"}]
    plan = releases.poky_bucket_plan(["b", "old", "x"], declared, {}, "_smoke")
    assert plan["create"] == ["_smoke", "a"]
    assert plan["drop"] == ["old"]
    assert plan["undeclared"] == ["x"]
    plan = releases.poky_bucket_plan(["x"], [], {"name": "x", "state": "absent"}, "x2")
    assert (plan["create"], plan["drop"], plan["undeclared"]) == (["x2"], ["x"], [])


def test_a_bucket_is_as_public_as_it_is_declared(releases: ModuleType) -> None:
    declared = [
        {"name": "new", "public": "read"},
        {"name": "tips", "public": "read"},
        {"name": "closed"},
        {"name": "old", "state": "absent", "public": "read"},
    ]
    found, public = ["tips", "closed", "old", "x"], ["closed", "x", "old"]
    plan = releases.poky_bucket_plan(found, declared, {}, "_smoke", public)
    assert (plan["publish"], plan["unpublish"]) == (["new", "tips"], ["closed"])
    assert "- unpublish closed: it needs a token" in plan["lines"]
    again = releases.poky_bucket_plan(["new", "tips"], declared, {}, "_smoke", ["new", "tips"])
    assert (again["publish"], again["unpublish"]) == ([], [])


def test_objects_of_a_bucket_live_as_long_as_it_is_declared(releases: ModuleType) -> None:
    declared = [
        {"name": "new", "ttl": 60},
        {"name": "other", "ttl": "60"},
        {"name": "same", "ttl": 5},
        {"name": "closed"},
        {"name": "never", "ttl": 0},
        {"name": "old", "state": "absent", "ttl": 7},
        {"name": "of-an-older-release", "ttl": 9},
    ]
    found = ["other", "same", "closed", "never", "old", "x", "of-an-older-release"]
    ttls = {"other": 5, "same": 5, "closed": 5, "never": None, "old": 5, "x": 5}
    plan = releases.poky_bucket_plan(found, declared, {}, "_smoke", (), ttls)
    assert plan["expire"] == [
        {"name": "new", "ttl": 60},
        {"name": "other", "ttl": 60},
        {"name": "closed", "ttl": 0},
    ]
    assert "~ new: objects written from now on expire after 60 s" in plan["lines"]
    assert "~ closed: objects written from now on do not expire" in plan["lines"]


def test_changes_are_kept_as_long_as_it_is_declared(releases: ModuleType) -> None:
    declared = [
        {"name": "new", "changes": "7d"},
        {"name": "other", "changes": "12h"},
        {"name": "same", "changes": "1d"},
        {"name": "closed"},
        {"name": "never", "changes": "none"},
        {"name": "old", "state": "absent", "changes": "7d"},
        {"name": "of-an-older-release", "changes": "7d"},
    ]
    found = ["other", "same", "closed", "never", "old", "x", "of-an-older-release"]
    kept = {"other": 5, "same": 86400, "closed": 60, "never": None, "old": 5, "x": 5}
    plan = releases.poky_bucket_plan(found, declared, {}, "_smoke", (), {}, kept)
    assert plan["follow"] == [
        {"name": "new", "changes": "7d"},
        {"name": "other", "changes": "12h"},
        {"name": "closed", "changes": "none"},
    ]
    assert "~ new: its changes are kept for 7d, to be followed" in plan["lines"]
    assert "~ closed: its changes are not recorded" in plan["lines"]
    with pytest.raises(ValueError, match="“7” is none of 7d, 12h"):
        releases.poky_bucket_plan([], [{"name": "b", "changes": 7}], {}, "_smoke")


# Tokens.

SECRET = "poky_abcdefghijkl_" + "S" * 32
DECLARED = [
    {"name": "web", "grants": ["read,write:tips"], "token": SECRET, "expires": "2999-01-01"},
    {"name": "ci", "grants": ["list:*"], "id": "ABCDEFGHIJKL", "hash": "0" * 64},
    {"name": "former", "state": "absent"},
]


def apply_tokens(database: Database, declared: object, *options: str) -> Any:
    """What `poky token apply` says, given the declaration as the role gives it."""
    command = [sys.executable, "-m", "poky", "token", "apply", "--json", *options]
    done = subprocess.run(
        command,
        input=json.dumps(declared),
        env={**os.environ, "POKY_OWNER_DSN": database.dsn_owner, "POKY_DSN": database.dsn_service},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.slow
def test_tokens_become_what_is_declared(own_database: Database, releases: ModuleType) -> None:
    def plan(declared: list[dict[str, Any]]) -> Any:
        seen = apply_tokens(own_database, declared, "--check")
        return releases.poky_token_plan(declared, seen, "_smoke-")

    virgin = releases.poky_token_plan(DECLARED, None, "_smoke-")
    assert plan(DECLARED) == virgin
    assert virgin["lines"] == ["+ create web", "+ create ci"]
    assert apply_tokens(own_database, DECLARED)["changes"] == virgin["changes"]
    assert plan(DECLARED)["lines"] == []
    wider = [{**DECLARED[0], "grants": ["read:*"]}, {"name": "ci", "state": "absent"}]
    assert plan(wider)["lines"] == ["~ change web", "- revoke ci"]
    smoke = {**DECLARED[1], "name": "_smoke-a-1", "id": "LKJIHGFEDCBA"}
    apply_tokens(own_database, [smoke])
    assert plan(DECLARED[1:])["lines"] == ["~ web is undeclared"]


def test_a_declaration_that_cannot_be_meant_is_refused_without_its_secret() -> None:
    variables = plugin("filter.poky_variables")
    assert variables.poky_token_faults(DECLARED) == []
    wrong = [
        {"name": "a b", "grants": ["reed:tips", "read:tips/"], "token": SECRET},
        {"name": "c", "token": SECRET + "x"},
        {"name": "c", "grants": ["read:x"], "token": SECRET, "hash": "0" * 64},
        {"name": "d", "grants": ["read:x"], "id": "short", "hash": "0" * 64},
        {"name": "e", "grants": ["read:x"], "token": SECRET, "expires": "2020-01-01"},
        {"name": "f", "grants": ["read:x"], "token": SECRET, "expires": "90d"},
    ]
    faults = variables.poky_token_faults(wrong)
    text = " ".join(faults)
    for word in (
        "c is declared twice",
        "“a b”",
        "“reed:tips”",
        "“read:tips/”",
        "c: it needs at least",
    ):
        assert word in text
    for word in (
        "c: token is not",
        "c: give token, or id and hash, but",
        "d: give token",
        "e: it has",
        "f: expires",
    ):
        assert word in text
    assert "SSSS" not in text


@pytest.mark.parametrize(
    "grant",
    [
        "read:a",
        "read,list:a*",
        "*:a",
        "read:*",
        "read:",
        ":a",
        "read",
        "read,:a",
        ",read:a",
        "read:a*b",
        "read:a b",
    ],
)
def test_the_role_and_the_service_agree_on_what_a_grant_is(grant: str) -> None:
    faults = plugin("filter.poky_variables").poky_token_faults([{**DECLARED[0], "grants": [grant]}])
    try:
        Grants.parse([grant])
    except ValueError:
        assert faults
    else:
        assert not faults


def test_what_a_command_is_given_is_shown_nowhere() -> None:
    """By Ansible neither: the parameter is no_log, and the command's own sentence stays."""
    given = {"argv": ["sh", "-c", "cat >&2; echo ' is refused' >&2; exit 1"], "stdin": SECRET}
    done = subprocess.run(
        [DEPLOY / "bin/python", ROOT / "plugins/modules/poky_command.py"],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": given}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "is refused" in json.loads(done.stdout)["msg"]
    assert SECRET not in done.stdout + done.stderr


# The deploy lock.


def test_of_many_who_try_at_once_one_gets_the_lock(lock: ModuleType, tmp_path: Path) -> None:
    got, start = [], threading.Barrier(16)

    def try_it(number: int) -> None:
        start.wait()
        if lock.take(tmp_path / "home/.lock", {"token": str(number)}):
            got.append(number)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(got) == 1
    assert lock.read(tmp_path / "home/.lock")["token"] == str(got[0])
    assert not lock.remove(tmp_path / "home/.lock", "another")
    assert lock.remove(tmp_path / "home/.lock", str(got[0]))
    assert lock.read(tmp_path / "home/.lock") is None


def test_only_the_dead_and_the_failed_give_the_lock_away(lock_rules: ModuleType) -> None:
    here = lock_rules.controller()
    alive = {"controller": here, "pid": os.getpid(), "started": lock_rules.started(os.getpid())}
    assert lock_rules.gives_way(alive, here) == ""
    assert "failed" in lock_rules.gives_way({**alive, "failed": True}, here)
    assert "gone" in lock_rules.gives_way({**alive, "started": "another process's"}, here)
    rebooted = {**alive, "controller": {**here, "boot": "before"}}
    assert "restarted" in lock_rules.gives_way(rebooted, here)
    elsewhere = {"controller": {**here, "host": "elsewhere"}, "pid": 1, "started": "1"}
    assert lock_rules.gives_way(elsewhere, here) == ""


# Building.


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a release's ingredients, all committed."""
    (tmp_path / "service/poky").mkdir(parents=True)
    (tmp_path / "service/poky/__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "docs.md").write_text("words\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        git(tmp_path, *command)
    return tmp_path


def git(where: Path, *command: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *who, *command], cwd=where, check=True)


def test_a_release_is_named_after_the_last_commit_that_touched_it(
    builder: ModuleType, checkout: Path
) -> None:
    first = builder.identify(checkout, allow_dirty=False)["id"]
    assert re.fullmatch(r"1\.2\.3\+[0-9a-f]{10}", first)
    (checkout / "docs.md").write_text("other words\n")
    git(checkout, "commit", "-qam", "a document")
    assert builder.identify(checkout, allow_dirty=False)["id"] == first
    (checkout / "service/poky/process.py").write_text("")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "code")
    assert builder.identify(checkout, allow_dirty=False)["id"] != first


def test_what_is_not_committed_is_refused_outside_development(
    builder: ModuleType, checkout: Path
) -> None:
    (checkout / "docs.md").write_text("other words\n")
    with pytest.raises(builder.BuildError, match="not committed"):
        builder.identify(checkout, allow_dirty=False)
    assert ".dirty" not in builder.identify(checkout, allow_dirty=True)["id"]
    (checkout / "service/poky/new.py").write_text("a = 1\n")
    one = builder.identify(checkout, allow_dirty=True)["id"]
    (checkout / "service/poky/new.py").write_text("a = 2\n")
    other = builder.identify(checkout, allow_dirty=True)["id"]
    assert ".dirty." in one
    assert one != other


def test_a_build_that_changed_since_is_built_again(builder: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "release.tar").write_bytes(b"what was built")
    manifest = {"files": {"release.tar": builder.digest(tmp_path / "release.tar")}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert builder.read_manifest(tmp_path) == manifest
    (tmp_path / "release.tar").write_bytes(b"something else")
    assert builder.read_manifest(tmp_path) is None


def test_a_staged_release_that_changed_since_is_found_out(tmp_path: Path) -> None:
    manifest = plugin("modules.poky_manifest")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.py").write_text("a = 1\n")
    (tmp_path / "lib64").symlink_to("lib")
    recorded = manifest.survey(tmp_path)
    (tmp_path / "lib/__pycache__").mkdir()
    (tmp_path / "lib/__pycache__/a.pyc").write_text("byte code comes and goes")
    assert manifest.differences(recorded, manifest.survey(tmp_path)) == []
    (tmp_path / "lib/a.py").write_text("a = 2\n")
    (tmp_path / "lib/b.py").write_text("")
    wrong = manifest.differences(recorded, manifest.survey(tmp_path))
    assert wrong == ["lib/b.py was added", "lib/a.py differs"]


# Instances and backends.


@contextlib.contextmanager
def sleeping(program: str | Path = "sleep", **options: Any) -> Iterator[int]:
    """The number of a process that does nothing, once the kernel tells its arguments."""
    with subprocess.Popen([program, "60"], **options) as process:
        try:
            while not Path(f"/proc/{process.pid}/cmdline").read_bytes():
                time.sleep(0.01)
            yield process.pid
        finally:
            process.kill()


def test_settings_that_a_process_has_not_read_are_stale(tmp_path: Path) -> None:
    instances = plugin("modules.poky_instances")
    file = tmp_path / "poky.env"
    file.write_text('# words\nPOKY_THREADS=4\nPOKY_CACHES="a=http://b:1 c=http://d:2"\n')
    environment = {**instances.read_settings(file.read_text()), "POKY_GONE": "1"}
    with sleeping(env=environment) as pid:
        assert instances.stale_settings(file, pid) == ["POKY_GONE"]
        assert instances.stale_settings(file, pid, "POKY_GONE=1 A=b") == []
        file.write_text(file.read_text().replace("4", "8") + "POKY_NEW=1\n")
        stale = instances.stale_settings(file, pid)
        assert stale == ["POKY_GONE", "POKY_NEW", "POKY_THREADS"]


def test_the_release_of_a_process_is_its_interpreters(tmp_path: Path) -> None:
    instances = plugin("modules.poky_instances")
    python = tmp_path / "releases/1.0+abc/venv/bin/python"
    python.parent.mkdir(parents=True)
    shutil.copy("/bin/sleep", python)
    with sleeping(python) as pid:
        assert instances.running_release(pid, tmp_path) == "1.0+abc"
        assert instances.running_release(os.getpid(), tmp_path) == ""


def test_drained_is_varnishs_administrative_state() -> None:
    listed = """[ 3, ["backend.list", "-j"], 1795414959.459, {
      "boot.poky_a_8081": {"admin_health": "sick", "probe_message": [3, 3, "healthy"]},
      "boot.poky_a_8082": {"admin_health": "probe", "probe_message": [3, 3, "healthy"]},
      "boot.poky_b_8081": {"admin_health": "probe", "probe_message": [0, 3, "sick"]},
      "boot.lease_poky_a_8081": {"admin_health": "healthy", "probe_message": "healthy"}}]"""
    backends = plugin("modules.poky_backend").read_backends(listed)
    assert {name: tuple(state.values()) for name, state in backends.items()} == {
        "poky_a_8081": (True, False),
        "poky_a_8082": (False, True),
        "poky_b_8081": (False, False),
        "lease_poky_a_8081": (False, True),
    }


class Instance(BaseHTTPRequestHandler):
    """Answers /status with what the test put there."""

    status: ClassVar[dict[str, Any]] = {}
    code = 200

    def do_GET(self) -> None:
        body = json.dumps(self.status).encode()
        self.send_response(self.code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("changes", "code", "missing"),
    [
        ({}, 200, ""),
        ({"release": "v1"}, 200, "names release 'v1'"),
        ({"database": "unavailable"}, 503, "database: unavailable"),
        ({"schema": "outdated"}, 503, "schema: outdated"),
        ({}, 500, "answers 500"),
    ],
)
def test_the_gate_opens_for_the_release_in_good_health_alone(
    changes: dict[str, str], code: int, missing: str
) -> None:
    wait = plugin("modules.poky_wait")
    right = {"release": "v2", "database": "ok", "schema": "ok", "inflight": 0}
    Instance.status, Instance.code = {**right, **changes}, code
    with ThreadingHTTPServer(("127.0.0.1", 0), Instance) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        status = wait.read_status("127.0.0.1", server.server_port)
        server.shutdown()
    said = wait.what_is_missing("ready", "v2", status)
    assert missing in said
    assert bool(said) == bool(missing)
    assert "not answer" in wait.what_is_missing("ready", "v2", None)
    assert wait.what_is_missing("idle", None, {"inflight": 2}) == "2 requests are in flight"
    assert wait.what_is_missing("idle", None, {"inflight": 0}) == ""


# What hosts have for operators.


def test_the_command_on_hosts_is_confined_as_the_roles_own_calls_are() -> None:
    run = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_poky_run"]
    script = (ROLE / "files/poky").read_text()
    for word in run:
        assert word.replace("{{ _poky_etc }}", "/etc/poky") in script, word


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["bucket", "list"], "no release is current"), (["serve"], "no release is current")],
)
def test_the_command_on_hosts_says_what_is_missing(arguments: list[str], sentence: str) -> None:
    if Path("/opt/poky/current").exists():
        pytest.skip("a Poky is deployed here")
    done = subprocess.run(
        [ROLE / "files/poky", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("stderr", "code", "detail"),
    [
        ('INFO x\n{"code": "busy", "detail": "Try again."}\n', "busy", "Try again."),
        ("Error: it has keys\n", "", "Error: it has keys"),
        ("[1]", "", "[1]"),
        ("", "", ""),
    ],
)
def test_a_command_that_fails_is_shown_as_its_sentence(stderr: str, code: str, detail: str) -> None:
    said = plugin("modules.poky_command").read_failure(stderr)
    assert said == {"code": code, "detail": detail}


def test_a_plan_goes_without_the_secrets_of_shards_that_are_not_there_yet(tmp_path: Path) -> None:
    """Of shards alone: without poky_dsn it would ask another database."""
    is_there = plugin("modules.poky_command").is_there
    (tmp_path / "poky_shards").touch()
    for word, stays in {
        f"--property=LoadCredential=poky_shards:{tmp_path}/poky_shards": True,
        f"--property=LoadCredential=poky_owner_shards:{tmp_path}/poky_owner_shards": False,
        f"--property=LoadCredential=poky_dsn:{tmp_path}/poky_dsn": True,
        "/opt/poky/current/venv/bin/poky": True,
    }.items():
        assert is_there(word) is stays, word


def test_the_table_has_a_row_for_each_database_and_for_what_does_not_fit() -> None:
    report = plugin("filter.poky_report")
    said = {
        "shards": [
            {"shard": 0, "buckets": 2, "bytes": 1234},
            {"shard": 1, "buckets": None, "bytes": None},
        ],
        "move": {"name": "logs", "id": 3, "source": 0, "target": 1, "step": "copy"},
        "troubles": ["Shard 1 does not answer: nobody is there"],
    }
    plan = {name: [] for name in ("found", "create", "drop", "undeclared", "publish", "unpublish")}
    rows = report.poky_status({}, {**plan, "expire": [], "follow": []}, "warn", None, shards=said)
    assert rows[:-1] == [
        ["", "shard 0", "2 buckets", "1,234 bytes", False],
        ["", "shard 1", "does not answer", "", True],
        ["", "shards", "disagree", "Shard 1 does not answer: nobody is there", True],
        [
            *("", "bucket logs", "moves"),
            "to shard 1, step copy: poky bucket move goes on with it",
            False,
        ],
    ]


def test_a_certificate_that_ends_soon_needs_somebody() -> None:
    report = plugin("filter.poky_report")
    end, now = "Mar  1 12:00:00 2028 GMT", 1835524800.0  # 2028-03-01 12:00 UTC
    early = report._certificate_row("a", "c.pem", end, now - 22 * 86400)
    assert early == ["a", "certificate", "until 2028-03-01", "c.pem", False]
    late = report._certificate_row("a", "c.pem", end, now - 20 * 86400)
    assert late == ["a", "certificate", "until 2028-03-01", "c.pem: renew it", True]
    assert report._certificate_row("a", "c.pem", "", now)[-1] is True


def test_two_checkouts_have_two_machines_of_one_name(tmp_path: Path) -> None:
    names = {
        subprocess.check_output(
            [ROOT / "playbooks/files/machine", "container", "poky-development"],
            env={**os.environ, "POKY_MACHINES": str(tmp_path / checkout)},
            text=True,
        )
        for checkout in ("a", "b", "a")
    }
    assert len(names) == 2
    assert all(name.startswith("poky-development-") for name in names)


def test_chrony_steps_the_clock_at_its_first_start_alone(tmp_path: Path) -> None:
    unit = (ROOT / "roles/varnish/files/chrony.conf").read_text()
    (command,) = re.findall(r"^ExecStart=!/bin/sh -c '(.+)'$", unit, re.MULTILINE)
    command = command.replace("$$", "$").replace("/usr/sbin/chronyd", "echo chronyd")
    command = command.replace("/run/poky-clock", str(tmp_path / "clock"))
    said = [
        subprocess.check_output(["sh", "-c", command], env={"DAEMON_OPTS": "-F 1"}, text=True)
        for _ in range(3)
    ]
    assert said == ["chronyd -F 1\n", "chronyd -F 1 -R\n", "chronyd -F 1 -R\n"]


def test_make_bucket_asks_for_its_name() -> None:
    done = subprocess.run(
        ["make", "bucket", "BUCKET="], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "make bucket BUCKET=name" in done.stderr


# The other hosts.


def test_what_a_host_does_not_set_has_the_default_of_the_role() -> None:
    topology = plugin("filter.poky_topology")
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    hostvars = {"a-1": {"poky_address": "192.0.2.1"}, "b": {"poky_ports": [1], "poky_listen": "x"}}
    for name in ("poky_ports", "poky_lease_seconds", "poky_cache_mode", "poky_min_healthy"):
        assert topology.poky_setting({}, name) == defaults[name]
    assert topology.poky_setting({"poky_min_healthy": 0}, "poky_min_healthy") == 0
    ports = defaults["poky_ports"]
    assert topology.poky_backends(["a-1", "b"], hostvars, False) == [
        *({"name": f"poky_a_1_{port}", "host": "192.0.2.1", "port": port} for port in ports),
        {"name": "poky_b_1", "host": "x", "port": 1},
    ]
    assert topology.poky_backends(["a-1"], hostvars, True)[0]["host"] == "127.0.0.1"


# The table of status.yml.


def test_the_table_marks_what_needs_somebody(releases: ModuleType) -> None:
    report = plugin("filter.poky_report")
    instances = [instance(8081), instance(8082, stale=["POKY_THREADS"])]
    seen = {"current": "v2", "previous": "v1", "releases": ["v1", "v2"], "instances": instances}
    backends = {"a_8081": {"drained": True, "healthy": False}}
    backends["a_8082"] = {"drained": False, "healthy": True}
    hosts = {
        "a": {
            "seen": seen,
            "backends": ["a_8081", "a_8082"],
            "cache": {"backends": backends},
            "daemons": [{"unit": "nginx.service", "active": "active", "stale": []}],
            "maintenance": False,
        },
        "b": None,
    }
    plan = releases.poky_bucket_plan(
        ["x", "tips"], [{"name": "tips"}], {}, "_smoke", ["tips"], {"tips": 5}
    )
    seen_tokens = {"changes": {"ci": "created"}, "undeclared": ["old"]}
    tokens = releases.poky_token_plan(DECLARED, seen_tokens, "_smoke-")
    rows = report.poky_status(hosts, plan, "warn", None, tokens, "warn")
    trouble = {(row[0], row[1]): row[3] for row in rows if row[-1]}
    assert trouble == {
        ("a", "instance 8081"): "drained at a",
        ("a", "instance 8082"): "runs another POKY_THREADS than is on disk",
        ("b", "host"): "",
        ("", "bucket _smoke"): "playbooks/buckets.yml",
        ("", "bucket tips"): "playbooks/buckets.yml",
        ("", "token ci"): "playbooks/tokens.yml",
    }
    assert [row[2] for row in rows if row[1] == "token old"] == ["undeclared"]
    table = report.poky_table(rows).splitlines()
    assert len(table) == len(rows) + 1
    assert all(line.startswith("!") == row[-1] for line, row in zip(table[1:], rows, strict=True))


def test_the_table_is_made_while_the_database_is_away() -> None:
    """It is when somebody looks: the hosts' rows are there all the same."""
    report = plugin("filter.poky_report")
    rows = report.poky_status({"a": None}, {}, "warn", None, {}, unread="It cannot be reached.")
    assert rows == [
        ["a", "host", "unreachable", "", True],
        ["", "database", "not read", "It cannot be reached.", True],
    ]


@pytest.mark.parametrize("playbook", ["move", "smoke", "status", "unlock"])
def test_what_is_run_while_a_host_is_down_needs_no_address_of_it(playbook: str) -> None:
    """Validation reads all variables of an entry point; facts of a host that is down are not there.

    ``unlock`` and ``move`` failed wherever another host was a cache, and nobody had noticed.
    """
    text = (ROOT / f"playbooks/{playbook}.yml").read_text()
    assert "import_playbook: preflight.yml" not in text
    entries = re.findall(r"tasks_from: (.*)", text)
    assert entries
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]
    given = {
        **yaml.safe_load((ROLE / "defaults/main.yml").read_text()),
        **yaml.safe_load((ROLE / "vars/main.yml").read_text()),
        "poky_shards": "",  # numbers and names alone
        "poky_admin_listen": "{{ poky_address }}",  # as where Prometheus is elsewhere
    }

    def needs(name: str, seen: frozenset[str] = frozenset()) -> bool:
        said = str(given.get(name, ""))
        words = set(re.findall(r"\b_?poky_\w+", said)) & set(given) - seen - {name}
        return bool(re.search("hostvars|ansible_facts", said)) or any(
            needs(word, seen | words) for word in words
        )

    assert needs("poky_caches")
    assert needs("poky_prometheus_url")
    for entry in entries:
        assert [name for name in specs[entry]["options"] if needs(name)] == []


# Units, settings, variables: what is written twice agrees.


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """Where the unit's ExecStart is."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    shutil.copy("/bin/true", tmp_path / "venv/bin/poky")
    return tmp_path


def verify(release: Path, name: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [ROLE / "files/unit-verify", release, f"{name}={file}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", ["poky@.service", "poky.target"])
def test_systemd_has_nothing_to_say_about_a_unit(release: Path, name: str) -> None:
    done = verify(release, name, ROLE / "files" / name)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("RestartSec=1", "RestartSekonds=1"),
        ("WatchdogSec=15", "WatchdogSec=often"),
        ("[Install]", "[Instal]"),
        ("venv/bin/poky serve", "venv/bin/pokey serve"),
    ],
)
def test_a_unit_with_a_fault_is_refused(
    release: Path, tmp_path: Path, right: str, wrong: str
) -> None:
    unit = (ROLE / "files/poky@.service").read_text()
    assert right in unit
    (tmp_path / "candidate").write_text(unit.replace(right, wrong))
    assert verify(release, "poky@.service", tmp_path / "candidate").returncode == 1


def test_the_unit_is_sandboxed() -> None:
    unit = ROLE / "files/poky@.service"
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_every_directive_of_the_unit_is_explained() -> None:
    """A comment stands before each directive, or before the block of directives that it is in."""
    explained = False
    for line in (ROLE / "files/poky@.service").read_text().splitlines():
        if line.startswith("#"):
            explained = True
        elif not line or line.startswith("["):
            explained = line.startswith(("[Unit]", "[Install]"))
        else:
            assert explained, line


# Given by the unit, by systemd's credentials, or by the release itself.
NOT_IN_THE_FILE = {
    *("dsn", "owner_dsn", "shards", "owner_shards", "move_shards"),
    *("home", "port", "admin_port", "lease_port", "cpu", "release", "instance"),
}


def test_the_environment_file_has_every_setting() -> None:
    template = (ROLE / "templates/poky.env.j2").read_text()
    written = set(re.findall(r"^POKY_(\w+)=", template, re.MULTILINE))
    settings = {each.name for each in fields(Config)} - NOT_IN_THE_FILE
    assert written == {name.upper() for name in settings}


def test_the_defaults_of_the_role_are_those_of_the_service() -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    computed = {"listen", "lease_listen", "caches", "max_inflight_bytes", "prometheus_url"}
    for each in fields(Config):
        if each.name not in NOT_IN_THE_FILE | computed:
            default = list(each.default) if isinstance(each.default, tuple) else each.default
            assert defaults[f"poky_{each.name}"] == default, each.name


def test_every_variable_has_a_type_and_a_sentence() -> None:
    manual = (ROLE / "defaults/main.yml").read_text()
    specs = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())
    options = specs["argument_specs"]["main"]["options"]
    required = {name for name, option in options.items() if option.get("required")}
    defaults = yaml.safe_load(manual)
    assert set(options) == set(defaults) | required
    assert all("default" not in option for option in options.values())
    assert all(f"# {name}:" in manual for name in required)


def test_what_is_written_to_files_has_an_order() -> None:
    """Ansible's set filters have none: a file of several hosts would change with each run."""
    for file in sorted(
        file
        for pattern in ("*/vars/*.yml", "*/defaults/*.yml", "*/templates/*")
        for file in (ROOT / "roles").glob(pattern)
    ):
        for line in file.read_text().splitlines():
            if re.search(r"\| (union|difference|intersect|symmetric_difference)\(", line):
                assert "| sort" in line or "== [" in line, f"{file}: {line}"


def play(
    *arguments: str | Path, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ansible-playbook; its output is in ``stdout``, words separated by single spaces."""
    done = subprocess.run(
        [DEPLOY / "bin/ansible-playbook", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    done.stdout = " ".join(done.stdout.split())
    return done


def test_the_syntax_of_every_playbook_holds() -> None:
    done = play("--syntax-check", "-i", "inventories/development", *PLAYBOOKS)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("word", ["deploy", "rollback", "buckets", "tokens", "status"])
@pytest.mark.parametrize("environment", ["cluster", "development", "qa", "production"])
def test_a_verb_and_an_environment_are_a_command_from_the_top_folder(
    word: str, environment: str
) -> None:
    """The same plays as of the playbook and the inventory by their paths."""
    short = play("--list-tasks", word, "-i", environment)
    long = play("--list-tasks", f"playbooks/{word}.yml", "-i", f"inventories/{environment}")
    assert short.returncode == 0, short.stdout
    assert short.stdout == long.stdout.replace(f"playbooks/{word}.yml", word, 1)


@pytest.mark.parametrize("inventory", ["development", "inventories/development"])
def test_a_shortcut_to_an_inventory_leads_to_the_same_files(inventory: str) -> None:
    command = [DEPLOY / "bin/ansible", "all", "-i", inventory, "-m", "ansible.builtin.debug"]
    told = subprocess.check_output([*command, "-a", "var=ansible_ssh_common_args"], cwd=ROOT)
    (file,) = re.findall(r"-F ([^\s\"]+)", told.decode())
    assert os.path.normpath(file) == str(ROOT / "build/machines/ssh_config")


def test_plays_say_themselves_what_a_failure_means() -> None:
    """ansible.cfg is found from the top folder alone, and playbooks run from anywhere.

    A host that cannot be asked takes no row from the others.
    """
    goes_on = {("status.yml", "Collect the state of every host")}
    for playbook in PLAYBOOKS:
        for each in yaml.safe_load(playbook.read_text()):
            if "hosts" in each:
                stops = (playbook.name, each["name"]) not in goes_on
                assert each.get("any_errors_fatal") is stops, f"{playbook.name}: {each['name']}"


HERE = """
all:
  vars:
    ansible_connection: local
    ansible_become: false
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  hosts: &here
    this-machine:
  children:
    service: {hosts: *here}
    cache: {hosts: *here}
    web: {hosts: *here}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """An inventory in which this machine is every host."""
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(HERE)
    return inventory


def test_a_playbook_runs_from_any_folder(here: Path) -> None:
    """It finds its filters, modules and roles; the lock is only shown."""
    secrets = ("-e", json.dumps(SECRETS))
    playbook = ROOT / "playbooks/unlock.yml"
    done = play(playbook, "-i", here, *secrets, cwd=here.parent)
    assert done.returncode == 0, done.stdout
    assert "The deploy lock is free" in done.stdout


def entry_points() -> Iterator[tuple[str, str, str]]:
    """(file, role, entry point) of all that playbooks and roles include of roles."""
    for playbook in (*PLAYBOOKS, *ROOT.glob("roles/*/tasks/**/*.yml")):
        text = playbook.read_text()
        for role, tasks in re.findall(r"_role:\n\s+name: (.+)(?:\n\s+tasks_from: (\S+))?", text):
            roles = [role]
            if "{{" in role:
                given = (ROOT / "roles").glob(f"*/tasks/{tasks or 'main'}.yml")
                roles = [path.parts[-3] for path in given]
            yield from ((playbook.stem, each, tasks or "main") for each in roles)


def test_every_entry_point_says_what_it_takes() -> None:
    """Or nothing would refuse a misspelt value: argument_specs are per entry point."""
    found = sorted(entry_points())
    assert ("deploy", "varnish", "preflight") in found
    for playbook, role, tasks in found:
        specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
        assert tasks in specs["argument_specs"], f"{playbook}: {role}/{tasks}"
        assert (ROOT / f"roles/{role}/tasks/{tasks}.yml").exists()


def test_every_task_file_is_used() -> None:
    entries = {(role, f"{tasks}.yml") for _, role, tasks in entry_points()}
    for role in (ROOT / "roles").iterdir():
        files = {str(path.relative_to(role / "tasks")) for path in role.rglob("tasks/**/*.yml")}
        text = "\n".join((role / "tasks" / name).read_text() for name in files)
        included = set(re.findall(r"_tasks: (\S+)", text))
        unused = files - included - {name for each, name in entries if each == role.name}
        assert unused <= {"main.yml"}, role.name
        assert included <= files


SECRETS = {
    "poky_database_password": "a",
    "poky_database_owner_password": "b",
    "poky_database_hosts": ["127.0.0.1"],
    "poky_access": "tokens",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("playbook", "wrong", "sentence"),
    [
        ("buckets", {"poky_bucket_state": "absnt"}, "one of: present, absent, got: absnt"),
        ("buckets", {"poky_buckets": [{"name": "a", "state": "gone"}]}, "absent, got: gone"),
        ("buckets", {"poky_buckets": [{"name": "a", "status": "absent"}]}, "poky_buckets.status"),
        ("buckets", {"poky_buckets": [{"state": "absent"}]}, "missing required arguments: name"),
        ("buckets", {"poky_buckets": "a"}, "poky_buckets"),
        ("buckets", {"poky_buckets_undeclared": "forbid"}, "warn, fail, ignore, got: forbid"),
        ("buckets", {"poky_buckets": [{"name": "a", "public": "write"}]}, "read, none, got: write"),
        ("buckets", {"poky_buckets": [{"name": "a", "ttl": "1h"}]}, "unable to convert to int"),
        ("tokens", {"poky_tokens": [{"name": "a", "grant": ["read:b"]}]}, "poky_tokens.grant"),
        ("tokens", {"poky_tokens": [{"name": "a", "grants": ["reed:b"]}]}, "“reed:b” is no grant"),
        (
            "deploy",
            {"poky_tokens": [{"name": "a", "grants": ["read:b"]}]},
            "a: give token, or the id",
        ),
        ("status", {"poky_tokens": [{"name": "a", "state": "gone"}]}, "absent, got: gone"),
        ("drain", {"poky_drain_state": "out"}, "drained, in_service, got: out"),
        ("migrate", {"poky_schema_phase": "shrink"}, "expand, contract, got: shrink"),
        ("rollback", {"poky_min_healthy": "many"}, "poky_min_healthy"),
        ("restart", {"poky_cache_mode": "eventual"}, "bounded, got: eventual"),
        ("smoke", {"poky_log_level": "loud"}, "got: loud"),
        ("unlock", {"poky_schema": "flta"}, "partitioned, flat, got: flta"),
        ("deploy", {"poky_access": ""}, "poky_access is not set. Say tokens"),
        ("deploy", {"poky_access": "token"}, "open, tokens, got: token"),
        ("deploy", {"varnish_access": "open"}, "poky_access of the service hosts is another"),
        (
            "deploy",
            {"varnish_cors_origins": ["https://a.example"]},
            "poky_cors_origins of the service hosts is another",
        ),
        ("deploy", {"poky_cors_origins": ["app.example"]}, "poky_cors_origins has app.example."),
        ("deploy", {"varnish_mode": "never"}, "bounded, got: never"),
        ("deploy", {"nginx_http_port": "eighty"}, "nginx_http_port"),
        ("maintenance", {"nginx_maintenance": "maybe"}, "on, off, got: maybe"),
        ("maintenance", {}, "nginx_maintenance=on answers every client 503"),
        ("drain", {}, "Name a service host with -e poky_drain_host=…: one of this-machine"),
    ],
)
def test_a_value_that_is_none_of_the_choices_is_refused(
    here: Path, playbook: str, wrong: dict[str, Any], sentence: str
) -> None:
    given = json.dumps({**SECRETS, "machine_image": "", "poky_address": "127.0.0.1", **wrong})
    done = play(f"playbooks/{playbook}.yml", "-i", here, "-e", given)
    assert done.returncode != 0, done.stdout
    assert sentence in done.stdout
    assert "changed=0" in done.stdout
    assert "changed=1" not in done.stdout


@pytest.mark.parametrize(
    ("used", "given", "is_refused"),
    [
        (None, {}, False),  # a host that is new
        ("it's \\ here", {}, False),
        ("another", {}, True),
        ("another", {"poky_password_by_deploy": "true"}, False),
        ("another", {"poky_password_by_deploy": "false"}, True),
        ("another", {"managed": True}, False),  # nobody but a deploy can change it
    ],
)
def test_a_deploy_keeps_the_password_that_instances_connect_with(
    tmp_path: Path, used: str | None, given: dict[str, Any], is_refused: bool
) -> None:
    if used is not None:
        quoted = re.sub(r"(['\\])", r"\\\1", used)
        dsn = f"host=another dbname=poky sslmode=require user=poky_service_next password='{quoted}'"
        (tmp_path / "poky_dsn").write_text(f"{dsn}\n")
    groups = ["service", "cache", "web", *([] if given.get("managed") else ["database"])]
    inventory = tmp_path / "hosts.yml"
    host = {"h": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
    inventory.write_text(yaml.safe_dump({name: {"hosts": host} for name in groups}))
    variables = {
        **SECRETS,
        "poky_database_password": "it's \\ here",
        "poky_address": "127.0.0.1",
        "_poky_credentials": str(tmp_path),
        **given,
    }
    playbook = tmp_path / "play.yml"
    tasks = [{"include_role": {"name": str(ROLE), "tasks_from": "preflight"}}]
    playbook.write_text(yaml.safe_dump([{"hosts": "h", "gather_facts": False, "tasks": tasks}]))
    done = play(playbook, "-i", inventory, "-e", json.dumps(variables))
    assert (done.returncode != 0) == is_refused, done.stdout
    assert ("Run playbooks/rotate.yml" in done.stdout) == is_refused
    assert "another" not in done.stdout.replace("is another one", "")


def test_a_password_in_use_that_cannot_be_read_is_no_new_host(here: Path, tmp_path: Path) -> None:
    here.write_text(f"{HERE}    database: {{hosts: *here}}\n")
    (tmp_path / "poky_dsn").mkdir()
    playbook = tmp_path / "play.yml"
    tasks = [{"include_role": {"name": str(ROLE), "tasks_from": "preflight"}}]
    playbook.write_text(
        yaml.safe_dump([{"hosts": "service", "gather_facts": False, "tasks": tasks}])
    )
    given = {**SECRETS, "poky_address": "127.0.0.1", "_poky_credentials": str(tmp_path)}
    done = play(playbook, "-i", here, "-e", json.dumps(given))
    assert done.returncode != 0, done.stdout


@pytest.mark.parametrize("anywhere", [False, True])
def test_a_wrong_inventory_is_an_error(anywhere: bool, tmp_path: Path) -> None:
    cwd = tmp_path if anywhere else ROOT
    done = play(ROOT / "playbooks/status.yml", "-i", "inventories/nowhere", cwd=cwd)
    assert done.returncode != 0, done.stdout
    assert "No inventory was parsed" in done.stdout or "No host is in the group" in done.stdout


def test_a_misspelt_group_is_an_error(here: Path) -> None:
    here.write_text(HERE.replace("    cache:", "    cahce:"))
    done = play("playbooks/given.yml", "-i", here)
    assert done.returncode != 0, done.stdout
    assert "No host is in the group “cache”. There is a group “cahce”: did you mean" in done.stdout
    assert "groups database, etcd, shards, service, cache, web, monitoring, backup." in done.stdout


@pytest.mark.parametrize(
    ("groups", "faults"),
    [
        ({}, 0),
        ({"rack1": ["a", "b"]}, 0),
        ({"database": []}, 0),
        ({"monitoring": []}, 0),
        ({"backup": []}, 0),
        ({"etcd": []}, 0),
        ({"etdc": ["a"]}, 1),
        ({"databases": ["a"]}, 1),
        ({"web": []}, 1),
        ({"all": ["a", "b", "c"], "rack1": ["c"]}, 1),
    ],
)
def test_groups_are_those_that_playbooks_deploy_to(groups: dict[str, Any], faults: int) -> None:
    known = ["database", "etcd", "service", "cache", "web", "monitoring", "backup"]
    right = {name: ["a"] for name in known}
    right |= {"all": ["a", "b"], "service": ["b"], "ungrouped": []}
    said = plugin("filter.poky_variables").poky_group_faults({**right, **groups}, known)
    assert len(said) == (faults and faults + 1), said


def test_the_collection_has_the_services_version() -> None:
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text())
    assert galaxy["version"] == poky.__version__


def test_every_verb_is_in_the_manual() -> None:
    manual = (ROOT / "docs/operations.md").read_text()
    for playbook in PLAYBOOKS:
        assert f"playbooks/{playbook.name}" in manual, playbook.name


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_playbooks_make_tokens_and_buckets_what_is_declared(
    own_database: Database, here: Path, tmp_path: Path
) -> None:
    """With --check first, then in fact, then nothing is left to do; no secret is ever shown."""
    (tmp_path / "current").mkdir()
    (tmp_path / "current/venv").symlink_to(sys.prefix)
    dsns = [f"POKY_OWNER_DSN={own_database.dsn_owner}", f"POKY_DSN={own_database.dsn_service}"]
    given = {
        **SECRETS,
        "machine_image": "",
        "poky_address": "127.0.0.1",
        "poky_tokens": DECLARED,
        "poky_buckets": [{"name": "tips", "public": "read", "ttl": 3600}],
        "_poky_home": str(tmp_path),
        "_poky_as_owner": ["env", *dsns],
        "_poky_as_service": ["env", *dsns],
    }
    for playbook, line in (("tokens", "+ create web"), ("buckets", "tips: objects written")):
        command = (f"playbooks/{playbook}.yml", "-i", here, "-e", json.dumps(given), "-vvv")
        for options, is_planned, is_changed in (
            (("--check",), True, True),
            ((), True, True),
            ((), False, False),
        ):
            done = play(*command, *options)
            assert done.returncode == 0, done.stdout
            assert (line in done.stdout) is is_planned
            assert (
                "changed=0" not in done.stdout.split("RECAP")[1].split("this-machine")[1]
            ) is is_changed
            assert "SSSSSSSS" not in done.stdout.replace(json.dumps(given), "")


def test_a_cache_outside_private_networks_is_registered_by_the_owner() -> None:
    """The others by the instances themselves, as poky.register_node lets them."""
    hosts = ("127.0.0.1", "10.1.2.3", "[fd00::7]", "localhost", "cache-1.rack.internal")
    outside = ("203.0.113.7", "172.32.0.1", "[2001:db8::1]", "cache.example.com")
    caches = [{"name": host, "url": f"http://{host}:6091"} for host in (*hosts, *outside)]
    found = plugin("filter.poky_topology").poky_outside(caches)
    assert tuple(cache["name"] for cache in found) == outside
