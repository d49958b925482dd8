"""What the figures look like: a table, plots, and a comparison with what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pygal
from pygal.style import Style
from rich.console import Console
from rich.table import Table

from tests.bench.contest import Row, load, save

#: What is asked of ratios, by name and yardstick.
GOALS = {
    ("get.hit", "plain-varnish"): 0.88,
    ("get.hit", "redis-get"): 1.3,
    ("get.direct", "naive"): 2.5,
    ("get.direct", "previous-get"): 2.5,
    ("get.direct", "etcd-get"): 3.0,
    ("get.direct", "redis-get"): 0.9,
    ("get.direct", "pgbench-select"): 0.5,
    ("get.direct.1k.8", "etcd-get.1k.8"): 2.5,
    ("get.direct.1k.1", "previous-get.1k.1"): 0.98,
    ("get.miss", "get.direct"): 0.5,
    ("put.direct", "naive"): 1.3,
    ("put.direct", "pgbench-upsert"): 0.6,
    ("put.direct", "etcd-put"): 1.5,
    ("put.direct", "redis-put"): 0.6,
    ("put.direct.1k.8", "etcd-put.1k.8"): 1.1,
    ("put.direct.1k.8", "previous-put.1k.8"): 1.1,
    ("put.direct.1k.1", "previous-put.1k.1"): 0.98,
    ("put.direct.1k.128", "put.direct"): 0.9,
    ("put.if-match", "put.direct"): 0.8,
    ("put.purged", "put.direct"): 0.75,
    ("put.purged-2", "put.direct"): 0.7,
    ("put.through", "put.direct"): 0.5,
    ("mixed-90.get", "previous-mixed-90.get"): 2.0,
    ("mixed-90.put", "previous-mixed-90.put"): 1.3,
    ("mixed-50.get", "previous-mixed-50.get"): 2.0,
    ("mixed-50.put", "previous-mixed-50.put"): 1.3,
    ("batch-set-100", "pgbench-upsert"): 3.0,
    ("batch-get-100", "pgbench-select"): 1.5,
    ("buckets-1000", "buckets-1"): 0.7,
    ("buckets-1000.flat", "buckets-1.flat"): 0.85,
    ("keys-1e7", "keys-1e5"): 0.8,
    ("hit.tokens", "hit.open"): 0.8,
}
#: The same of costs, which are to be no higher.
COST_GOALS = {
    ("hit.tokens.cpu", "hit.open.cpu"): 1.2,
    ("get.tokens.cpu", "get.open.cpu"): 1.05,
    ("put.tokens.cpu", "put.open.cpu"): 1.05,
    **{
        (f"others.{verb}.{fault}", f"others.{verb}.well"): 1.2
        for verb in ("get", "put")
        for fault in ("stopped", "hung", "read-only", "locked", "slow")
    },
}
#: And of figures: at most.
LIMITS = {"start": 500, "memory.idle": 60, "memory.loaded": 60}
SERVICE_US = {"get.direct": 100}

TOLERANCE = 0.15  #: how much worse than recorded a ratio may be before it is reported

_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="#888",
    foreground_strong="#888",
    foreground_subtle="#bbb",
    colors=("#2563eb", "#f59e0b", "#10b981"),
    font_family="sans-serif",
)


Recorded = dict[tuple[str, str], Row]


def recorded(docs: Path) -> Recorded:
    """The rows to compare with, by name and yardstick."""
    return {(row.name, row.yardstick): row for row in load(docs / "performance.json")}


def is_regression(row: Row, before: Row | None) -> bool:
    """Whether a ratio is worse than the recorded one by more than the tolerance."""
    if before is None:
        return False
    if row.lower_is_better:
        return row.ratio > before.ratio * (1 + TOLERANCE)
    return row.ratio < before.ratio * (1 - TOLERANCE)


def missed(row: Row) -> str:
    """The goal that a row does not reach, or nothing."""
    goal = GOALS.get((row.name, row.yardstick))
    if goal is not None and row.ratio < goal:
        return f"ratio {goal:g}"
    most = COST_GOALS.get((row.name, row.yardstick))
    if most is not None and row.ratio > most:
        return f"ratio at most {most:g}"
    if row.name in LIMITS and row.value > LIMITS[row.name]:
        return f"at most {LIMITS[row.name]} {row.unit}"
    if row.name in SERVICE_US and row.service_us > SERVICE_US[row.name]:
        return f"at most {SERVICE_US[row.name]} us"
    return ""


_COLUMNS = (
    *("figure", "median", "unit", "ratio", "of", "rounds", "p50 ms", "p99 ms"),
    *("service us", "PostgreSQL us", ""),
)


def _cells(row: Row, before: Row | None) -> list[str]:
    notes = []
    if goal := missed(row):
        notes.append(f"goal: {goal}")
    if before and is_regression(row, before):
        notes.append(f"WORSE than {before.ratio:.2f}")
    if row.loaded:
        notes.append(f"LOADED {row.foreign:.1f}")
    digits = 0 if row.value >= 100 else 1
    return [
        row.name,
        f"{row.value:,.{digits}f}",
        row.unit,
        f"{row.ratio:.2f}",
        row.yardstick,
        f"{min(row.ratios):.2f}-{max(row.ratios):.2f}",
        *(f"{each:.1f}" if each else "" for each in (row.p50_ms, row.p99_ms)),
        *(f"{each:.0f}" if each else "" for each in (row.service_us, row.postgres_us)),
        ", ".join(notes),
    ]


def show(rows: Sequence[Row], before: Recorded, console: Console) -> None:
    """The table on the terminal."""
    table = Table(*_COLUMNS, box=None, header_style="bold", pad_edge=False)
    for column in table.columns[1:4] + table.columns[5:10]:
        column.justify = "right"
    table.columns[2].justify = "left"
    for column in table.columns:
        column.no_wrap = True
    for row in rows:
        table.add_row(*_cells(row, before.get((row.name, row.yardstick))))
    console.print(table, soft_wrap=not console.is_terminal)
    worse = [row for row in rows if is_regression(row, before.get((row.name, row.yardstick)))]
    if worse:
        console.print(
            f"{len(worse)} of {len(rows)} ratios are more than {TOLERANCE:.0%} worse than recorded."
        )
    if any(row.loaded for row in rows):
        console.print("LOADED: other processes used so many cores meanwhile. Trust CPU times more.")


def markdown(rows: Sequence[Row]) -> str:
    """The table for docs/performance.md."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---|--:|---|--:|---|--:|--:|--:|--:|--:|---|"]
    lines += ["| " + " | ".join(_cells(row, None)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], folder: Path) -> None:
    """One SVG per way of growing, and one with the ratios that goals speak of."""
    folder.mkdir(parents=True, exist_ok=True)
    goals = [row for row in rows if (row.name, row.yardstick) in GOALS]
    if goals:
        chart = pygal.HorizontalBar(
            style=_STYLE, title="Ratio to the yardstick", height=60 + 50 * len(goals),
            legend_at_bottom=True, print_values=True, formatter=lambda value: f"{value:.2f}",
        )  # fmt: skip
        chart.x_labels = [f"{row.name} / {row.yardstick}" for row in goals]
        chart.add("measured", [row.ratio for row in goals])
        chart.add("goal", [GOALS[row.name, row.yardstick] for row in goals])
        _write(chart, folder / "ratios.svg")
    for method in ("get", "put"):
        for growing, label, fact in (
            ("clients", "clients", "clients"),
            ("size", "bytes of a value", "value_bytes"),
        ):
            grown = [row for row in rows if row.name.startswith(f"{method}.{growing}.")]
            if grown:
                chart = pygal.Line(
                    style=_STYLE, title=f"{method.upper()} per second by {label}",
                    logarithmic=growing == "size", height=360, legend_at_bottom=True,
                )  # fmt: skip
                chart.x_labels = [f"{row.facts[fact]:,}" for row in grown]
                chart.add("Poky", [row.value for row in grown])
                chart.add("naive", [row.yardstick_value for row in grown])
                _write(chart, folder / f"{method}-{growing}.svg")


def _write(chart: pygal.graph.graph.Graph, path: Path) -> None:
    chart.config.js = []  # a picture, not a program
    chart.render_to_file(str(path))


def record(rows: Sequence[Row], docs: Path) -> None:
    """Compare with these rows from now on: JSON, plots, and the table between two marks."""
    known = recorded(docs) | {(row.name, row.yardstick): row for row in rows}
    save(list(known.values()), docs / "performance.json")
    plot(list(known.values()), docs / "performance")
    page = docs / "performance.md"
    before, mark, rest = page.read_text().partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- end of table -->\n")
    page.write_text(f"{before}{mark}{markdown(list(known.values()))}{end}{after}")
