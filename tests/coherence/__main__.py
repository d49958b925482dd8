"""``make coherence``: the long form of the proof, with a progress line and a table.

The environment says how long and what: MINUTES=60, FAULT="none purges-lost"; SABOTAGE=plain-purge
breaks the stack on purpose. SHARDS=3: a bucket moves among three databases, and is followed.
PAGE=yes: the admin listener's page is opened during each fault, and must say within five seconds
what is wrong. ACCESS=tokens: tokens that come and go under readers, without writers. CLUSTER=yes:
three PostgreSQL under Patroni, whose leader is killed and frozen, with leases of 10, 30 and 60 s
(LEASE="35"). Exit status 1 if the page did not, if anything was stale, older than what a refusal
told, went back or had no order, if a follower missed a change or was told of one twice, or if a
token was answered after its revocation was acknowledged.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from tests.coherence import cluster, cost, page, tokens, working_set
from tests.coherence.faults import FAULTS, MOVES, NONE, Fault
from tests.coherence.load import Count, Load
from tests.coherence.run import Result, altered, run
from tests.coherence.sabotage import MOVE_SABOTAGES, SABOTAGES, TOKEN_SABOTAGES, Sabotage
from tests.coherence.stack import Stack

Choice = TypeVar("Choice", Fault, Sabotage)

READS_WITHOUT_FAULTS = 1_000_000
READS_WITH_EACH_FAULT = 100_000

console = Console(width=None if sys.stdout.isatty() else 200)


def main() -> int:
    logging.getLogger("poky").setLevel(logging.CRITICAL)  # of the faults that we make
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stack is taken down
    if os.environ.get("ACCESS") == "tokens":
        return _tokens()
    if os.environ.get("CLUSTER"):
        return _cluster()
    shards = int(os.environ.get("SHARDS", "1"))
    faults = _chosen("FAULT", (NONE, *MOVES) if shards > 1 else (NONE, *FAULTS))
    breaks = MOVE_SABOTAGES if shards > 1 else SABOTAGES
    sabotages = _chosen("SABOTAGE", breaks) if "SABOTAGE" in os.environ else []
    if sabotages and "FAULT" not in os.environ:
        faults = []
    seconds = float(os.environ.get("MINUTES", "0")) * 60 / len([*faults, *sabotages])
    results: list[Result] = []
    sights: list[page.Sight] | None = [] if os.environ.get("PAGE") else None
    try:
        with tempfile.TemporaryDirectory(prefix="coherence-") as folder:
            console.print("Starting PostgreSQL, two instances, two Varnish nodes and nginx …")
            with Stack(Path(folder), shards=shards) as stack:
                for fault in [*faults, *(sabotage.fault for sabotage in sabotages)]:
                    is_long = fault is NONE and shards == 1
                    reads = READS_WITHOUT_FAULTS if is_long else READS_WITH_EACH_FAULT
                    results.append(_run(stack, fault, reads, seconds, sights))
    finally:  # what was seen before something broke down
        console.print(_table(results))
        if sights:
            console.print(_sights(sights))
    if not os.environ.get("FAULT") and not sabotages and shards == 1:
        _cost()
        _hit_ratio()
    return 0 if all(each.ok for each in [*results, *(sights or ())]) else 1


def _tokens() -> int:
    """The same for tokens (tests.coherence.tokens)."""
    faults = _chosen("FAULT", (NONE, *FAULTS))
    sabotages = _chosen("SABOTAGE", TOKEN_SABOTAGES) if "SABOTAGE" in os.environ else []
    if sabotages and "FAULT" not in os.environ:
        faults = []
    seconds = float(os.environ.get("MINUTES", "0")) * 60 / len([*faults, *sabotages])
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("fault")
    for column in ("seconds", "reads", "hits", "after an end", "admitted", "refused", "changes"):
        table.add_column(column, justify="right")
    all_ok = True
    try:
        with tempfile.TemporaryDirectory(prefix="coherence-") as folder:
            console.print("Starting PostgreSQL, two instances, two Varnish nodes and nginx …")
            with Stack(Path(folder), access="tokens") as stack:
                for fault in [*faults, *(sabotage.fault for sabotage in sabotages)]:
                    console.print(f"{fault.name}: {fault.says}")
                    began = time.monotonic()
                    with altered(stack, fault):
                        seen = tokens.run(
                            stack, fault, reads=READS_WITH_EACH_FAULT, seconds=seconds
                        )
                    all_ok &= seen.ok
                    for sentence in seen.findings[:5]:
                        console.print(f"  [red]{sentence}[/red]")
                    numbers = (time.monotonic() - began, seen.reads, seen.hits, seen.after_end)
                    rest = (seen.admitted, seen.refused, seen.changes)
                    table.add_row(
                        f"[{'green' if seen.ok else 'red'}]{fault.name}",
                        *(f"{number:,.0f}" for number in (*numbers, *rest)),
                    )
    finally:
        console.print(table)
    return 0 if all_ok else 1


def _cluster() -> int:
    """The leader of a cluster is lost under load, with leases of several lengths."""
    if absent := cluster.missing():
        console.print(f"CLUSTER=yes needs Debian 13's {', '.join(absent)} in PATH.")
        return 2
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("leader")
    for column in (
        *("lease s", "first write s", "reads", "stale", "inversions", "lost", "writes", "unknown"),
        *("cached reads", "refused", "for s", "longest ms"),
    ):
        table.add_column(column, justify="right")
    all_ok = True
    try:
        with tempfile.TemporaryDirectory(prefix="coherence-") as name:
            folder = Path(name)
            folder.chmod(0o755)  # PostgreSQL's user goes through it
            console.print("Starting three PostgreSQL, etcd, two instances, two Varnish, nginx …")
            with cluster.LocalCluster(folder / "cluster") as server:
                for lease in os.environ.get("LEASE", "10 30 60").split():
                    stack = Stack(
                        folder / lease, lease_seconds=float(lease), purge_timeout=2, server=server
                    )
                    with stack:
                        for loss in cluster.LOSSES:
                            console.print(f"The leader is {loss}, with leases of {lease} s …")
                            seen = cluster.lose(stack, server, loss)
                            all_ok &= seen.result.ok
                            _add_loss(table, lease, seen)
    finally:
        console.print(table)
    return 0 if all_ok else 1


def _add_loss(table: Table, lease: str, seen: cluster.Loss) -> None:
    result, witness = seen.result, seen.witness
    for sentence in result.verdict.findings[:5]:
        console.print(f"  [red]{sentence}[/red]")
    numbers = (
        *(result.verdict.reads, result.verdict.stale, result.verdict.inversions),
        *(result.counts[Count.SURPRISES], result.counts[Count.WRITES]),
        *(result.counts[Count.UNCONFIRMED], witness.served, len(witness.refused)),
    )
    table.add_row(
        f"[{'green' if result.ok else 'red'}]{result.name}",
        *(lease, f"{seen.first:.1f}", *(f"{number:,}" for number in numbers)),
        *(f"{seen.refused_for:.1f}", f"{result.longest:.0f}"),
    )


def _cost() -> None:
    with tempfile.TemporaryDirectory(prefix="coherence-") as folder:
        without, purged = cost.of_a_write(Path(folder))
    console.print(
        f"An undisturbed PUT takes {without:.2f} ms without caches, {purged:.2f} ms with one:"
        f" {purged - without:+.2f} ms."
    )


def _hit_ratio() -> None:
    seconds = working_set.SECONDS
    with (
        tempfile.TemporaryDirectory(prefix="coherence-") as folder,
        Progress(console=console, transient=True) as progress,
    ):
        task = progress.add_task(f"Reading {working_set.KEYS:,} keys evenly", total=seconds)
        reads, ratio = working_set.hit_ratio(
            Path(folder), seconds, lambda done: progress.update(task, completed=done)
        )
    console.print(
        f"{working_set.KEYS:,} keys read evenly for {seconds} s through a cache that was empty:"
        f" {reads:,} reads, {100 * ratio:.1f} % hits."
    )


def _chosen(variable: str, there_are: Sequence[Choice]) -> list[Choice]:
    """Those that the environment names, or all; exits with the list if one is not there."""
    names = os.environ.get(variable, "").split()
    if not set(names) <= {each.name for each in there_are}:
        console.print(f"{variable} is one or more of:")
        for each in there_are:
            console.print(f"  {each.name}: {each.says}")
        sys.exit(2)
    return [each for each in there_are if not names or each.name in names]


def _run(
    stack: Stack, fault: Fault, reads: int, seconds: float, sights: list[page.Sight] | None
) -> Result:
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

    @contextmanager
    def meanwhile(load: Load) -> Iterator[None]:
        if sights is None:
            yield
            return
        with page.opened(stack, fault, load) as sight:
            sights.append(sight)
            yield

    live = Live(get_renderable=line, console=console, transient=True, refresh_per_second=2)
    with live, altered(stack, fault):
        result = run(
            stack, fault, reads=reads, seconds=seconds, watch=loads.append, meanwhile=meanwhile
        )
    verdict = result.verdict
    console.print(
        f"  {verdict.reads:,} reads in {result.seconds:.0f} s: {verdict.stale} stale,"
        f" {verdict.revealed} after a refusal that told of more, {verdict.inversions} inversions,"
        f" {verdict.unordered} keys without an order"
    )
    findings = verdict.findings[:5]
    if result.told is not None:
        told = result.told
        console.print(
            f"  {told.changes:,} changes, told to {told.followers} followers each:"
            f" {len(told.findings)} missed, twice, out of order or not recorded"
        )
        findings = findings + told.findings[:5]
    for sentence in findings:
        console.print(f"  [red]{sentence}[/red]")
    return result


def _sights(sights: list[page.Sight]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("fault")
    table.add_column("seconds", justify="right")
    table.add_column("what the page said")
    for sight in sights:
        said = sight.headline or " ".join(sorted(sight.others)) or "All is well"
        table.add_row(
            f"[{'green' if sight.ok else 'red'}]{sight.fault.name}",
            "" if sight.seconds is None else f"{sight.seconds:.1f}",
            said,
        )
    return table


def _table(results: list[Result]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("fault")
    for column in (
        *("seconds", "reads", "hits %", "stale", "revealed", "inversions", "unordered", "mixed"),
        *("lost", "writes", "told", "refused", "unknown", "p50 ms", "p99 ms", "longest ms"),
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
            f"{verdict.revealed:,}",
            f"{verdict.inversions:,}",
            f"{verdict.unordered:,}",
            f"{counts[Count.MIXED]:,}",
            f"{counts[Count.SURPRISES]:,}",
            f"{counts[Count.WRITES]:,}",
            f"{counts[Count.TOLD]:,}",
            f"{counts[Count.REFUSED]:,}",
            f"{counts[Count.UNCONFIRMED]:,}",
            f"{result.p50:.1f}",
            f"{result.p99:.1f}",
            f"{result.longest:.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())
