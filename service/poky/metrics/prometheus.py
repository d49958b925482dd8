"""Prometheus, asked what it knows: alerts that fire, and the values of expressions.

It may be gone, hang, or be something else: who asks waits as long as they say, and gets None.
"""

import http.client
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

log = logging.getLogger("poky.metrics")

_MOST_BYTES = 4_000_000
_FIGURE = "poky_figure"  # the label that tells the expressions of a query apart
_SECONDS = 0.8  # for both questions together

Labels = Mapping[str, str]
Values = Sequence[tuple[Labels, float]]


class Alert(NamedTuple):
    """An alert that fires: what it says, and since when (seconds since 1970)."""

    name: str
    severity: str
    summary: str
    runbook: str
    since: float


class Told(NamedTuple):
    """What Prometheus said: alerts, the oldest first, and the values of each expression."""

    alerts: Sequence[Alert]
    values: Mapping[str, Values]


class _Alert(msgspec.Struct):
    labels: dict[str, str]
    state: str
    activeAt: datetime  # as Prometheus has it
    annotations: dict[str, str] = {}


class _Alerts(msgspec.Struct):
    alerts: list[_Alert]


class _Series(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Vector(msgspec.Struct):
    result: list[_Series]


class _AlertsAnswer(msgspec.Struct):
    data: _Alerts


class _VectorAnswer(msgspec.Struct):
    data: _Vector


class Prometheus:
    """Asks the Prometheus at ``url`` for alerts and expressions, in a thread of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self._is_secure = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._path = parts.path.rstrip("/")
        self.failing_since: float | None = None
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._query = ""
        self._told: Told | None = None
        threading.Thread(target=self._answer, name="poky-prometheus", daemon=True).start()

    def ask(self, expressions: Mapping[str, str]) -> int:
        """Begin to ask for these expressions, by name; ``told`` has the answer for this number."""
        # One question for all of them.
        query = " or ".join(
            f'label_replace({expression}, "{_FIGURE}", "{name}", "", "")'
            for name, expression in expressions.items()
        )
        with self._changed:
            self._query = query
            self._asked += 1
            self._changed.notify_all()
            return self._asked

    def told(self, number: int, timeout: float) -> Told | None:
        """What it said after ``ask`` was called; None after ``timeout`` seconds, or if it fails."""
        with self._changed:
            if self._changed.wait_for(lambda: self._answered >= number, timeout):
                return self._told
            self._failed("it does not answer in time")
            return None

    def _failed(self, why: str) -> None:
        if self.failing_since is None:
            self.failing_since = time.time()
            log.info("Prometheus cannot be asked: %s", why)

    def _answer(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._answered)
                number, query = self._asked, self._query
            told = self._look(query)
            with self._changed:
                self._answered, self._told = number, told
                if told:
                    self.failing_since = None
                self._changed.notify_all()

    def _look(self, query: str) -> Told | None:
        deadline = time.monotonic() + _SECONDS
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        try:
            with closing(kind(self._host, self._port, timeout=_SECONDS)) as connection:
                alerts = self._get(connection, "/api/v1/alerts", deadline)
                path = f"/api/v1/query?{urlencode({'query': query})}"
                values = self._get(connection, path, deadline)
            return Told(_alerts(alerts), _values(values))
        except Exception as error:
            # Whatever it is, it is not ours: the page goes on without it.
            self._failed(f"{type(error).__name__}: {error}")
            return None

    def _get(self, connection: http.client.HTTPConnection, path: str, deadline: float) -> bytes:
        connection.request("GET", self._path + path)
        with closing(connection.getresponse()) as answer:
            if answer.status != 200:
                raise OSError(f"it answers {answer.status}")
            parts, size = [], 0
            while part := answer.read1(65_536):
                parts.append(part)
                size += len(part)
                if size > _MOST_BYTES or time.monotonic() > deadline:
                    raise OSError("its answer is too large or too slow")
            return b"".join(parts)


def _alerts(answer: bytes) -> list[Alert]:
    found = [
        Alert(
            each.labels.get("alertname", ""),
            each.labels.get("severity", ""),
            each.annotations.get("summary", ""),
            each.annotations.get("runbook", ""),
            each.activeAt.timestamp(),
        )
        for each in msgspec.json.decode(answer, type=_AlertsAnswer).data.alerts
        if each.state == "firing"
    ]
    return sorted(found, key=lambda alert: alert.since)


def _values(answer: bytes) -> Mapping[str, Values]:
    found: dict[str, list[tuple[Labels, float]]] = {}
    for series in msgspec.json.decode(answer, type=_VectorAnswer).data.result:
        name = series.metric.pop(_FIGURE, "")
        found.setdefault(name, []).append((series.metric, float(series.value[1])))
    return found
