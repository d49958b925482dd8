"""The templates of the roles, rendered as Ansible would, with values of a test's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jinja2
import jinja2.nativetypes
import yaml
from jinja2.runtime import Context, Undefined

ROOT = Path(__file__).resolve().parents[2]


class _Context(Context):
    """Resolves variables when they are used: a default may be a template itself, as in Ansible."""

    def resolve_or_missing(self, key: str) -> Any:
        value = super().resolve_or_missing(key)
        return _resolved(self.environment, self.get_all(), value)


def _resolved(environment: jinja2.Environment, variables: dict[str, Any], value: Any) -> Any:
    if isinstance(value, str) and ("{{" in value or "{%" in value):
        native = _environment(jinja2.nativetypes.NativeEnvironment)
        return native.from_string(value.strip()).render(variables)
    if isinstance(value, list):
        return [_resolved(environment, variables, each) for each in value]
    if isinstance(value, dict):
        return {name: _resolved(environment, variables, each) for name, each in value.items()}
    return value


def _environment(kind: type[jinja2.Environment]) -> jinja2.Environment:
    environment = kind(
        trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.context_class = _Context
    environment.filters.update(
        to_json=json.dumps,
        combine=lambda one, *others: {k: v for each in (one, *others) for k, v in each.items()},
        bool=lambda value: str(value).lower() in ("1", "true", "yes", "on"),
        ternary=lambda value, yes, no: yes if value else no,
        regex_replace=lambda text, old, new: re.sub(old, new, text),
        union=lambda one, other: [*one, *(each for each in other if each not in one)],
        difference=lambda one, other: [each for each in one if each not in other],
        human_to_bytes=_human_to_bytes,
        mandatory=_mandatory,
        poky_setting=lambda known, name: known.get(name) or variables("poky")[name],
        quote=lambda text: text,
        poky_prometheus_url=lambda *_: "",  # no inventory, and none in it
        poky_shards=lambda *_: [],
        dict2items=lambda given: [{"key": key, "value": value} for key, value in given.items()],
        items2dict=lambda items: {each["key"]: each["value"] for each in items},
        extract=lambda name, given, *rest: _extract(given[name], *rest),
    )
    return environment


def _extract(given: Any, *names: str) -> Any:
    return _extract(given[names[0]], *names[1:]) if names else given


def _human_to_bytes(text: str) -> int:
    return int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1].upper()]


def _mandatory(value: Any) -> Any:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    return value


def variables(role: str, root: Path = ROOT, **given: Any) -> dict[str, Any]:
    """A role's defaults and internals, not yet resolved; what is given wins."""
    found: dict[str, Any] = {"ansible_managed": "made by tests/support/roles.py"}
    for name in ("defaults", "vars"):
        found |= yaml.safe_load((root / "roles" / role / name / "main.yml").read_text()) or {}
    return found | given


def value(role: str, name: str, root: Path = ROOT, **given: Any) -> Any:
    """One variable of a role as its templates would see it."""
    values = variables(role, root, **given)
    return _resolved(_environment(jinja2.Environment), values, values[name])


def render(role: str, template: str, root: Path = ROOT, **given: Any) -> str:
    """A template of a role; StrictUndefined, as Ansible: a variable that is missing is an error."""
    text = (root / "roles" / role / "templates" / template).read_text()
    return _environment(jinja2.Environment).from_string(text).render(variables(role, root, **given))
