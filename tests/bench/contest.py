"""How figures are compared: contestants take turns, and a ratio is the median of its rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from tests.bench.load import LoadError, Sample

LOADED = 0.25  #: foreign load in cores, above which figures are marked


class Contestant(Protocol):
    """Something that can be loaded for some seconds."""

    def run(self, seconds: int) -> Sample:
        """One slice."""


@dataclass(frozen=True)
class Contest:
    """Contestants by name, and which of them is measured by which: (name, yardstick)."""

    contestants: dict[str, Contestant]
    pairs: Sequence[tuple[str, str]]
    unit: str = "requests/s"
    facts: dict[str, Any] = field(default_factory=dict)
    warm_up: Sequence[str] = ()
    least_seconds: int = 1  #: of a slice, where a single request may take so long


@dataclass(frozen=True)
class Row:
    """A figure and its ratio to a yardstick of the same rounds; CPU is us per operation."""

    name: str
    unit: str
    value: float
    yardstick: str
    ratio: float
    runs: int
    yardstick_value: float
    ratios: list[float]
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    service_us: float = 0.0
    postgres_us: float = 0.0
    foreign: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def loaded(self) -> bool:
        """Whether something else kept the machine busy meanwhile."""
        return self.foreign > LOADED

    @property
    def lower_is_better(self) -> bool:
        """Whether the figure is a cost: time or memory."""
        return self.unit in ("ms", "MB", "us")


def run(
    contest: Contest, rounds: int, seconds: int, step: Callable[[], None], spare: int = 0
) -> list[Row]:
    """Let all contestants take turns, in another order each round.

    As long as rounds are disturbed by foreign load, up to ``spare`` more are run, and the least
    disturbed ones count.
    """
    seconds = max(seconds, contest.least_seconds)
    for name in contest.warm_up:
        _slice(contest.contestants[name], seconds)
    names = list(contest.contestants)
    done: list[dict[str, Sample]] = []
    while len(done) < rounds + spare and sum(_foreign(each) <= LOADED for each in done) < rounds:
        samples = {}
        for name in names if len(done) % 2 == 0 else reversed(names):
            samples[name] = _slice(contest.contestants[name], seconds)
            step()
        done.append(samples)
    counted = sorted(done, key=_foreign)[:rounds]
    return [
        compare(
            name,
            [samples[name] for samples in counted],
            yardstick,
            [samples[yardstick] for samples in counted],
            contest.unit,
            contest.facts,
        )
        for name, yardstick in contest.pairs
    ]


def _foreign(samples: dict[str, Sample]) -> float:
    return median(each.foreign for each in samples.values())


def _slice(contestant: Contestant, seconds: int) -> Sample:
    """One slice; on a crowded machine a second can pass without a single answer, so try again."""
    try:
        return contestant.run(seconds)
    except LoadError:
        return contestant.run(4 * seconds)


def compare(
    name: str,
    samples: Sequence[Sample],
    yardstick: str,
    others: Sequence[Sample],
    unit: str,
    facts: dict[str, Any] | None = None,
) -> Row:
    """One row: the median of each round's ratio, not the ratio of the medians."""
    ratios = [one.rate / other.rate for one, other in zip(samples, others, strict=True)]
    return Row(
        name=name,
        unit=unit,
        value=median(each.rate for each in samples),
        yardstick=yardstick,
        ratio=median(ratios),
        runs=len(samples),
        yardstick_value=median(each.rate for each in others),
        ratios=[round(ratio, 4) for ratio in ratios],
        p50_ms=median(each.p50 for each in samples) / 1000,
        p99_ms=median(each.p99 for each in samples) / 1000,
        service_us=median(each.service_us for each in samples),
        postgres_us=median(each.postgres_us for each in samples),
        foreign=median(each.foreign for each in (*samples, *others)),
        facts=facts or {},
    )


def save(rows: Sequence[Row], path: Path) -> None:
    """Write rows as JSON, one a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        figures = {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in vars(row).items()
        }
        lines.append(json.dumps({**figures, "loaded": row.loaded}))
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def load(path: Path) -> list[Row]:
    """Read what ``save`` has written; nothing if there is no such file."""
    if not path.exists():
        return []
    names = {each.name for each in fields(Row)}
    return [
        Row(**{name: value for name, value in row.items() if name in names})
        for row in json.loads(path.read_text())
    ]
