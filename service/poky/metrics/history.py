"""The last hour in samples of ten seconds: how many requests, how fast, how many failed."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

PERIOD_SECONDS = 10.0
_MOST_SAMPLES = 360


class Sample(NamedTuple):
    """What happened in the seconds before ``at`` (since 1970)."""

    at: float
    seconds: float
    requests: int
    failed: int  #: answered with 5xx
    median: float | None  #: seconds; None: there was no request
    slowest_percent: float | None  #: what 99 of 100 stay below
    buckets: dict[str, int]  #: requests by bucket, of those that have series


class History:
    """Takes a sample of growing totals from time to time, and keeps an hour of them."""

    def __init__(self) -> None:
        self.samples: deque[Sample] = deque(maxlen=_MOST_SAMPLES)
        self._before: tuple[float, int, int, list[float], dict[str, int]] | None = None

    def is_due(self, now: float) -> bool:
        """Whether the next sample is to be taken."""
        return self._before is None or now - self._before[0] >= PERIOD_SECONDS

    def take(
        self,
        now: float,
        requests: int,
        failed: int,
        bounds: Sequence[float],
        counts: list[float],
        buckets: dict[str, int],
    ) -> None:
        """Add a sample, from totals since the process began; ``counts`` of times by bound."""
        before, self._before = self._before, (now, requests, failed, counts, buckets)
        if before is None:
            return
        then, requests_then, failed_then, counts_then, buckets_then = before
        grown = [new - old for new, old in zip(counts, counts_then, strict=True)]
        self.samples.append(
            Sample(
                now,
                now - then,
                requests - requests_then,
                failed - failed_then,
                quantile(bounds, grown, 0.5),
                quantile(bounds, grown, 0.99),
                {
                    name: count - buckets_then.get(name, 0)
                    for name, count in buckets.items()
                    if count > buckets_then.get(name, 0)
                },
            )
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
