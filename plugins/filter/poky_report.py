"""What the hosts said of themselves, as the one table of playbooks/status.yml.

A row is [host, what, state, detail, trouble]: the last one says whether somebody has to act.
"""

import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

Row = list[Any]


def poky_status(
    reports: Mapping[str, Any],
    buckets: Mapping[str, Any],
    policy: str,
    lock: Mapping[str, Any] | None,
    tokens: Mapping[str, Any] | None = None,
    tokens_policy: str = "warn",
    shards: Mapping[str, Any] | None = None,
    unread: str = "",
) -> list[Row]:
    """All rows: the hosts', the databases', the buckets', the tokens', the deploy lock's.

    ``reports`` is {host: what report.yml found, None if it was not reached}, ``buckets`` a
    poky_bucket_plan, ``policy`` is poky_buckets_undeclared, ``lock`` the holder of the deploy lock,
    ``tokens`` a poky_token_plan, ``tokens_policy`` poky_tokens_undeclared, ``shards`` what
    ``poky shards`` says, where there are several databases. ``unread`` says why the database was
    not read; ``buckets`` and ``tokens`` are nothing then.
    """
    caches = {
        host: report["cache"]["backends"]
        for host, report in reports.items()
        if report and "backends" in report["cache"]
    }
    current = {
        report["seen"]["current"] for report in reports.values() if report and report["seen"]
    }
    rows: list[Row] = []
    told: list[tuple[str, list[Mapping[str, Any]]]] = []
    for host, report in reports.items():
        if report is None:
            rows.append([host, "host", "unreachable", "", True])
            continue
        if report["seen"]:
            rows += _service_rows(host, report["seen"], report["backends"], caches, current)
        rows += [_daemon_row(host, daemon) for daemon in report["daemons"]]
        for daemon in report["daemons"]:
            for file, end in daemon.get("certificates", {}).items():
                rows.append(_certificate_row(host, file, end, time.time()))
        for daemon in report["daemons"]:
            told.append((host, daemon.get("members", [])))
        if report["maintenance"]:
            rows.append([host, "maintenance", "on", "clients are answered 503", True])
    rows += _member_rows(told)
    rows += _shard_rows(shards) if shards else []
    if unread:
        rows.append(["", "database", "not read", unread, True])
    rows += _bucket_rows(buckets, policy) if buckets else []
    rows += _token_rows(tokens, tokens_policy) if tokens else []
    if lock:
        detail = f"{lock['what']}, step “{lock['step']}”, last seen {lock.get('seen')}"
        state = "failed" if lock.get("failed") else f"held by {lock['by']}"
        rows.append(["", "deploy lock", state, detail, bool(lock.get("failed"))])
    return rows


def _member_rows(told: Iterable[tuple[str, list[Mapping[str, Any]]]]) -> list[Row]:
    """PostgreSQL's cluster as the first member that knows it sees it: who leads, who has all."""
    members = next((members for _, members in told if members), [])
    rows: list[Row] = []
    for member in members:
        role, state = member["Role"], member["State"]
        detail = f"timeline {member.get('TL', '?')}"
        if role != "Leader":
            detail += f", {member.get('Lag in MB', '?')} MB behind"
        waits = member.get("Pending restart")
        detail += ", waits for a restart: deploy" if waits else ""
        ill = state not in ("running", "streaming") or bool(waits)
        rows.append([member["Member"], f"PostgreSQL: {role}", state, detail, ill])
    roles = [member["Role"] for member in members]
    if members and "Leader" not in roles:
        rows.append(["", "PostgreSQL", "no leader", "docs/failover.md", True])
    if members and "Sync Standby" not in roles:
        rows.append(["", "PostgreSQL", "no synchronous standby", "writes wait for one", True])
    return rows


def _shard_rows(shards: Mapping[str, Any]) -> list[Row]:
    """What each database holds, what does not fit, and a move that has not ended."""
    rows: list[Row] = []
    for shard in shards["shards"]:
        gone = shard["buckets"] is None
        state = "does not answer" if gone else f"{shard['buckets']} buckets"
        detail = "" if gone else f"{shard['bytes']:,} bytes"
        rows.append(["", f"shard {shard['shard']}", state, detail, gone])
    rows += [["", "shards", "disagree", trouble, True] for trouble in shards["troubles"]]
    if move := shards.get("move"):
        detail = f"to shard {move['target']}, step {move['step']}: poky bucket move goes on with it"
        rows.append(["", f"bucket {move['name']}", "moves", detail, False])
    return rows


