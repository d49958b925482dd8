"""What no instance knows by itself: alerts, backups, hit ratios, other instances, by Prometheus."""

import time
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Final, NamedTuple

from poky.api.page.layout import ago, size_of, table
from poky.api.page.plots import shown
from poky.api.page.troubles import Trouble
from poky.metrics import Alert, Prometheus, Told

_SECONDS: Final = 0.9  # that a page waits for Prometheus
_RATE: Final = "5m"
_OBJECTS: Final = 'route="/kv/<bucket>/<key>"'

EXPRESSIONS: Final = {
    "up": 'max by (host, instance) (up{job="poky"})',
    "started": 'max by (host, instance) (process_start_time_seconds{job="poky"})',
    "release": 'max by (host, instance, release) (poky_build_info{job="poky"})',
    "requests": f"sum by (host, instance) (rate(poky_requests_total[{_RATE}]))",
    "failed": f'sum by (host, instance) (rate(poky_requests_total{{status=~"5.."}}[{_RATE}]))',
    "slowest": "histogram_quantile(0.99, sum by (host, instance, le)"
    f" (rate(poky_request_seconds_bucket{{{_OBJECTS}}}[{_RATE}])))",
    "hits": f"1 - sum by (host) (rate(varnish_main_backend_req[{_RATE}]))"
    f" / sum by (host) (rate(varnish_main_client_req[{_RATE}]))",
    "lag": "max by (application_name) (pg_stat_replication_pg_wal_lsn_diff)",
    "backup": "max by (kind) (poky_backup_last_timestamp_seconds)",
    "backup_took": "max(poky_backup_duration_seconds)",
    "backup_bytes": "max(poky_backup_database_bytes)",
    "backup_oldest": "max(poky_backup_oldest_timestamp_seconds)",
    "backup_checked": "max(poky_backup_check_timestamp_seconds)",
    "archive_failed": "sum(increase(pg_stat_archiver_failed_count[15m]))",
    "drill": "max by (host) (poky_restore_drill_timestamp_seconds)",
    "drill_ok": "min by (host) (poky_restore_drill_ok)",
    "drill_took": "max by (host) (poky_restore_drill_seconds)",
}

_KINDS: Final = {
    "full": "last full backup",
    "diff": "last differential backup (since the full one)",
    "incr": "last incremental backup",
}


class Fleet(NamedTuple):
    """What Prometheus told; ``told`` is None where it is not asked, or did not answer in time."""

    url: str  #: empty: it is not asked
    told: Told | None = None
    failing_since: float | None = None

    def figures(self, name: str, *labels: str) -> dict[str, float]:
        """The numbers of an expression, by the words of these labels."""
        values = self.told.values.get(name, ()) if self.told else ()
        return {
            " ".join(found.get(label, "") for label in labels): value
            for found, value in values
            if isfinite(value)
        }

    def figure(self, name: str) -> float | None:
        """The number of an expression that is one number; None: there is none."""
        return next(iter(self.figures(name).values()), None)


class Asking:
    """Asks Prometheus while the page does other things."""

    def __init__(self, prometheus: Prometheus | None) -> None:
        self._prometheus = prometheus
        self._deadline = time.monotonic() + _SECONDS
        self._number = prometheus.ask(EXPRESSIONS) if prometheus else 0

    def fleet(self) -> Fleet:
        """What it said by 0.9 seconds after it was asked."""
        if self._prometheus is None:
            return Fleet("")
        left = max(self._deadline - time.monotonic(), 0)
        told = self._prometheus.told(self._number, left)
        return Fleet(self._prometheus.url, told, self._prometheus.failing_since)


def troubles(fleet: Fleet) -> list[Trouble]:
    """What is wrong by what Prometheus says, or does not say."""
    if not fleet.url:
        return []
    if fleet.told is None:
        return [
            Trouble(
                "Prometheus does not answer: alerts, backups and hit ratios are not known.",
                fleet.failing_since,
                f"Is it up at {fleet.url}, and can this host reach it? Nobody is alerted.",
            )
        ]
    return [
        Trouble(each.summary or f"The alert {each.name} fires.", each.since, _runbook(each))
        for each in fleet.told.alerts
    ]


def _runbook(alert: Alert) -> str:
    if not alert.runbook:
        return f"The alert {alert.name}."
    return f"The alert {alert.name}: {alert.runbook} says what to do."


