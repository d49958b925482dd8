"""Filters that check the variables which an operator wrote.

Ansible ignores a variable that nobody reads, so ``varnish_storge`` would be silence and a cache of
the default size. The names that exist are those in the ``argument_specs`` of the roles.
"""

import difflib
import re
from pathlib import Path

import yaml


def declared(roles):
    """The names of all variables of the roles in a directory."""
    names = set()
    for specification in Path(roles).glob("*/meta/argument_specs.yml"):
        for entry_point in yaml.safe_load(specification.read_text())["argument_specs"].values():
            names.update(entry_point.get("options", {}))
    return names


def misspelt(names, roles, also=()):
    """Tell which of our variables nobody reads: ``varnish_storge (did you mean varnish_storage?)``.

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


class FilterModule:
    """What Ansible looks for."""

    def filters(self):
        """The filters by name."""
        return {"misspelt": misspelt}