def _bucket_rows(buckets: Mapping[str, Any], policy: str) -> list[Row]:
    """How many there are, and what differs from the inventory."""
    rows: list[Row] = [["", "buckets", len(buckets["found"]), _some(buckets["found"]), False]]
    for name in buckets["create"] + buckets["drop"]:
        wrong = "missing" if name in buckets["create"] else "not dropped"
        rows.append(["", f"bucket {name}", wrong, "playbooks/buckets.yml", True])
    if policy != "ignore":
        rows += [
            ["", f"bucket {name}", "undeclared", "not in poky_buckets", policy == "fail"]
            for name in buckets["undeclared"]
        ]
    for name in buckets["publish"] + buckets["unpublish"]:
        wrong = "not public" if name in buckets["publish"] else "public"
        rows.append(["", f"bucket {name}", wrong, "playbooks/buckets.yml", True])
    for bucket in buckets["expire"]:
        wrong = f"ttl is not {bucket['ttl']}" if bucket["ttl"] else "has a ttl"
        rows.append(["", f"bucket {bucket['name']}", wrong, "playbooks/buckets.yml", True])
    for bucket in buckets["follow"]:
        wrong = f"changes are not {bucket['changes']}"
        rows.append(["", f"bucket {bucket['name']}", wrong, "playbooks/buckets.yml", True])
    return rows


def _token_rows(tokens: Mapping[str, Any], policy: str) -> list[Row]:
    """Those that differ from the inventory, and those that are not in it."""
    rows: list[Row] = [["", "tokens", len(tokens["declared"]), _some(tokens["declared"]), False]]
    wrong = {"created": "missing", "changed": "changed", "revoked": "not revoked"}
    for name, what in tokens["changes"].items():
        rows.append(["", f"token {name}", wrong[what], "playbooks/tokens.yml", True])
    if policy != "ignore":
        rows += [
            ["", f"token {name}", "undeclared", "not in poky_tokens", policy == "fail"]
            for name in tokens["undeclared"]
        ]
    return rows


def _service_rows(
    host: str,
    seen: Mapping[str, Any],
    backends: Iterable[str],
    caches: Mapping[str, Any],
    all_current: set[str],
) -> list[Row]:
    """What a host serves, then a row for each instance as it and the caches see it."""
    others = [name for name in seen["releases"] if name not in (seen["current"], seen["previous"])]
    detail = f"before: {seen['previous'] or 'none'}; also there: {', '.join(others) or 'none'}"
    mixed = len(all_current) > 1
    if mixed:
        detail = "the hosts have different releases; deploy or roll back"
    rows: list[Row] = [
        [host, "release", seen["current"] or "none", detail, mixed or not seen["current"]]
    ]
    for instance, backend in zip(seen["instances"], backends, strict=True):
        faults = _faults_of_instance(instance, seen["current"])
        for cache, found in sorted(caches.items()):
            faults += _faults_of_backend(cache, found.get(backend))
        status = instance["status"] or {}
        detail = f"pid {instance['pid']}, restarted by itself {instance['restarts']} times"
        state = "serving" if status.get("code") == 200 else "down"
        what = f"instance {instance['port']}"
        rows.append([host, what, state, "; ".join(faults) or detail, bool(faults)])
    return rows


def _faults_of_instance(instance: Mapping[str, Any], current: str) -> list[str]:
    status = instance["status"]
    if not status:
        return [f"unit {instance['active']}, does not answer"]
    faults = [f"runs another {name} than is on disk" for name in instance["stale"]]
    if status["code"] != 200:
        faults.append(f"database {status.get('database')}, schema {status.get('schema')}")
    if {status.get("release"), instance["release"]} != {current}:
        faults.append(f"serves {status.get('release')}, which is not the current release")
    return faults


def _faults_of_backend(cache: str, backend: Mapping[str, bool] | None) -> list[str]:
    if backend is None:
        return [f"unknown to the cache {cache}"]
    if backend["drained"]:
        return [f"drained at {cache}"]
    return [] if backend["healthy"] else [f"sick at {cache}"]


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "")


def _daemon_row(host: str, daemon: Mapping[str, Any]) -> Row:
    what, active = daemon["unit"].removesuffix(".service"), daemon["active"]
    trouble = active != "active" or bool(daemon["stale"])
    detail = "; ".join(daemon["stale"]) or "runs what is on disk" * (active == "active")
    return [host, what, active, detail, trouble]


def _certificate_row(host: str, file: str, end: str, now: float) -> Row:
    """A certificate that ends within three weeks is trouble; deploys renew our own CA's before."""
    if not end:
        return [host, "certificate", "unreadable", file, True]
    until = ssl.cert_time_to_seconds(end)
    day = time.strftime("%Y-%m-%d", time.gmtime(until))
    late = until - now < 21 * 86400
    return [host, "certificate", f"until {day}", f"{file}: renew it" if late else file, late]


def poky_table(rows: Iterable[Row]) -> str:
    """Rows as aligned lines under a heading; a row that is trouble begins with “!”."""
    cells = [["#", "host", "what", "state", "detail"]]
    cells += [["!" if trouble else "-", *map(str, row)] for *row, trouble in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {function.__name__: function for function in (poky_status, poky_table)}
