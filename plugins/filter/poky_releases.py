"""What the journal of deploys tells: which releases are good, where to go back to, what may go.

The journal (``deploys.jsonl``) has one JSON object per line and is only appended to. Each service
host has a copy; a host that was added later has a shorter one, so they are merged.
"""

import dataclasses
import importlib
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

Entry = dict[str, Any]


def poky_journal(copies: Iterable[str]) -> list[Entry]:
    """The entries of all copies of the journal, oldest first, each once, without torn lines."""
    entries: dict[str, Entry] = {}
    for copy in copies:
        for line in copy.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and "at" in entry:
                entries[line.strip()] = entry
    return sorted(entries.values(), key=lambda entry: entry["at"])


def verdicts(journal: Iterable[Entry]) -> dict[str, str]:
    """{release: "good" or "bad"}, by what was said last; in the order of the last verdict."""
    said: dict[str, str] = {}
    for entry in journal:
        if entry.get("outcome") in ("good", "bad") and entry.get("to"):
            said.pop(entry["to"], None)
            said[entry["to"]] = entry["outcome"]
    return said


def history(journal: Iterable[Entry]) -> list[str]:
    """The good releases as a stack: a deploy puts one on top, a rollback takes some off."""
    said = verdicts(journal)
    stack: list[str] = []
    for entry in journal:
        release = entry.get("to")
        if entry.get("outcome") != "good" or not release:
            continue
        if entry.get("verb") == "rollback" and release in stack:
            while stack[-1] != release:
                stack.pop()
        elif not stack or stack[-1] != release:
            stack.append(release)
    return [release for release in stack if said[release] == "good"]


def poky_unsettled(journal: list[Entry]) -> bool:
    """Whether the last run that the journal tells of did not end well."""
    return bool(journal) and journal[-1].get("outcome") != "good"


def poky_rollback_target(
    journal: list[Entry], current: str, wanted: str = "", unfinished: bool = False
) -> str:
    """The release to go back to: ``wanted``, or the last good one.

    That is the one before ``current``, unless the last run failed or never finished: then what was
    good before that run is good still, and going back means to complete it on every host.
    """
    if wanted:
        if verdicts(journal).get(wanted) == "bad":
            raise ValueError(f"{wanted} is marked bad in the journal; choose another one.")
        return wanted
    stack = history(journal)
    while stack and stack[-1] == current and not (unfinished or poky_unsettled(journal)):
        stack.pop()
    if not stack:
        raise ValueError(
            "The journal has no good release to go back to; name one that is on every service "
            "host with -e poky_release=…"
        )
    return stack[-1]


def poky_rollback(
    journal: list[Entry], current: str, wanted: str = "", unfinished: bool = False
) -> dict[str, str]:
    """The ``release`` that poky_rollback_target chooses, or its ``refusal`` as a sentence."""
    try:
        chosen = poky_rollback_target(journal, current, wanted, unfinished)
    except ValueError as error:
        return {"release": "", "refusal": str(error)}
    return {"release": chosen, "refusal": ""}


def poky_prunable(
    present: Iterable[str], journal: list[Entry], keep: int, needed: Iterable[str]
) -> list[str]:
    """The releases to delete: all but ``needed`` and the last ``keep`` good ones, by journal."""
    recent = list(dict.fromkeys(reversed(history(journal))))[:keep]
    return [release for release in present if release not in {*recent, *needed}]


def poky_todo(
    seen: Mapping[str, Any],
    caches: Iterable[Mapping[str, Any]],
    release: str,
    backends: Iterable[str],
    all_of_them: bool = False,
) -> list[int]:
    """The ports of a host to roll to ``release``; those that do not serve come first.

    ``seen`` is what poky_instances found, ``caches`` what poky_backend found at each cache,
    ``backends`` their names for the instances, in the same order. An instance is left alone if it
    serves the release in good health, with the settings that are on disk, and no cache has it
    drained: so a run repairs whatever an interrupted one left.
    """
    todo = []
    for instance, backend in zip(seen["instances"], backends, strict=True):
        status = instance["status"] or {}
        drained = any(cache.get("backends", {}).get(backend, {}).get("drained") for cache in caches)
        serves = status.get("code") == 200 and not drained
        named = {instance["release"], status.get("release")}
        if all_of_them or not serves or named != {release} or instance["stale"]:
            todo.append((serves, instance["port"]))
    return [port for _, port in sorted(todo)]


