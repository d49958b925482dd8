"""The proof in short: no read is stale, with and without faults, and each sabotage is seen.

The long form, with every fault and a million reads, is ``make coherence``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.coherence.faults import FAULTS, MOVES, NONE, Fault
from tests.coherence.followers import Told
from tests.coherence.history import NEVER, Write
from tests.coherence.load import Count, key_of
from tests.coherence.run import altered, run
from tests.coherence.sabotage import MOVE_SABOTAGES, SABOTAGES, Sabotage
from tests.coherence.stack import Stack
from tests.service import wait_until

# Chance has to strike within seconds: other tests would take the CPUs that it needs.
pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(600)]

IN_SHORT = (
    *("slow-reads", "stalls", "purges-dropped", "purges-late", "varnish-restarted"),
    *("instance-killed", "expiring-slow-reads"),
)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("stack"), lease_seconds=2) as stack:
        yield stack


@pytest.mark.parametrize(
    "fault", [NONE, *(fault for fault in FAULTS if fault.name in IN_SHORT)], ids=lambda f: f.name
)
def test_no_read_is_stale(stack: Stack, fault: Fault) -> None:
    with altered(stack, fault):
        result = run(stack, fault, reads=2000, seconds=5)
    assert result.ok, "\n".join(result.verdict.findings) or result.counts
    assert result.counts[Count.WRITES] > 20
    assert result.counts[Count.HITS] > 100
    assert result.counts[Count.TOLD]


def test_no_read_is_stale_while_its_bucket_moves(tmp_path: Path) -> None:
    """And its followers are told of each change once; with a sabotage the checker says no."""
    with Stack(tmp_path, lease_seconds=2, shards=3) as stack:
        for fault in MOVES:
            with altered(stack, fault):
                result = run(stack, fault, reads=2000, seconds=8)
            assert result.told
            assert result.ok, (result.told.findings[:5], result.verdict.findings, result.counts)
            assert min(result.counts[Count.WRITES], result.told.changes) > 20
            assert result.counts[Count.HITS] > 100
        for sabotage in MOVE_SABOTAGES:
            with altered(stack, sabotage.fault):
                result = run(stack, sabotage.fault, reads=500, seconds=8)
            assert result.told
            assert result.told.findings, f"not seen: {sabotage.says}"
            assert not result.ok


def test_what_was_acknowledged_has_to_be_recorded() -> None:
    key = key_of(3, 1)
    logged: list[tuple[str, str, str | None, int]]
    logged = [("k3-1", "put", '"5-a"', 5), ("k3-1", "delete", None, 6), ("k3-1", "put", '"7-b"', 7)]
    told = Told(logged=logged)
    told.check_writes([Write(key, 0, 1, 10, 0), Write(key, 2, 3, 11, 1), Write(key, 4, 5, 14, 0)])
    assert told.findings == []
    told.check_writes([Write(key, 6, 7, 15, 1), Write(key, 6, NEVER, 16, 0)])
    assert len(told.findings) == 1
    told.check_writes([Write(key, 8, 9, 18, 0)])
    assert len(told.findings) == 2


def test_nothing_is_left_behind_by_a_run_that_is_ended(tmp_path: Path) -> None:
    """It took 64 MB of /tmp each time: the log in Varnish's shared memory."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.coherence"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_until(lambda: [*tmp_path.glob("coherence-*/n2/_.vsm_mgt")], 60, "Varnish is up")
        process.terminate()
        process.communicate(timeout=60)
        assert [*tmp_path.iterdir()] == []
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.name)
def test_sabotage_is_seen(stack: Stack, sabotage: Sabotage) -> None:
    with altered(stack, sabotage.fault):
        for _ in range(25):  # chance decides when; a busy machine needs more of them
            result = run(stack, sabotage.fault, reads=500, seconds=4)
            if result.verdict.stale or result.verdict.revealed:
                return
    pytest.fail(f"not seen within {result.verdict.reads} reads: {sabotage.says}")
