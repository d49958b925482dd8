"""Figures: metrics that are counted where something happens, and read when they are asked for."""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

Labels = str | tuple[str, ...]

#: Bounds of times from a read in memory to a statement that is given up.
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64)
_MOST_SIZE = 256


class Histogram:
    """Observations by upper bound, a histogram for each value of the labels. Any thread may add."""

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self._series: dict[Labels, list[float]] = {}  # counts by bound, the rest, the sum
        self._lock = threading.Lock()

    def observe(self, labels: Labels, value: float) -> None:
        """Add an observation."""
        with self._lock:
            series = self._series.get(labels)
            if series is None:
                series = self._series[labels] = [0.0] * (len(self.bounds) + 2)
            series[bisect_left(self.bounds, value)] += 1
            series[-1] += value

    def series(self) -> dict[Labels, list[float]]:
        """For each value of the labels: counts by bound, of those above all, and the sum."""
        with self._lock:
            return {labels: series[:] for labels, series in self._series.items()}


class Sizes:
    """How often each size occurred. Each thread counts by itself: no lock, and no count is lost."""

    def __init__(self) -> None:
        self._threads: dict[int, list[int]] = {}

    def add(self, thread: int, size: int) -> None:
        """Count a size; ``thread`` is the ident of the thread that calls."""
        counts = self._threads.get(thread)
        if counts is None:
            counts = self._threads.setdefault(thread, [0] * (_MOST_SIZE + 1))
        counts[size if size < _MOST_SIZE else _MOST_SIZE] += 1

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(map(sum, tuple(self._threads.values())))

    @property
    def sum(self) -> int:
        """All sizes added; those above 256 count as 256."""
        return sum(size * count for size, count in enumerate(self._totals()))

    bounds: Sequence[float] = _SIZES

    def series(self) -> dict[Labels, list[float]]:
        """As a histogram's."""
        series = [0.0] * (len(_SIZES) + 2)
        for size, count in enumerate(self._totals()):
            series[bisect_left(_SIZES, size)] += count
            series[-1] += size * count
        return {"": series}

    def _totals(self) -> list[int]:
        return [sum(each) for each in zip(*tuple(self._threads.values()), strict=True)]


class Figure(NamedTuple):
    """One metric: a number, or one for each value of the labels, which are words in ``label``.

    With several labels the keys of what ``read`` returns are tuples.
    """

    help: str
    read: Callable[[], float | Mapping[Any, float] | Histogram | Sizes]
    kind: Literal["gauge", "counter", "histogram"] = "gauge"
    label: str = ""


Figures = Mapping[str, Figure]  # by name, without "poky_" and "_total"


def families(figures: Figures) -> Iterator[Metric]:
    """The figures as Prometheus' client has them."""
    for name, figure in figures.items():
        labels = figure.label.split()
        value = figure.read()
        if isinstance(value, Histogram | Sizes):
            family = HistogramMetricFamily(f"poky_{name}", figure.help, labels=labels)
            for key, counts in value.series().items():
                family.add_metric(
                    _values(key, labels), _buckets(value.bounds, counts), sum_value=counts[-1]
                )
            yield family
            continue
        kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
        metric = kind(f"poky_{name}", figure.help, labels=labels)
        pairs: Iterable[tuple[Labels, float]] = (
            dict(value).items() if isinstance(value, Mapping) else [("", value)]
        )
        for key, number in pairs:
            metric.add_metric(_values(key, labels), number)
        yield metric


def _values(key: Labels, labels: Sequence[str]) -> Sequence[str]:
    if not labels:
        return ()
    return (key,) if isinstance(key, str) else key


def _buckets(bounds: Sequence[float], counts: Sequence[float]) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound."""
    names = [*(f"{float(bound)}" for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(counts[:-1]), strict=True))
