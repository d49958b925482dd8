"""The proof for tokens in short; the long form is ``make coherence ACCESS=tokens``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.coherence.faults import FAULTS, NONE, Fault
from tests.coherence.run import altered
from tests.coherence.sabotage import TOKEN_SABOTAGES, Sabotage
from tests.coherence.stack import Stack
from tests.coherence.tokens import run

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

IN_SHORT = ("purges-dropped", "varnish-restarted", "instance-killed")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with Stack(folder, lease_seconds=2, access="tokens") as stack:
        yield stack


@pytest.mark.parametrize(
    "fault", [NONE, *(fault for fault in FAULTS if fault.name in IN_SHORT)], ids=lambda f: f.name
)
def test_an_ended_pass_opens_nothing(stack: Stack, fault: Fault) -> None:
    with altered(stack, fault):
        result = run(stack, fault, reads=2000, seconds=5)
    assert result.ok, "\n".join(result.findings[:10])
    assert result.hits > 100
    assert result.after_end > 50


@pytest.mark.parametrize("sabotage", TOKEN_SABOTAGES, ids=lambda sabotage: sabotage.name)
def test_sabotage_is_seen(stack: Stack, sabotage: Sabotage) -> None:
    with altered(stack, sabotage.fault):
        for _ in range(25):  # chance decides when
            result = run(stack, sabotage.fault, reads=500, seconds=4)
            if result.admitted:
                return
    pytest.fail(f"not seen: {sabotage.says}")
