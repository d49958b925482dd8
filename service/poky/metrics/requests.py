"""Counts every answer, many at a time, and writes the line of each."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.process_collector import ProcessCollector

from poky.logs import Log
from poky.metrics.figures import SECONDS, Figure, Figures, Histogram, Sizes, families
from poky.metrics.history import History, Sample, Totals
from poky.metrics.lines import LINES, Seen
from poky.metrics.statsd import Statsd

Environ = dict[str, Any]

_PAUSE = 0.1  # seconds
_MOST_SEEN = 4096
_METHODS: Final = ("GET", "HEAD", "PUT", "POST", "DELETE")
_BATCHES: Final = (1, 10, 100, 1000, 10_000, 100_000)
_IN_BUCKETS: Final = ("/kv/", "/multi/")
_OBJECTS: Final = ("/kv/<bucket>/<key>",)
OTHER: Final = "-"  # the series of all buckets that have none of their own


class Metrics:
    """Counts every answer and writes its line, ten times a second for all that there were.

    A request only leaves behind what is known of it: ``observe`` is cheap and never raises. What
    is done for many at once costs a third of what it costs in the midst of a request, and a
    thread that wakes up for every line would cost as much as half a GET.

    ``buckets``: how many buckets have series of their own, in the order of their first success.
    ``writes``: how many of them shared each statement, for the history.
    """

    def __init__(
        self,
        figures: Figures | None = None,
        statsd: Statsd | None = None,
        *,
        access_log: Log | None = None,
        log_format: str = "keyvalue",
        buckets: int = 0,
        writes: Sizes | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._line: Callable[[Seen, float], str] = LINES[log_format]
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.seconds = Histogram()
        self.batches = Histogram(_BATCHES)
        self.sent = self.received = 0
        self.bucket_requests: Counter[tuple[str, str]] = Counter()
        self.bucket_sent: Counter[str] = Counter()
        self.bucket_received: Counter[str] = Counter()
        self._figures = {**_figures(self, buckets > 0), **(figures or {})}
        self._registry.register(self)
        self._most_buckets = buckets
        self._writes = writes or Sizes()
        self._buckets: set[str] = set()
        self.history = History(SECONDS)
        self._statsd = statsd
        self._access = access_log
        self._seen: deque[Seen] = deque()
        self._counting = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="poky-metrics", daemon=True)
        self._thread.start()

    def observe(self, environ: Environ, status: int, sent: int, seconds: float) -> None:
        """Take note of an answered request."""
        get = environ.get
        self._seen.append(
            (  # type: ignore[arg-type]  # a plain tuple here: a named one takes three times as long
                environ["REQUEST_METHOD"],
                get("poky.route", "-"),
                status,
                sent,
                seconds,
                environ["REQUEST_URI"],
                get("poky.outcome", "-"),
                get("REMOTE_ADDR", "-"),
                get("HTTP_X_REQUEST_ID", "-"),
                get("CONTENT_LENGTH"),
                get("poky.items"),
                get("HTTP_TRACEPARENT"),
            )
        )
        if len(self._seen) >= _MOST_SEEN:  # the thread is starved
            self._count()

    def _work(self) -> None:
        more = True
        while more:
            more = not self._closed.wait(_PAUSE)
            self._count()
            now = time.time()
            if self.history.is_due(now):
                self.history.take(self._totals(now, _IN_BUCKETS))
            if self.history.is_mark_due(now):
                self.history.mark(self._totals(now, _OBJECTS))

    def recent(self) -> Sample | None:
        """Requests for objects alone, in the last four to six seconds."""
        self._count()
        return self.history.recent(self._totals(time.time(), _OBJECTS))

    def _totals(self, now: float, routes: tuple[str, ...]) -> Totals:
        """What there was on routes that begin so."""
        with self._counting:
            of_clients = [
                (method, status, count)
                for (method, route, status), count in self.requests.items()
                if route.startswith(routes)
            ]
            times = [0.0] * (len(SECONDS) + 2)
            for labels, counts in self.seconds.series().items():
                if labels[1].startswith(routes):
                    times = [sum(pair) for pair in zip(times, counts, strict=True)]
            buckets: Counter[str] = Counter()
            for (bucket, _), count in self.bucket_requests.items():
                buckets[bucket] += count
        failed = sum(count for _, status, count in of_clients if status.startswith("5"))
        requests = sum(count for _, _, count in of_clients)
        reads = sum(count for method, _, count in of_clients if method in ("GET", "HEAD"))
        shared = self._writes
        return Totals(
            now, requests, failed, times[:-1], dict(buckets), shared.count, shared.sum, reads
        )

    def _count(self) -> None:
        """Count what was seen, and queue its lines."""
        with self._counting:
            # Only the holder of the lock removes any, so all that are there now stay there.
            taken = [self._seen.popleft() for _ in range(len(self._seen))]
            for method, route, status, sent, seconds, target, _, _, _, length, items, _ in taken:
                if route == "-" and method not in _METHODS:
                    method = "-"  # noqa: PLW2901  # a client's inventions are no new series
                self.requests[method, route, f"{status}"] += 1
                self.seconds.observe((method, route), seconds)
                self.sent += sent
                if length and len(length) < 16 and length.isdecimal() and length.isascii():
                    self.received += int(length)
                else:
                    length = "0"  # noqa: PLW2901  # or it was refused for it
                if items:
                    self.batches.observe(method, items)
                if self._most_buckets:
                    self._count_bucket(method, status, sent, target, length)
        if self._statsd and taken:
            self._statsd.send((each[0], each[2], each[4]) for each in taken)
        if self._access and taken:
            now = time.time()
            self._access.add([self._line(each, now) for each in taken])

    def _count_bucket(self, method: str, status: int, sent: int, target: str, length: str) -> None:
        if not target.startswith(_IN_BUCKETS):
            return
        bucket = target.split("/", 3)[2].partition("?")[0]
        if bucket not in self._buckets:
            # Only what has succeeded is a bucket's name, or clients could use the series up.
            if status < 400 and "%" not in bucket and len(self._buckets) < self._most_buckets:
                self._buckets.add(bucket)
            else:
                bucket = OTHER
        self.bucket_requests[bucket, method] += 1
        self.bucket_sent[bucket] += sent
        self.bucket_received[bucket] += int(length)

    def collect(self) -> Any:
        """The figures, read when Prometheus asks."""
        with self._counting:
            return list(families(self._figures))

    def expose(self) -> bytes:
        """Everything in Prometheus' text format."""
        self._count()
        return generate_latest(self._registry)

    def count(self) -> None:
        """Count what was seen until now."""
        self._count()

    def close(self) -> None:
        """Count what is left, and queue its lines."""
        self._closed.set()
        self._thread.join(5)