def alerts(fleet: Fleet, now: float) -> str:
    """The alerts that fire, or why they are not known."""
    if not fleet.url:
        return (
            '<h2>Alerts and backups</h2><p class="quiet">With POKY_PROMETHEUS_URL alerts, backups,'
            " hit ratios and the other instances' figures are shown.</p>"
        )
    if fleet.told is None:
        since = f" since {ago(now - fleet.failing_since)}" if fleet.failing_since else ""
        return (
            f'<h2>Alerts</h2><p class="bad">Prometheus at {escape(fleet.url)} does not answer'
            f"{since}.</p>"
        )
    rows = [
        (
            f'<span class="bad">{escape(each.name)}</span>',
            escape(each.severity),
            ago(now - each.since),
            escape(each.summary),
            escape(each.runbook),
        )
        for each in fleet.told.alerts
    ]
    columns = ("alert", "severity", "since", "what it means", "what to do")
    return f"<h2>Alerts</h2>{table('Alerts', columns, rows, 'None fires.')}"


def instances(fleet: Fleet, now: float) -> str:
    """Every instance as Prometheus sees it; empty if it told nothing."""
    if fleet.told is None:
        return ""
    by = ("host", "instance")
    started, requests = fleet.figures("started", *by), fleet.figures("requests", *by)
    failed, slowest = fleet.figures("failed", *by), fleet.figures("slowest", *by)
    releases = {
        f"{labels.get('host', '')} {labels.get('instance', '')}": labels.get("release", "")
        for labels, _ in fleet.told.values.get("release", ())
    }
    rows = [
        (
            escape(name.partition(" ")[0]),
            escape(name.partition(" ")[2]),
            _state(is_up, started.get(name), now),
            escape(releases.get(name, "")),
            shown(requests.get(name), ""),
            shown(failed.get(name, 0.0) if name in requests else None, ""),
            shown(slowest.get(name), "s"),
        )
        for name, is_up in sorted(fleet.figures("up", *by).items())
    ]
    columns = ("host", "admin listener", "state", "release", "requests/s", "failed/s", "99 %")
    made = table(
        "Instances by Prometheus", columns, rows, "It asks none.", "requests/s, failed/s, 99 %"
    )
    return f"<h3>As Prometheus sees them</h3>{made}"


def _state(is_up: float, started: float | None, now: float) -> str:
    if not is_up:
        return '<span class="bad">does not answer</span>'
    return '<span class="good">answers</span>' + (f", up {ago(now - started)}" if started else "")


def hit_ratios(fleet: Fleet) -> Mapping[str, str]:
    """The share of reads that a cache answered itself in five minutes, by its host."""
    return {
        host: f"{max(ratio, 0):.1%}"
        for host, ratio in sorted(fleet.figures("hits", "host").items())
    }


def lags(fleet: Fleet) -> Mapping[str, float]:
    """How many bytes each standby is behind."""
    return fleet.figures("lag", "application_name")


def backups(fleet: Fleet, now: float) -> str:
    """The age of backups, whether the archive works, and the last drill; empty if not known."""
    if fleet.told is None:
        return ""
    rows = [*_taken(fleet, now), *_archive(fleet, now), *_drills(fleet, now)]
    empty = "No host exports any (role backup, docs/backup.md)."
    return f"<h2>Backups</h2>{table('Backups', ('what', 'is'), rows, empty)}"


def _taken(fleet: Fleet, now: float) -> Sequence[tuple[str, str]]:
    kinds = fleet.figures("backup", "kind")
    rows = [
        (escape(words), f"{ago(now - kinds[kind])} ago")
        for kind, words in _KINDS.items()
        if kinds.get(kind)
    ]
    took, size = fleet.figure("backup_took"), fleet.figure("backup_bytes")
    if took is not None and size is not None:
        rows.append(("the last one", f"took {took:,.0f} s, for {size_of(size)} of database"))
    if oldest := fleet.figure("backup_oldest"):
        rows.append(("can be restored to", f"any moment since {ago(now - oldest)} ago"))
    return rows


def _archive(fleet: Fleet, now: float) -> Sequence[tuple[str, str]]:
    checked, failed = fleet.figure("backup_checked"), fleet.figure("archive_failed")
    rows = []
    if checked is not None:
        rows.append(("is complete up to", f"{ago(now - checked)} ago"))
        if failed:
            rows.append(("archive", '<span class="bad">failed within 15 min</span>'))
        elif failed is not None:
            rows.append(("archive", '<span class="good">takes what PostgreSQL writes</span>'))
    return rows


def _drills(fleet: Fleet, now: float) -> Sequence[tuple[str, str]]:
    is_good, took = fleet.figures("drill_ok", "host"), fleet.figures("drill_took", "host")
    return [
        (
            f"last restore drill on {escape(host)}",
            f"{ago(now - at)} ago, "
            + ("all was there" if is_good.get(host) else '<span class="bad">it failed</span>')
            + (f", after {took[host]:,.0f} s" if host in took else ""),
        )
        for host, at in sorted(fleet.figures("drill", "host").items())
        if at
    ]
