"""The command: python -m tests.bench [SUITE…]."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.bench import contest, report
from tests.bench.contest import Row
from tests.bench.data import DATA
from tests.bench.load import LoadError
from tests.bench.machine import without_autogroup
from tests.bench.shards import SHARDS
from tests.bench.stack import Stack
from tests.bench.suites import LONGER, USUAL, Stage

ROOT = Path(__file__).parents[2]
SUITES = USUAL | LONGER | DATA | SHARDS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("suites", nargs=-1, type=click.Choice([*SUITES, "all"]), metavar="[SUITE]...")
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=1, show_default=True, help="How long a slice is.")
@click.option("--spare", default=2, show_default=True, help="Rounds for those that are disturbed.")
@click.option("--large", is_flag=True, help="Also 10^7 keys and a million requests.")
@click.option("--record", is_flag=True, help="Compare with this run from now on (docs/).")
@click.option(
    "--json", "path", type=Path, default=ROOT / "build" / "bench.json", help="Where rows go."
)
def main(
    suites: tuple[str, ...],
    rounds: int,
    seconds: int,
    spare: int,
    large: bool,
    record: bool,
    path: Path,
) -> None:
    """Measure Poky side by side with its yardsticks.

    Suites: get put batch cache buckets keys start memory (those by default), sizes, clients,
    access, paths, feed, expiry, transfer, shards, shards-skewed, shards-told,
    shard-faults, peers (Redis, etcd and the previous release; installs packages), all.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the stack is taken down
    console = Console(width=None if sys.stdout.isatty() else 180)
    chosen = list(SUITES) if "all" in suites else list(suites or USUAL)
    before = report.recorded(ROOT / "docs")
    rows: list[Row] = []
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="poky-bench-"))
    folder.chmod(0o755)  # varnishd's and nginx's workers have users of their own
    try:
        with without_autogroup(), Stack(folder) as stack, _progress() as progress:
            stage = Stage(stack, large)
            suites_done = progress.add_task("", total=len(chosen))
            for name in chosen:
                progress.update(suites_done, description=f"{name}: preparing")
                for each in SUITES[name](stage):
                    slices = progress.add_task("", total=rounds * len(each.contestants))
                    for number, title in enumerate(each.contestants):
                        if number == 0:
                            progress.update(suites_done, description=f"{name}: {title}")
                    step = partial(progress.advance, slices)
                    rows += contest.run(each, rounds, seconds, step, spare)
                    progress.remove_task(slices)
                    contest.save(rows, path)
                progress.advance(suites_done)
    except (LoadError, AssertionError) as error:
        raise click.ClickException(f"{error}. What ran has left its words in {folder}") from error
    shutil.rmtree(folder, ignore_errors=True)
    report.plot(rows, path.parent / "bench")
    report.show(rows, before, console)
    console.print(f"{time.monotonic() - started:.0f} s; rows in {path}")
    if record:
        report.record(rows, ROOT / "docs")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


if __name__ == "__main__":
    main()
