"""Rows of figures, and the table that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

DIRECT, CHAIN = "D", "N"  # the service alone; nginx, Varnish and the service


@dataclass
class Row:
    """What came of one kind of abuse at one door."""

    part: str
    name: str
    door: str
    expected: str
    seen: str = ""
    count: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violations


def show(rows: Sequence[Row], console: Console) -> None:
    """The table, and below it each violation as a sentence."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("part", "abuse", "door"):
        table.add_column(column, no_wrap=True)
    table.add_column("tried", justify="right")
    table.add_column("violations", justify="right")
    table.add_column("expected")
    table.add_column("seen")
    for row in rows:
        table.add_row(
            *(row.part, row.name, row.door, f"{row.count:,}"),
            f"[{'green' if row.ok else 'red'}]{len(row.violations)}",
            *(row.expected, row.seen),
        )
    console.print(table)
    for row in rows:
        for sentence in row.violations[:10]:
            console.print(f"[red]{row.part}, {row.name}, {row.door}:[/red] {sentence}", markup=True)
        if len(row.violations) > 10:
            console.print(f"  and {len(row.violations) - 10} more")
