"""The inventories: equal in what they say, different in what it is. And what operators misspell."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from poky import forms

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = sorted((ROOT / "inventories").iterdir())
NAMES = [path.name for path in ENVIRONMENTS]
ROLES = sorted(path.parent.parent for path in ROOT.glob("roles/*/meta/argument_specs.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def settings(environment: Path) -> Iterator[tuple[str, str]]:
    """Every (file, variable) of an environment's group_vars."""
    for path in sorted(environment.glob("group_vars/*/*.yml")):
        for name in read(path):
            yield str(path.relative_to(environment)), name


@pytest.fixture(scope="module")
def variables() -> ModuleType:
    return importlib.import_module("plugins.filter.poky_variables")


def test_there_are_four_environments() -> None:
    assert NAMES == ["cluster", "development", "production", "qa"]


@pytest.mark.parametrize("environment", ENVIRONMENTS[1:], ids=NAMES[1:])
def test_environments_have_equal_files(environment: Path) -> None:
    def files(root: Path) -> list[Path]:
        found = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
        return sorted(set(found) - {Path("shards")})  # cluster makes its own, by a variable

    assert files(environment) == files(ENVIRONMENTS[0])


@pytest.mark.parametrize("environment", ENVIRONMENTS[1:], ids=NAMES[1:])
def test_environments_have_equal_settings(environment: Path) -> None:
    assert list(settings(environment)) == list(settings(ENVIRONMENTS[0]))


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=NAMES)
def test_environments_have_equal_groups_and_host_variables(environment: Path) -> None:
    inventory = read(environment / "hosts.yml")["all"]
    groups = ["database", "etcd", "shards", "service", "cache", "web", "monitoring", "backup"]
    assert list(inventory["children"]) == groups
    assert list(inventory["vars"]) == ["ansible_user", "ansible_ssh_common_args"]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=NAMES)
def test_every_setting_is_one_that_somebody_reads(environment: Path, variables: ModuleType) -> None:
    names = [name for _, name in settings(environment)]
    assert variables.misspelt(names, ROOT / "roles", also=["machine_image"]) == []


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=NAMES)
def test_a_secret_is_in_the_vault_and_is_used(environment: Path) -> None:
    vaulted = {name for path, name in settings(environment) if path.endswith("/vault.yml")}
    assert vaulted
    assert all(name.startswith("vault_") for name in vaulted)
    texts = [path.read_text() for path in environment.glob("group_vars/*/vars.yml")]
    assert vaulted == set(re.findall(r"\bvault_\w+", "\n".join(texts)))


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=NAMES)
def test_no_secret_is_in_git(environment: Path) -> None:
    """Encrypted under the environment's own vault id, or nothing but its place."""
    for path in environment.glob("group_vars/*/vault.yml"):
        text = path.read_text()
        if not text.startswith(f"$ANSIBLE_VAULT;1.2;AES256;{environment.name}\n"):
            values = [str(value) for value in read(path).values()]
            assert all(value == "" or "build/secrets/" in value for value in values)


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=NAMES)
def test_no_example_is_in_force(environment: Path) -> None:
    """A host that is only an example gets no traffic."""
    assert read(environment / "group_vars/service/vars.yml")["poky_statsd_host"] == ""


def test_addresses_are_documentation() -> None:
    for name in ("qa", "production"):
        text = (ROOT / f"inventories/{name}/hosts.yml").read_text()
        found = re.findall(r"\d+\.\d+\.\d+\.\d+", text)
        assert found
        assert all(re.match(r"192\.0\.2\.|198\.51\.100\.", address) for address in found)


@pytest.mark.parametrize("role", ROLES, ids=[role.name for role in ROLES])
def test_every_variable_of_a_role_has_a_type_and_a_sentence(role: Path) -> None:
    """What has no default is in the manual all the same, in a comment."""
    specification = read(role / "meta/argument_specs.yml")["argument_specs"]["main"]["options"]
    manual = (role / "defaults/main.yml").read_text()
    named = set(re.findall(rf"^(?:# )?({role.name}_\w+):", manual, re.MULTILINE))
    assert named == set(specification)
    defaults = set(read(role / "defaults/main.yml"))
    required = {name for name, option in specification.items() if option.get("required")}
    assert defaults == set(specification) - required


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("varnish_storge", "varnish_storge (did you mean varnish_storage?)"),
        ("poky_treads", "poky_treads (did you mean poky_threads?)"),
        ("nginx_zzzzzzzzzzzzzzzz", "nginx_zzzzzzzzzzzzzzzz"),
        ("machine_imgae", "machine_imgae (did you mean machine_image?)"),
    ],
)
def test_a_misspelt_variable_is_found(variables: ModuleType, name: str, verdict: str) -> None:
    assert variables.misspelt([name], ROOT / "roles", also=["machine_image"]) == [verdict]


def test_other_variables_are_nobodys_business(variables: ModuleType) -> None:
    names = ["ansible_user", "varnish_storage", "vault_x", "pokyness"]
    assert variables.misspelt(names, ROOT / "roles") == []


def test_the_cluster_has_as_many_shards_as_a_variable_says(tmp_path: Path) -> None:
    script = tmp_path / "inventories/cluster/shards"
    script.parent.mkdir(parents=True)
    script.write_bytes((ROOT / "inventories/cluster/shards").read_bytes())

    def said(**environment: str) -> Any:
        done = subprocess.run(
            [sys.executable, script, "--list"], env=environment, capture_output=True, check=True
        )
        return json.loads(done.stdout)

    assert said() == {"shards": {"hosts": []}, "_meta": {"hostvars": {}}}
    two = said(CLUSTER_SHARDS="2")
    assert two["shards"]["hosts"] == ["poky-cluster-shard-1", "poky-cluster-shard-2"]
    assert two["_meta"]["hostvars"]["poky-cluster-shard-2"] == {"poky_shard": 2}
    # Those that were made stay without it, for every other playbook.
    made = tmp_path / "build/machines/ssh_config.d"
    made.mkdir(parents=True)
    (made / "poky-cluster-shard-1").touch()
    assert said()["shards"]["hosts"] == ["poky-cluster-shard-1"]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=NAMES)
def test_the_service_understands_where_it_is_to_probe(environment: Path) -> None:
    given = [{}, *(dict(read(path)) for path in environment.glob("group_vars/*/vars.yml"))]
    for group in read(environment / "hosts.yml")["all"]["children"].values():
        given += [known or {} for known in group["hosts"].values()]
    for node in (node for known in given for node in known.get("poky_probe", [])):
        assert forms.caches(f"{node['name']}={node['url']}")
