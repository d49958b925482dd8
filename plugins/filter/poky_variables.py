"""Filters that check the groups and variables which an operator wrote.

Ansible ignores a variable that no role reads, so ``varnish_storge`` would be silence and a cache of
the default size. The names that exist are those in the ``argument_specs`` of the roles. Likewise a
host in the group ``servcie`` would be left out.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml


def declared(roles: str | Path) -> set[str]:
    """The names of all variables of the roles in a directory."""
    names: set[str] = set()
    for specification in Path(roles).glob("*/meta/argument_specs.yml"):
        for entry_point in yaml.safe_load(specification.read_text())["argument_specs"].values():
            names.update(entry_point.get("options", {}))
    return names


def misspelt(names: Iterable[str], roles: str | Path, also: Iterable[str] = ()) -> list[str]:
    """Name our variables that no role reads: ``varnish_storge (did you mean varnish_storage?)``.

    Ours are the names that begin with a role's name, or with that of one of ``also``, the variables
    which playbooks read themselves.
    """
    known = declared(roles) | set(also)
    ours = {path.name for path in Path(roles).iterdir()} | {name.split("_")[0] for name in also}
    found = []
    for name in sorted(set(names) - known):
        if re.match(rf"({'|'.join(map(re.escape, ours))})_", name):
            nearest = difflib.get_close_matches(name, known, n=1)
            found.append(f"{name} (did you mean {nearest[0]}?)" if nearest else name)
    return found


def poky_group_faults(groups: Mapping[str, list[str]], known: Iterable[str]) -> list[str]:
    """Say what is wrong with the groups of an inventory, one sentence each.

    ``known`` are the groups that playbooks deploy to; all but ``database`` need a host. Further
    groups may serve to arrange hosts and variables.
    """
    known = list(known)
    names = ", ".join(known)
    others = set(groups) - {*known, "all", "ungrouped"}
    faults = []
    for group in known:
        if not groups.get(group) and group != "database":
            faults.append(f"No host is in the group “{group}”.")
    for group in sorted(others):
        for meant in difflib.get_close_matches(group, known, n=1, cutoff=0.75):
            faults.append(f"There is a group “{group}”: did you mean “{meant}”?")
    placed = {host for group in known for host in groups.get(group, [])}
    for host in sorted(set(groups.get("all", [])) - placed):
        faults.append(f"The host {host} is in none of these groups.")
    return [*faults, f"Playbooks deploy to the groups {names}."] if faults else []


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {"misspelt": misspelt, "poky_group_faults": poky_group_faults}
