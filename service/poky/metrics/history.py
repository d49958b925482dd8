"""The last hour in samples of ten seconds: how many requests, how fast, failed, how grouped."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

PERIOD_SECONDS = 10.0
_MOST_SAMPLES = 360
_MARK_SECONDS = 2.0
_MARKS = 3


class Sample(NamedTuple):
    """What happened in the seconds before ``at`` (since 1970)."""

    at: float
    seconds: float
    requests: int
    failed: int  #: answered with 5xx
    median: float | None  #: seconds; None: there was no request
    slowest_percent: float | None  #: what 99 of 100 stay below
    buckets: dict[str, int]  #: requests by bucket, of those that have series
    grouped: float | None = None  #: writes that shared a statement, on average; None: no write
    reads: int = 0  #: GET and HEAD


class Totals(NamedTuple):
    """What had happened by ``at`` since the process began."""

    at: float
    requests: int
    failed: int
    counts: list[float]  #: of times, by bound
    buckets: dict[str, int]
    statements: int = 0  #: for writes
    writes: int = 0  #: in these
    reads: int = 0


class History:
    """Takes a sample of growing totals from time to time, and keeps an hour of them.

    Totals of every other second are kept for a moment, for what happened just now.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.samples: deque[Sample] = deque(maxlen=_MOST_SAMPLES)
        self._bounds = bounds
        self._before: Totals | None = None
        self._marks: deque[Totals] = deque(maxlen=_MARKS)

    def is_due(self, now: float) -> bool:
        """Whether the next sample is to be taken."""
        return self._before is None or now - self._before.at >= PERIOD_SECONDS

    def is_mark_due(self, now: float) -> bool:
        """Whether totals are to be kept for a moment."""
        return not self._marks or now - self._marks[-1].at >= _MARK_SECONDS

    def take(self, totals: Totals) -> None:
        """Add a sample of what happened since the one before."""
        before, self._before = self._before, totals
        if before is not None:
            self.samples.append(_between(self._bounds, before, totals))

    def mark(self, totals: Totals) -> None:
        """Keep totals for a moment."""
        self._marks.append(totals)

    def recent(self, totals: Totals) -> Sample | None:
        """What happened in the last four to six seconds; None at the very beginning."""
        marks = tuple(self._marks)
        if not marks or totals.at <= marks[0].at:
            return None
        return _between(self._bounds, marks[0], totals)


def _between(bounds: Sequence[float], before: Totals, totals: Totals) -> Sample:
    statements = totals.statements - before.statements
    grown = [new - old for new, old in zip(totals.counts, before.counts, strict=True)]
    return Sample(
        totals.at,
        totals.at - before.at,
        totals.requests - before.requests,
        totals.failed - before.failed,
        quantile(bounds, grown, 0.5),
        quantile(bounds, grown, 0.99),
        {
            name: count - before.buckets.get(name, 0)
            for name, count in totals.buckets.items()
            if count > before.buckets.get(name, 0)
        },
        (totals.writes - before.writes) / statements if statements > 0 else None,
        totals.reads - before.reads,
    )


def quantile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """The time below which this share lies, as Prometheus has it: linear within a bound's range.

    None without observations; the last bound if it lies beyond that.
    """
    total = sum(counts)
    if not total:
        return None
    rank, below, lower = share * total, 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= rank:
            return lower + (bound - lower) * (rank - below) / count
        below += count
        lower = bound
    return lower
