"""``make coherence``: the long form of the proof, with a progress line and a table.

The environment says how long and what: MINUTES=60, FAULT="none purges-lost", SABOTAGE=name.
Exit status 1 if anything was stale, went back or had no order.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tests.coherence.faults import FAULTS, NONE, Fault
from tests.coherence.load import Count, Load
from tests.coherence.run import Result, run
from tests.coherence.stack import Stack

READS_WITHOUT_FAULTS = 1_000_000
READS_WITH_EACH_FAULT = 100_000

console = Console()


def main() -> int:
    names = os.environ.get("FAULT", "").split()
    faults = [fault for fault in (NONE, *FAULTS) if not names or fault.name in names]
    unknown = set(names) - {fault.name for fault in faults}
    if unknown:
        console.print(f"No such fault: {', '.join(unknown)}. There are:")
        console.print(*(f"  {fault.name}: {fault.says}" for fault in (NONE, *FAULTS)), sep="\n")
        return 2
    seconds = float(os.environ.get("MINUTES", "0")) * 60 / len(faults)
    results = []
    with tempfile.TemporaryDirectory(prefix="coherence-") as folder:
        console.print("Starting PostgreSQL, two instances, two Varnish nodes and nginx …")
        with Stack(Path(folder)) as stack:
            for fault in faults:
                results.append(_run(stack, fault, seconds))
                _show_findings(results[-1])
    console.print(_table(results))
    return 0 if all(result.ok for result in results) else 1


def _run(stack: Stack, fault: Fault, seconds: float) -> Result:
    reads = READS_WITHOUT_FAULTS if fault is NONE else READS_WITH_EACH_FAULT
    loads: list[Load] = []
    began = time.monotonic()

    def line() -> str:
        if not loads:
            return f"{fault.name}: {fault.says}"
        count = loads[0].count
        return (
            f"{fault.name}: {fault.says} {time.monotonic() - began:.0f} s,"
            f" {count(Count.READS):,} of {reads:,} reads, {count(Count.HITS):,} hits,"
            f" {count(Count.WRITES):,} writes"
        )

    if not console.is_terminal:
        console.print(line())
    with Live(get_renderable=line, console=console, transient=True, refresh_per_second=2):
        return run(stack, fault, reads=reads, seconds=seconds, watch=loads.append)


def _show_findings(result: Result) -> None:
    for sentence in result.verdict.findings[:5]:
        console.print(f"  [red]{result.name}[/red]: {sentence}")


def _table(results: list[Result]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("fault")
    for column in (
        *("seconds", "reads", "hits %", "stale", "inversions", "unordered", "mixed", "lost"),
        *("writes", "refused", "unknown", "p50 ms", "p99 ms", "longest ms"),
    ):
        table.add_column(column, justify="right")
    for result in results:
        counts, verdict = result.counts, result.verdict
        table.add_row(
            f"[{'green' if result.ok else 'red'}]{result.name}",
            f"{result.seconds:.0f}",
            f"{verdict.reads:,}",
            f"{100 * result.hit_ratio:.1f}",
            f"{verdict.stale:,}",
            f"{verdict.inversions:,}",
            f"{verdict.unordered:,}",
            f"{counts[Count.MIXED]:,}",
            f"{counts[Count.SURPRISES]:,}",
            f"{counts[Count.WRITES]:,}",
            f"{counts[Count.REFUSED]:,}",
            f"{counts[Count.UNCONFIRMED]:,}",
            f"{result.p50:.1f}",
            f"{result.p99:.1f}",
            f"{result.longest:.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
