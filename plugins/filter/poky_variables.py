"""Filters that check the groups and variables which an operator wrote.

Ansible ignores a variable that no role reads, so ``varnish_storge`` would be silence and a cache of
the default size. The names that exist are those in the ``argument_specs`` of the roles. Likewise a
host in the group ``servcie`` would be left out.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
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


_OPTIONAL = ("database", "etcd", "shards", "monitoring", "backup")


def poky_group_faults(groups: Mapping[str, list[str]], known: Iterable[str]) -> list[str]:
    """Say what is wrong with the groups of an inventory, one sentence each.

    ``known`` are the groups that playbooks deploy to; all but ``database``, ``etcd``, ``shards``,
    ``monitoring`` and ``backup`` need a host. Further groups may serve to arrange hosts and
    variables.
    """
    known = list(known)
    names = ", ".join(known)
    others = set(groups) - {*known, "all", "ungrouped"}
    faults = []
    for group in known:
        if not groups.get(group) and group not in _OPTIONAL:
            faults.append(f"No host is in the group “{group}”.")
    for group in sorted(others):
        for meant in difflib.get_close_matches(group, known, n=1, cutoff=0.75):
            faults.append(f"There is a group “{group}”: did you mean “{meant}”?")
    placed = {host for group in known for host in groups.get(group, [])}
    for host in sorted(set(groups.get("all", [])) - placed):
        faults.append(f"The host {host} is in none of these groups.")
    return [*faults, f"Playbooks deploy to the groups {names}."] if faults else []


_TOKEN_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_TOKEN = re.compile(r"poky_[A-Za-z0-9]{12}_[A-Za-z0-9]{32}")
_TOKEN_ID = re.compile(r"[A-Za-z0-9]{12}")
_TOKEN_HASH = re.compile(r"[0-9a-f]{64}")
_GRANT = re.compile(
    r"((read|write|delete|list|admin)(,(?!:)|(?=:)))+:(?=.)[A-Za-z0-9_.,-]{0,256}\*?"
)


def poky_token_faults(tokens: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say what is wrong with the declared tokens, one sentence each; a secret is never shown.

    ``poky token apply`` says the same, but only once there is a release and a database.
    """
    tokens = list(tokens)
    names = [str(token.get("name", "")) for token in tokens]
    faults = [f"{name} is declared twice." for name in sorted({*names}) if names.count(name) > 1]
    for name, token in zip(names, tokens, strict=True):
        if not _TOKEN_NAME.fullmatch(name):
            faults.append(f"“{name}” is no token's name; 1 to 128 of A-Z a-z 0-9 _ . @ - make one.")
        if token.get("state") != "absent":
            faults += [f"{name}: {fault}" for fault in _token_faults(token)]
    return faults


def _token_faults(token: Mapping[str, Any]) -> Iterator[str]:
    if not token.get("grants"):
        yield "it needs at least one grant, such as read:tips."
    for grant in token.get("grants") or ():
        if not _GRANT.fullmatch(str(grant)):
            yield (
                f"“{grant}” is no grant: write RIGHT[,RIGHT…]:BUCKET with read, write, delete, list"
                " or admin, and a bucket's name, or the beginning of one and a *."
            )
    if token.get("token"):
        if token.get("id") or token.get("hash"):
            yield "give token, or id and hash, but not both."
        if not _TOKEN.fullmatch(str(token["token"])):
            yield "token is not the whole text that poky token generate shows."
    elif not (
        _TOKEN_ID.fullmatch(str(token.get("id") or ""))
        and _TOKEN_HASH.fullmatch(str(token.get("hash") or ""))
    ):
        yield "give token, or the id and hash that poky token generate shows."
    if token.get("expires"):
        yield from _expiry_faults(str(token["expires"]))


def _expiry_faults(text: str) -> Iterator[str]:
    try:
        end = datetime.fromisoformat(text)
    except ValueError:
        yield f"expires is “{text}”, which is no date such as 2027-06-30."
        return
    if (end if end.tzinfo else end.replace(tzinfo=UTC)) <= datetime.now(UTC):
        yield f"it has expired ({text}): choose a later day, or say state: absent."


class FilterModule:
    """What Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """The filters by name."""
        return {
            "misspelt": misspelt,
            "poky_group_faults": poky_group_faults,
            "poky_token_faults": poky_token_faults,
        }
