"""What the cache promises, on a real Varnish: one .vtc for each sentence.

And that each promise is tested: poky.vcl broken in a known way must turn a .vtc red.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.vcl.sabotage import SABOTAGES, sabotaged
from tests.vcl.values import parameters

ROOT = Path(__file__).resolve().parents[1]
CASES = sorted(ROOT.glob("tests/vcl/*.vtc"))


# What the promises need of the role's parameters; the others are about size and speed.
_NEEDED = [
    word
    for each in parameters()
    if each.startswith(("max_restarts=", "nuke_limit=", "http_max_hdr=", "http_gzip_support="))
    for word in ("-p", each)
]
# Compiling each VCL with optimisation would be most of a test's CPU time; a shell reads the quotes.
_COMPILE = "'cc_command=exec gcc -O0 -w -fPIC -shared -Wl,-x -o %o %s'"
Result = subprocess.CompletedProcess[str]
# make check has the core: reads in flight (10-), the purge listener and spellings (30-).
_MARKS: dict[str, Any] = {"1": (), "3": ()}


def case(beginning: str) -> Path:
    (found,) = (each for each in CASES if each.name.startswith(beginning))
    return found


def varnishtest(case: Path, *options: str) -> Result:
    """Run one .vtc; the options are those of tests/vcl/values.py."""
    program = shutil.which("varnishtest")
    assert program, "varnishtest is missing: install varnish and varnish-modules (make packages)"
    vcl = shlex.join([sys.executable, "-m", "tests.vcl.values", *options])
    return subprocess.run(
        [
            program,
            *("-t", "120", "-b", "20M"),
            *_NEEDED,
            *("-p", _COMPILE),
            f"-Dvcl=cd {shlex.quote(str(ROOT))}; {vcl}",
            str(case),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "case",
    [pytest.param(each, marks=_MARKS.get(each.name[0], pytest.mark.slow)) for each in CASES],
    ids=lambda case: case.stem,
)
def test_promise(case: Path) -> None:
    result = varnishtest(case)
    assert result.returncode == 0, result.stdout[-8000:]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_sabotage_is_seen(sabotage: str) -> None:
    result = varnishtest(case(SABOTAGES[sabotage].caught_by), "--sabotage", sabotage)
    assert result.returncode == 2, "passed"
    # Red for what clients, servers or counters saw, not because nothing started.
    red = re.search(r"^---- ([cs]\d |v1 +Not true)", result.stdout, re.MULTILINE)
    assert red, result.stdout[-8000:]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_case_opens_with_the_sentence_that_it_proves(case: Path) -> None:
    assert re.match(r'varnishtest "[A-Z][^"]+[.]"\n', case.read_text())


def test_sabotage_of_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="plain-purge"):
        sabotaged("vcl 4.1;", "plain-purge")
