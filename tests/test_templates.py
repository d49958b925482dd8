"""What the roles render, and what the programs that will read it say.

The roles' own tasks render for every host of an inventory and ask this machine's programs:
tests/templates/render.yml. roles/poky has its templates in test_playbooks.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = sorted(path.name for path in (ROOT / "inventories").iterdir())


def render(environment: str, into: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Render for an inventory; its return code is 0 if all programs accept the result."""
    playbook = ROOT / ".venv-deploy/bin/ansible-playbook"
    assert playbook.exists(), "The deploy environment is missing: make .venv-deploy/.deploy"
    given = {"into": str(into), **variables}
    return subprocess.run(
        [playbook, "--check", "tests/templates/render.yml", "-i", f"inventories/{environment}"]
        + [word for name, value in given.items() for word in ("-e", f"{name}={value}")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_programs_accept_what_is_rendered(environment: str, tmp_path: Path) -> None:
    done = render(environment, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("*/postgresql/poky.conf"))
    assert list(tmp_path.glob("*/varnish/poky_values.vcl"))
    assert list(tmp_path.glob("*/nginx/poky.conf"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("variable", "value", "refusal"),
    [
        ("postgresql_max_connections", "many", "many"),
        ("varnish_object_ttl", "soon", "soon"),
        ("varnish_identity", "'a\nBogus=1'", "Unknown key 'Bogus'"),
        ("nginx_max_body_size", "huge", '"client_max_body_size" directive invalid value'),
    ],
)
def test_a_fault_is_refused_by_the_program_that_would_meet_it(
    variable: str, value: str, refusal: str, tmp_path: Path
) -> None:
    done = render("development", tmp_path, **{variable: value})
    assert done.returncode != 0
    assert refusal in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("role", "unit", "instance"),
    [
        ("postgresql", "postgresql@.service", "postgresql@15-main.service"),
        ("nginx", "nginx.service", "nginx.service"),
    ],
)
def test_a_sandbox_is_tight_and_systemd_knows_every_word(
    role: str, unit: str, instance: str, tmp_path: Path
) -> None:
    shutil.copy(f"/lib/systemd/system/{unit}", tmp_path / instance)
    drop_ins = tmp_path / f"{instance}.d"
    drop_ins.mkdir()
    shutil.copy(ROOT / f"roles/{role}/files/sandbox.conf", drop_ins / "poky.conf")
    assert words(["verify", "--man=no", "--recursive-errors=no", str(tmp_path / instance)]) == ""
    assert exposure(tmp_path / instance) < 5


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_sandbox_of_varnish_is_tight(tmp_path: Path) -> None:
    render("development", tmp_path)
    assert exposure(tmp_path / "poky-development/varnish/varnish.service") < 5


def words(arguments: list[str]) -> str:
    """All that systemd-analyze has to say."""
    done = subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


def exposure(unit: Path) -> float:
    """The verdict of systemd-analyze security: 0 (nothing can happen) to 10."""
    said = words(["security", "--offline=true", "--no-pager", str(unit)])
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said)
    assert found, said
    return float(found[1])
