"""One phase of the proof: a load, a fault that strikes meanwhile, and the verdict."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.coherence.checker import Verdict, check
from tests.coherence.faults import Fault
from tests.coherence.followers import Told, following
from tests.coherence.history import NEVER, History, Write
from tests.coherence.load import ANY_NODE, Count, Load, Plan
from tests.coherence.stack import Stack

_phases = itertools.count(1)


@dataclass(frozen=True)
class Result:
    """What a phase came to. Write times are those of acknowledged writes, in milliseconds."""

    name: str
    seconds: float
    verdict: Verdict
    counts: dict[Count, int]
    p50: float
    p99: float
    longest: float
    told: Told | None = None  # what followers were told, with several databases

    @property
    def ok(self) -> bool:
        if self.told is not None and self.told.findings:
            return False
        return self.verdict.ok and not self.counts[Count.MIXED] + self.counts[Count.SURPRISES]

    @property
    def hit_ratio(self) -> float:
        return self.counts[Count.HITS] / max(self.counts[Count.READS], 1)


@contextmanager
def altered(stack: Stack, fault: Fault) -> Iterator[None]:
    """What of the fault is in the programs themselves is there inside, and gone afterwards."""
    alterations = f"{fault.alterations}{' stalls' * fault.stalls}".strip()
    try:
        if alterations:
            stack.alter(alterations)
        if fault.vcl or fault.stalls:
            stack.use_vcl(fault.vcl, stalls=fault.stalls)
        yield
    finally:
        if alterations:
            stack.alter("")
        if fault.vcl or fault.stalls:
            stack.use_vcl()


def run(
    stack: Stack,
    fault: Fault,
    *,
    reads: int,
    seconds: float = 0,
    watch: Callable[[Load], None] = lambda _: None,
    meanwhile: Callable[[Load], AbstractContextManager[object]] = lambda _: nullcontext(),
) -> Result:
    """Strike an altered stack until there are so many reads and so many seconds have passed.

    ``meanwhile`` is entered when the load runs, before the first strike.
    """
    phase = next(_phases)
    bucket = stack.create_bucket(f"phase{phase}-{fault.name}")
    folder = stack.folder / bucket
    folder.mkdir()
    stack.forgive()
    followed = following(stack, bucket) if stack.owner_shards else nullcontext()
    with followed as told:
        load = Load(plan(stack, bucket, folder, ttl=fault.ttl))
        began = time.monotonic()
        try:
            watch(load)
            with meanwhile(load):
                while load.count(Count.READS) < reads or time.monotonic() < began + seconds:
                    fault.strike(stack)
            load.stop()
        finally:
            load.kill()
        took = time.monotonic() - began
    history = History()
    history.add(folder)
    if told is not None:
        told.check_writes(history.writes)
    times = sorted(_milliseconds(history.writes))
    for file in folder.iterdir():
        file.unlink()
    return Result(
        name=fault.name,
        seconds=took,
        verdict=check(history),
        counts={which: load.count(which) for which in Count},
        p50=_percentile(times, 0.50),
        p99=_percentile(times, 0.99),
        longest=_percentile(times, 1.0),
        told=told,
    )


def plan(stack: Stack, bucket: str, folder: Path, *, ttl: int = 0) -> Plan:
    """Half of the writers go straight to the service: they outlive a fault of the caches."""
    return Plan(
        bucket=bucket,
        folder=folder,
        write_ports=[*(service.port for service in stack.services), *[stack.nginx_port] * 2],
        read_ports=[
            *((n + 1, cache.port) for n, cache in enumerate(stack.caches) for _ in range(8)),
            *[(ANY_NODE, stack.nginx_port)] * 8,
        ],
        ttl=ttl,
    )


def _milliseconds(writes: Sequence[Write]) -> list[float]:
    return [(write.end - write.start) / 1e6 for write in writes if write.end != NEVER]


def _percentile(times: Sequence[float], share: float) -> float:
    return times[min(int(len(times) * share), len(times) - 1)] if times else 0.0