def _figures(metrics: Metrics, has_buckets: bool) -> Figures:
    figures = {
        "requests": Figure(
            "Requests by method, route and status.",
            lambda: metrics.requests,
            "counter",
            "method route status",
        ),
        "request_seconds": Figure(
            "Time from a complete request head to its answer being sent.",
            lambda: metrics.seconds,
            "histogram",
            "method route",
        ),
        "sent_bytes": Figure("Bytes of answers' bodies sent.", lambda: metrics.sent, "counter"),
        "received_bytes": Figure(
            "Bytes that requests announced as their bodies.", lambda: metrics.received, "counter"
        ),
        "batch_items": Figure(
            "Items of batches (/multi) by method.", lambda: metrics.batches, "histogram", "method"
        ),
    }
    if not has_buckets:
        return figures
    return {
        **figures,
        "bucket_requests": Figure(
            "Requests by bucket and method (POKY_METRICS_BUCKETS).",
            lambda: metrics.bucket_requests,
            "counter",
            "bucket method",
        ),
        "bucket_sent_bytes": Figure(
            "Bytes of answers' bodies by bucket.", lambda: metrics.bucket_sent, "counter", "bucket"
        ),
        "bucket_received_bytes": Figure(
            "Bytes of requests' bodies by bucket.",
            lambda: metrics.bucket_received,
            "counter",
            "bucket",
        ),
    }
