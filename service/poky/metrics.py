"""Metrics: what happened, for Prometheus and statsd, and one line per request for the log."""

import contextlib
import logging
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.process_collector import ProcessCollector

from poky.logs import Log

Environ = dict[str, Any]


class Figure(NamedTuple):
    """One metric that is read when it is asked for: a number, or one for each value of a label."""

    help: str
    read: Callable[[], float | Mapping[str, float]]
    kind: Literal["gauge", "counter"] = "gauge"
    label: str = ""


Figures = Mapping[str, Figure]  # by name, without "poky_" and "_total"

# Method, route, status, bytes sent, seconds, target, outcome, client, the request's id.
_Seen = tuple[str, str, int, int, float, str, str, str, str]

log = logging.getLogger("poky.metrics")

_PAUSE = 0.1  # seconds
_REQUEST_ID = re.compile("[A-Za-z0-9._:+/=-]+")
_MOST_SEEN = 4096
_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counts every answer and writes its line, ten times a second for all that there were.

    A request only leaves behind what is known of it: ``observe`` is cheap and never raises. What
    is done for many at once costs a third of what it costs in the midst of a request, and a
    thread that wakes up for every line would cost as much as half a GET.
    """

    def __init__(
        self,
        figures: Figures | None = None,
        statsd_host: str = "",
        statsd_key_base: str = "poky",
        *,
        access_log: Log | None = None,
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "poky_requests",
            "Requests by method, route and status.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "poky_request_seconds",
            "Time from a complete request head to its answer being sent.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._sent = Counter(
            "poky_sent_bytes", "Bytes of answers' bodies sent.", registry=self._registry
        )
        ProcessCollector(registry=self._registry)
        self._figures = figures or {}
        self._registry.register(self)
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}
        self._statsd = _Statsd(statsd_host, statsd_key_base) if statsd_host else None
        self._access = access_log
        self._seen: deque[_Seen] = deque()
        self._counting = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="poky-metrics", daemon=True)
        self._thread.start()

    def observe(self, environ: Environ, status: int, sent: int, seconds: float) -> None:
        """Take note of an answered request."""
        method = environ["REQUEST_METHOD"]
        self._seen.append(
            (
                method,
                environ.get("poky.route", "-"),
                status,
                sent,
                seconds,
                environ["REQUEST_URI"],
                environ.get("poky.outcome", "-"),
                environ.get("REMOTE_ADDR", "-"),
                environ.get("HTTP_X_REQUEST_ID", "-"),
            )
        )
        if self._statsd:
            self._statsd.send(method, status, seconds)
        if len(self._seen) >= _MOST_SEEN:  # the thread is starved
            self._count()

    def _work(self) -> None:
        more = True
        while more:
            more = not self._closed.wait(_PAUSE)
            self._count()

    def _count(self) -> None:
        """Count what was seen, and queue its lines."""
        lines = []
        with self._counting:
            # Only the holder of the lock removes any, so all that are there now stay there.
            for _ in range(len(self._seen)):
                seen = self._seen.popleft()
                method, route, status, sent, seconds, *_ = seen
                if route == "-" and method not in ("GET", "HEAD", "PUT", "POST", "DELETE"):
                    method = "-"  # a client's inventions are no new series
                children = self._children.get((method, route, status))
                if children is None:
                    children = (
                        self._requests.labels(method, route, status),
                        self._seconds.labels(method, route),
                    )
                    self._children[method, route, status] = children
                children[0].inc()
                children[1].observe(seconds)
                self._sent.inc(sent)
                lines.append(seen)
        if self._access and lines:
            self._access.add([_line(seen) for seen in lines])

    def collect(self) -> Any:
        """The figures, read when Prometheus asks."""
        for name, figure in self._figures.items():
            family = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
            metric = family(f"poky_{name}", figure.help, labels=[figure.label] * bool(figure.label))
            value = figure.read()
            for label, number in value.items() if isinstance(value, Mapping) else [("", value)]:
                metric.add_metric([label] * bool(figure.label), number)
            yield metric

    def expose(self) -> bytes:
        """Everything in Prometheus' text format."""
        self._count()
        return generate_latest(self._registry)

    def close(self) -> None:
        """Count what is left, and queue its lines."""
        self._closed.set()
        self._thread.join(5)


def _line(seen: _Seen) -> str:
    """The line of one request, as key=value."""
    method, _, status, sent, seconds, target, outcome, client, request_id = seen
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = "-"  # it could be taken for another field
    path = target.partition("?")[0][:2048]  # a query may hold what must not be in a log
    return (
        f"method={method} path={path} status={status} bytes={sent}"
        f" ms={seconds * 1000:.2f} outcome={outcome} client={client} id={request_id[:64]}\n"
    )


class _Statsd:
    """Counters and timings over UDP, named as the original's: base.method.status."""

    def __init__(self, host: str, key_base: str) -> None:
        name, _, port = host.partition(":")
        self._key = key_base
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._address: tuple[str, int] | None = None
        try:
            self._address = (socket.gethostbyname(name), int(port or 8125))
        except (OSError, ValueError) as error:
            log.warning("statsd at %s cannot be used: %s", host, error)

    def send(self, method: str, status: int, seconds: float) -> None:
        if self._address is None:
            return
        name = f"{self._key}.{method.lower()}"
        with contextlib.suppress(OSError):
            self._socket.sendto(
                f"{name}.{status}:1|c\n{name}:{seconds * 1000:.2f}|ms".encode(), self._address
            )
