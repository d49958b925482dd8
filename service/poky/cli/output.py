"""Results on the terminal: tables for people, JSON for programs."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec

LINE_SECONDS = 30.0


def print_json(value: Any) -> None:
    """Print a value as JSON, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def show_pairs(pairs: dict[str, str], as_json: bool) -> None:
    """Print what became of each name."""
    if as_json:
        print_json(pairs)
    else:
        for name, word in pairs.items():
            click.echo(f"{name}: {word}")


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Print rows below their columns; nothing is cut, however narrow the terminal."""
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for number, row in enumerate([columns, *rows]):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(click.style(line.rstrip(), bold=number == 0))


def show_age(at: int | None) -> str:
    """A time (seconds since 1970) as how long it is ago."""
    return "-" if at is None else f"{max(time.time() - at, 0):.0f} s ago"


class _Lines:
    """A line from time to time, where no terminal shows a bar."""

    def __init__(self) -> None:
        self._due = time.monotonic() + LINE_SECONDS

    def say(self, line: str) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + LINE_SECONDS
            click.echo(line, err=True)


@contextlib.contextmanager
def progress_bar() -> Iterator[Any]:
    """A bar with the time left on a terminal, lines elsewhere; each new step is named."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    lines = _Lines()

    def say(at: Any) -> None:
        of_all = f": {at.done:,} of {at.total:,} ({at.done / at.total:.0%})" if at.total else ""
        lines.say(f"{at.step}{of_all}")

    if not console.is_terminal:
        yield say
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("migrate", total=None)
        yield lambda at: bar.update(
            task, description=at.step, completed=at.done, total=at.total or None
        )


@contextlib.contextmanager
def rate_bar(what: str, total: int | None, *, in_bytes: bool = False) -> Iterator[Any]:
    """Show how fast it goes and how long it will take on a terminal; lines elsewhere.

    Yields ``report(count)``; with ``in_bytes``, where ``total`` is a file's, ``report(count, at)``.
    """
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[count]:,} objects, {task.fields[rate]:,.0f} a second"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    console = Console(stderr=True)
    lines = _Lines()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(what, total=total or None, count=0, rate=0.0)

        def report(count: int, at: int | None = None) -> None:
            rate = count / max(time.monotonic() - began, 0.001)
            done = at if in_bytes else count
            bar.update(task, completed=done or 0, count=count, rate=rate)
            if not console.is_terminal:
                of_all = f" ({(done or 0) / total:.0%})" if total else ""
                lines.say(f"{what}: {count:,} objects{of_all}, {rate:,.0f} a second")

        yield report