def poky_before(seen: Mapping[str, Any], release: str) -> str:
    """The release that a host served before ``release``; "" if there was none, or no other.

    An interrupted run may have moved ``current`` without restarting everything.
    """
    others = [seen["current"], *(instance["release"] for instance in seen["instances"])]
    return next((name for name in others if name not in ("", release)), "")


def poky_schema_refusal(release: Mapping[str, Any], plan: Mapping[str, Any]) -> str:
    """Why a release cannot work with the database as it is, in words; "" if it can.

    ``release`` is its RELEASE.json with the schemas that it works with, ``plan`` what
    ``poky migrate --plan --json`` of any release sees in the database.
    """
    if plan["schema"] < release["schema_min"]:
        return (
            f"{release['release']} needs schema {release['schema_min']}, and the database has "
            f"{plan['schema']}: its migrations were never applied"
        )
    if plan["contracted"] > release["schema_max"]:
        return (
            f"{release['release']} works with schemas up to {release['schema_max']}, and contract "
            f"migration {plan['contracted']} took away what it needs: going back cannot undo that"
        )
    return ""


def poky_planned(
    source: str,
    phase: str,
    kind: str,
    serving: Mapping[str, Any],
    checksums: Mapping[str, str],
) -> dict[str, Any]:
    """What ``poky migrate --plan --json`` of a checkout will say once its release is staged.

    ``kind`` is what a new database becomes, ``serving`` what the release that serves says of the
    database ({}: there is no such release, so there is no schema), ``checksums`` that release's
    own files: the first releases do not tell what is ``recorded``.
    """
    planner = _planner(source)
    scripts = planner.Scripts(Path(source, "sql"))
    if serving.get("state", "missing") == "missing":
        found = planner.Found(foreign=bool(serving.get("refusal")))
    else:
        found = planner.Found(
            recorded=serving.get("recorded") or _recorded(scripts, serving, checksums),
            flat=serving["kind"] == "flat",
            converting=serving["converting"],
        )
    only_if_new = kind if found.recorded is None else None
    planned = planner.plan(found, kind=only_if_new, phase=phase, scripts=scripts)
    return dataclasses.asdict(planned)


def _planner(source: str) -> Any:
    """The module by which ``poky migrate`` of a checkout plans."""
    service = str(Path(source, "service"))
    sys.path.insert(0, service)
    try:
        return importlib.import_module("poky.schema.plan")
    finally:
        sys.path.remove(service)


def _recorded(
    scripts: Any, serving: Mapping[str, Any], checksums: Mapping[str, str]
) -> dict[str, str]:
    waiting = {*serving["pending"], *serving["postponed"]}
    recorded = {name: checksum for name, checksum in checksums.items() if name not in waiting}
    # After a rollback, the database has migrations that the serving release does not know.
    numbered = {name: int(name[:4]) for name in scripts.migrations if name not in checksums}
    later = [name for name, number in numbered.items() if number <= serving["schema"]]
    return recorded | {name: scripts.checksum(name) for name in later}


