"""Where backups may be kept, and to which moments a database can be restored."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any


def poky_backup_faults(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Say what is wrong with the host of the repository, one sentence each."""
    hosts, databases = list(groups.get("backup", ())), list(groups.get("database", ()))
    if not hosts:
        return []
    faults = []
    if len(hosts) > 1:
        faults.append(
            f"The group “backup” has {len(hosts)} hosts: the repository is on one."
            " For a second copy, copy what is in backup_path, or use S3."
        )
    if not databases:
        faults.append(
            "There is a host in “backup”, and none in “database”: a database that is managed"
            " elsewhere is backed up there. Empty “backup”."
        )
    if len(databases) > 1:
        faults += [
            f"{host} is in “backup” and in “database”: in a cluster the repository is on another"
            " host, which every member reaches and which does not go when a member goes."
            for host in sorted({*hosts} & {*databases})
        ]
    return faults


def poky_restore_point(
    asked: str, backups: Iterable[Mapping[str, Any]], now: float
) -> dict[str, Any]:
    """Judge the moment to restore to: ``{"target": text for pgBackRest, "refusal": sentence}``.

    ``asked`` is ISO 8601 with an offset from UTC, or "" for the latest state that there is (then
    ``target`` is ""). ``backups`` are those of ``pgbackrest info --output=json``.
    """
    ends = sorted(int(backup["timestamp"]["stop"]) for backup in backups if not backup.get("error"))
    if not ends:
        return {"target": "", "refusal": "The repository has no backup."}
    if not asked:
        return {"target": "", "refusal": ""}
    example = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    try:
        moment = datetime.fromisoformat(asked.strip())
    except ValueError:
        refusal = f"“{asked}” is no time; write it as {example}."
        return {"target": "", "refusal": refusal}
    if moment.tzinfo is None:
        refusal = f"“{asked}” does not say of which time zone it is; write it as {example}."
        return {"target": "", "refusal": refusal}
    if moment.timestamp() > now:
        refusal = f"“{asked}” is still to come: it is {example}."
        return {"target": "", "refusal": refusal}
    if moment.timestamp() < ends[0]:
        first = datetime.fromtimestamp(ends[0], UTC).isoformat().replace("+00:00", "Z")
        refusal = f"“{asked}” is before the end of the oldest backup: {first} is the first moment."
        return {"target": "", "refusal": refusal}
    target = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    return {"target": target, "refusal": ""}


class FilterModule:
    """The filters by their names in templates."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name to function."""
        return {
            function.__name__: function for function in (poky_backup_faults, poky_restore_point)
        }
