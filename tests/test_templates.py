"""What the roles render, and what the programs that will read it say.

The roles' own tasks render for every host of an inventory and ask this machine's programs:
tests/templates/render.yml. roles/poky has its templates in test_playbooks.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def render(
    environment: str, into: Path, variables: dict[str, object] | None = None, tags: str = "all"
) -> subprocess.CompletedProcess[str]:
    """Render for an inventory; its return code is 0 if all programs accept the result."""
    playbook = ROOT / ".venv-deploy/bin/ansible-playbook"
    assert playbook.exists(), "The deploy environment is missing: make .venv-deploy/.deploy"
    given = json.dumps({"into": str(into)} | (variables or {}))
    return subprocess.run(
        [
            *(playbook, "--check", "tests/templates/render.yml"),
            *("-i", f"inventories/{environment}", "-e", given, "--tags", tags),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("environment", ["development", "production"])
def test_the_programs_accept_what_is_rendered(environment: str, tmp_path: Path) -> None:
    done = render(environment, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.glob("*/postgresql/poky.conf"))
    assert list(tmp_path.glob("*/nginx/poky.conf"))
    units = list(tmp_path.glob("*/varnish/varnish.service"))
    assert units
    assert all(exposure(unit) < 5 for unit in units)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("role", "fault", "refusal"),
    [
        ("postgresql", {"postgresql_settings": {"shared_buffers": "much"}}, "much"),
        ("varnish", {"varnish_object_ttl": "soon"}, "soon"),
        ("varnish", {"varnish_identity": "a\nBogus=1"}, "Bogus"),
        ("nginx", {"nginx_send_timeout": "huge"}, "send_timeout"),
    ],
)
def test_a_fault_is_refused_by_the_program_that_would_meet_it(
    role: str, fault: dict[str, object], refusal: str, tmp_path: Path
) -> None:
    done = render("development", tmp_path, fault, tags=role)
    assert done.returncode != 0
    assert refusal in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_certificate_of_our_own_ca_is_renewed_before_its_end(tmp_path: Path) -> None:
    def run(**given: object) -> None:
        done = render("development", tmp_path, given, tags="nginx")
        assert done.returncode == 0, done.stdout + done.stderr

    def ends_within(days: int, file: Path) -> bool:
        command = ["openssl", "x509", "-noout", "-checkend", str(days * 86400), "-in", str(file)]
        return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode != 0

    run()
    ca = tmp_path / "ca/ca.pem"
    (certificate,) = set(tmp_path.glob("ca/*.pem")) - {ca}
    first = certificate.read_text(), ca.read_text()
    run()
    assert (certificate.read_text(), ca.read_text()) == first
    issue = ["openssl", "req", "-x509", "-key", certificate.with_suffix(".key"), "-subj", "/CN=a"]
    issue += ["-days", "20", "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-out", certificate]
    subprocess.run(issue, capture_output=True, check=True)
    assert ends_within(21, certificate)
    run()
    assert not ends_within(365, certificate)
    assert ca.read_text() == first[1]
    # At once, as playbooks/certificates.yml does.
    second = certificate.read_text()
    run()
    assert certificate.read_text() == second
    run(ca_renew_days=826)
    assert certificate.read_text() != second
    assert ca.read_text() == first[1]


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