def poky_bucket_plan(
    found: Collection[str],
    declared: Iterable[Mapping[str, Any]],
    asked: Mapping[str, str],
    own: str,
    public: Collection[str] = (),
    ttls: Mapping[str, int | None] = MappingProxyType({}),
    changes: Mapping[str, int | None] = MappingProxyType({}),
) -> dict[str, Any]:
    """What to do so that the buckets are those that are wanted.

    ``declared`` is the inventory's list, ``asked`` one bucket from the command line (it wins),
    ``own`` the bucket of the smoke test, ``public`` those that are read without a token, ``ttls``
    the seconds after which objects expire, None for never, of those found whose release says so,
    ``changes`` those for which changes are kept, None for not at all.
    ``lines`` says the same in words.
    """
    declared = list(declared)
    wanted = {own: "present"}
    wanted |= {bucket["name"]: bucket.get("state", "present") for bucket in declared}
    declared_names = set(wanted)
    undeclared = sorted(set(found) - declared_names - {asked.get("name")})
    if asked:
        wanted[asked["name"]] = asked["state"]
    create = [name for name, state in wanted.items() if state == "present" and name not in found]
    drop = [name for name, state in wanted.items() if state == "absent" and name in found]
    kept = [bucket for bucket in declared if wanted[bucket["name"]] == "present"]
    open_names = {bucket["name"] for bucket in kept if bucket.get("public") == "read"}
    publish = sorted(open_names - set(public))
    unpublish = sorted({bucket["name"] for bucket in kept} & set(public) - open_names)
    found_ttls = dict.fromkeys(create, 0) | {name: ttls[name] or 0 for name in ttls}
    expire = {
        bucket["name"]: ttl
        for bucket in kept
        if (ttl := int(bucket.get("ttl") or 0)) != found_ttls.get(bucket["name"], ttl)
    }
    found_changes = dict.fromkeys(create, 0) | {name: changes[name] or 0 for name in changes}
    follow = {
        bucket["name"]: text
        for bucket in kept
        if (seconds := _seconds(text := str(bucket.get("changes") or "none")))
        != found_changes.get(bucket["name"], seconds)
    }
    lines = [f"+ create {name}" for name in create] + [f"- drop {name}" for name in drop]
    lines += [
        f"~ {name}: objects written from now on "
        + (f"expire after {ttl} s" if ttl else "do not expire")
        for name, ttl in expire.items()
    ]
    lines += [
        f"~ {name}: its changes are "
        + ("not recorded" if text == "none" else f"kept for {text}, to be followed")
        for name, text in follow.items()
    ]
    lines += [f"+ publish {name}: it is read without a token" for name in publish]
    lines += [f"- unpublish {name}: it needs a token" for name in unpublish]
    lines += [f"~ {name} is undeclared" for name in undeclared]
    if asked.get("state") == "present" and asked["name"] not in declared_names:
        lines.append(f"~ {asked['name']} is to be declared: add it to poky_buckets")
    return {
        "found": sorted(found),
        "create": create,
        "drop": drop,
        "publish": publish,
        "unpublish": unpublish,
        "expire": [{"name": name, "ttl": ttl} for name, ttl in expire.items()],
        "follow": [{"name": name, "changes": text} for name, text in follow.items()],
        "undeclared": undeclared,
        "lines": lines,
    }


def _seconds(text: str) -> int:
    """A duration as ``poky bucket set --changes`` takes it: 7d, 12h, 30m, 90s, or none."""
    if text == "none":
        return 0
    if not re.fullmatch("[1-9][0-9]{0,8}[dhms]", text):
        raise ValueError(f"poky_buckets: changes: “{text}” is none of 7d, 12h, 30m, 90s, none.")
    return int(text[:-1]) * {"d": 86400, "h": 3600, "m": 60, "s": 1}[text[-1]]


def poky_token_plan(
    declared: Iterable[Mapping[str, Any]], seen: Mapping[str, Any] | None, own: str
) -> dict[str, Any]:
    """What to do so that the tokens are those that are declared, without any secret.

    ``seen`` is what ``poky token apply --check --json`` says; None where there is no database yet,
    so that every token will be created. ``own`` begins the names of the smoke test's tokens.
    """
    declared = list(declared)
    if seen is None:
        present = [token["name"] for token in declared if token.get("state") != "absent"]
        seen = {"changes": dict.fromkeys(present, "created"), "undeclared": []}
    undeclared = [name for name in seen["undeclared"] if not name.startswith(own)]
    words = {"created": "+ create", "changed": "~ change", "revoked": "- revoke"}
    lines = [f"{words[what]} {name}" for name, what in seen["changes"].items()]
    lines += [f"~ {name} is undeclared" for name in undeclared]
    return {
        "declared": sorted(t["name"] for t in declared if t.get("state") != "absent"),
        "changes": dict(seen["changes"]),
        "undeclared": undeclared,
        "lines": lines,
    }


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            function.__name__: function
            for function in (
                poky_journal,
                poky_unsettled,
                poky_rollback,
                poky_prunable,
                poky_todo,
                poky_before,
                poky_schema_refusal,
                poky_planned,
                poky_bucket_plan,
                poky_token_plan,
            )
        }
