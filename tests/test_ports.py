"""The ports that tests are given: no two of them are the same, whoever asks."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.service import free_ports
from tests.support.roles import ROOT


def test_nobody_is_given_the_port_of_another_process() -> None:
    code = "import json; from tests.service import free_ports; print(json.dumps(free_ports(300)))"
    others = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    given = free_ports(300)
    for other in others:
        given += json.loads(other.communicate(timeout=60)[0])
    assert len(given) == 1200
    assert len(set(given)) == len(given)
