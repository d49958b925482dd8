"""What the admin listener's page shows by a real Prometheus, and that it never waits for one."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from poky.api.page import fleet
from poky.metrics import Prometheus
from poky.metrics.prometheus import _MOST_BYTES
from tests.conftest import Database
from tests.fake_cache import FakeCache
from tests.service import Client, Service, free_ports, running, wait_until
from tests.support import roles
from tests.test_browser import _FLAGS, Pages, browser, pages
from tests.test_page import _AXE, show, state_of

__all__ = ["pages"]

pytestmark = [pytest.mark.parametrize("kind", ["partitioned"], scope="session"), pytest.mark.slow]

_ALERTS = roles.ROOT / "roles" / "monitoring" / "files" / "poky_alerts.yml"


@contextmanager
def answering(answer: Callable[[BaseHTTPRequestHandler], None], port: int = 0) -> Iterator[int]:
    """An HTTP server that answers GET so, on the port that it yields."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


def send(request: BaseHTTPRequestHandler, body: bytes, status: int = 200) -> None:
    request.send_response(status)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@dataclass
class Exporters:
    """Metrics that change with every scrape: what is set, and counters that grow with time."""

    gauges: dict[str, float] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.time)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        passed = time.time() - self.began
        values = self.gauges | {name: rate * passed for name, rate in self.rates.items()}
        send(request, "".join(f"{name} {value}\n" for name, value in values.items()).encode())


@contextmanager
def prometheus(folder: Path, jobs: dict[str, list[str]]) -> Iterator[str]:
    """A Prometheus with our rules that asks these addresses every second, by its URL."""
    program = shutil.which("prometheus")
    assert program, "prometheus is missing: make packages"
    (port,) = free_ports(1)
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(_ALERTS)],
        "scrape_configs": [
            {
                "job_name": job,
                "static_configs": [
                    {"targets": [target], "labels": {"host": f"host-{number}"}}
                    for number, target in enumerate(targets, 1)
                ],
            }
            for job, targets in jobs.items()
        ],
    }
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program, f"--config.file={folder / 'prometheus.yml'}"),
                *(
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def exporters() -> Exporters:
    now = time.time()
    return Exporters(
        {
            'poky_backup_last_timestamp_seconds{kind="full"}': now - 3 * 86_400,
            'poky_backup_last_timestamp_seconds{kind="diff"}': now - 5 * 3600,
            "poky_backup_success_timestamp_seconds": now - 5 * 3600,
            "poky_backup_oldest_timestamp_seconds": now - 20 * 86_400,
            "poky_backup_duration_seconds": 75,
            "poky_backup_database_bytes": 5_000_000_000,
            "poky_backup_check_timestamp_seconds": now - 240,
            "poky_restore_drill_timestamp_seconds": now - 3 * 3600,
            "poky_restore_drill_ok": 1,
            "poky_restore_drill_seconds": 41,
            'pg_stat_replication_pg_wal_lsn_diff{application_name="db2"}': 48_000,
            "varnish_main_uptime": 1,
        },
        {
            "varnish_main_client_req": 1000,
            "varnish_main_backend_req": 68,
            "pg_stat_archiver_failed_count": 0,
        },
    )


@dataclass
class Watched:
    """An instance and what Prometheus knows of it and of others."""

    service: Service
    exporters: Exporters
    url: str


@pytest.fixture
def watched(
    kind: str, own_database: Database, exporters: Exporters, tmp_path: Path
) -> Iterator[Watched]:
    gone, admin = free_ports(2)
    with answering(exporters.answer) as port, FakeCache("host-1") as cache:
        jobs = {
            "poky": [f"127.0.0.1:{admin}", f"127.0.0.1:{gone}"],
            "node": [f"127.0.0.1:{port}"],
        }
        with prometheus(tmp_path / "prometheus", jobs) as url:
            settings = {
                "prometheus_url": url,
                "admin_port": str(admin),
                "caches": f"host-1={cache.url}",
                "lease_seconds": "300",
                "statement_timeout": "30",
            }
            with running(own_database.dsn_service, tmp_path / "log", **settings) as service:
                service.admin_port = admin
                lease = Client(service.lease_port)
                wait_until(lambda: lease.get("/lease", poky_node="host-1").status == 200)
                service.admin().request("PUT", "/buckets/b")
                service.client().put("/kv/b/k", "v")
                yield Watched(service, exporters, url)


def rows(page: str, heading: str) -> list[str]:
    """The rows of the table below a heading, without tags."""
    part = page.partition(f"{heading}</h")[2].partition("</table>")[0]
    return [
        re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", row)).strip()
        for row in re.findall("<tr>(.*?)</tr>", part, re.DOTALL)[1:]
    ]


def test_the_page_shows_what_prometheus_knows(kind: str, watched: Watched) -> None:
    admin = watched.service.admin()

    def page() -> str:
        return show(admin).body.decode()

    wait_until(lambda: "93.2%" in page(), 30, "a hit ratio")
    wait_until(lambda: any("failed/s" not in row for row in rows(page(), "sees them")), 30)
    text = page()
    assert (
        rows(text, "Backups")
        == [
            "last full backup 3 days ago",
            "last differential backup (since the full one) 5 h ago",
            "the last one took 75 s, for 5.0 GB of database",
            "can be restored to any moment since 20 days ago",
            "is complete up to 4 min ago",
            "archive takes what PostgreSQL writes",
            "last restore drill on host-1 3 h ago, all was there, after 41 s",
        ]
        or "2 h ago" in text
    )
    told = fleet.Asking(Prometheus(watched.url)).fleet()
    (cache,) = rows(text, "Caches")
    assert " 93.2% " in cache
    assert fleet.lags(told) == {"db2": 48_000}
    ours, other = rows(text, "As Prometheus sees them")
    assert ours.startswith(f"host-1 127.0.0.1:{watched.service.admin_port} answers , up ")
    assert "does not answer" in other
    assert "None fires." in text
    assert "All is well" in text


def test_an_alert_that_fires_says_what_it_means_and_since_when(kind: str, watched: Watched) -> None:
    admin = watched.service.admin()
    wait_until(lambda: "All is well" in state_of(admin), 30)
    watched.exporters.gauges["poky_restore_drill_ok"] = 0
    wait_until(lambda: "did not find all that there should be" in state_of(admin), 30)
    said = state_of(admin)
    assert re.search(r"The last restore drill on host-1 did not find all.* since \d+ s", said)
    assert "docs/operations.md#pokydrillfailed" in said
    page = show(admin).body.decode()
    (alert,) = rows(page, "Alerts")
    assert re.match(r"PokyDrillFailed critical \d+ s The last restore drill on host-1", alert)
    assert "it failed" in " ".join(rows(page, "Backups"))
    watched.exporters.gauges["poky_restore_drill_ok"] = 1
    wait_until(lambda: "All is well" in state_of(admin), 30)


def test_without_the_setting_one_line_says_so(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    with running(own_database.dsn_service, tmp_path / "log") as service:
        page = show(service.admin()).body.decode()
        assert page.count("POKY_PROMETHEUS_URL") == 1
        assert "As Prometheus sees them" not in page
        assert "<h2>Backups" not in page
        assert "All is well" in page


# However it fails, the page is there in time.


def _hangs(_: BaseHTTPRequestHandler) -> None:
    time.sleep(30)


def _drips(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    for _ in range(300):
        request.wfile.write(b" ")
        time.sleep(0.1)


def _floods(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(10_000):
        request.wfile.write(b" " * 100_000)


FAILURES: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    "hangs": _hangs,
    "drips": _drips,
    "floods": _floods,
    "is something else": lambda request: send(request, b"<html>hello</html>"),
    "has another form": lambda request: send(request, b'{"data": {"alerts": [7], "result": 1}}'),
    "refuses": lambda request: send(request, b"no", 500),
    "redirects": lambda request: send(request, b"", 302),
}


@pytest.mark.alone
@pytest.mark.parametrize("how", FAILURES)
def test_the_page_never_waits_for_prometheus(
    kind: str, own_database: Database, tmp_path: Path, how: str
) -> None:
    with answering(FAILURES[how]) as port:
        url = f"http://127.0.0.1:{port}"
        with running(own_database.dsn_service, tmp_path / "log", prometheus_url=url) as service:
            admin = service.admin()
            for _ in range(3):
                began = time.monotonic()
                said = state_of(admin)
                assert time.monotonic() - began < 1.5
                assert "Prometheus does not answer" in said
            page = show(admin).body.decode()
            for word in ("Requests per second", "PostgreSQL 1", "Background"):
                assert word in page
            assert service.client().get("/status").status == 200


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda request: send(request, b"{}", 503), "OSError: it answers 503"),
        (
            lambda request: send(request, b" " * (_MOST_BYTES + 1)),
            "OSError: its answer is too large or too slow",
        ),
        (lambda request: send(request, b" " * _MOST_BYTES), "DecodeError: "),
    ],
    ids=["refuses", "is too large", "is as large as it may be"],
)
def test_why_prometheus_cannot_be_asked_is_logged_once(
    kind: str,
    answer: Callable[[BaseHTTPRequestHandler], None],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with answering(answer) as port:
        asked = Prometheus(f"http://127.0.0.1:{port}")
        for _ in range(2):
            assert asked.told(asked.ask({"figure": "up"}), 20) is None
        (said,) = [text for text in caplog.messages if "Prometheus cannot be asked" in text]
        assert why in said
        assert asked.failing_since is not None


def test_a_prometheus_that_comes_back_is_asked_again(
    kind: str, own_database: Database, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with running(own_database.dsn_service, tmp_path / "log", prometheus_url=url) as service:
        admin = service.admin()
        assert "Prometheus does not answer" in state_of(admin)  # nothing listens there
        assert service.log.read_text().count("Prometheus cannot be asked") == 1

        def answer(request: BaseHTTPRequestHandler) -> None:
            alert = {
                "labels": {"alertname": "<b>A"},
                "annotations": {"summary": "<script>ran()</script>"},
                "state": "firing",
                "activeAt": "2026-01-02T03:04:05.123456789Z",
            }
            waiting = {**alert, "state": "pending", "annotations": {"summary": "not yet"}}
            asked = "query" in request.path
            body = {"result": []} if asked else {"alerts": [alert, waiting]}
            send(request, json.dumps({"status": "success", "data": body}).encode())

        with answering(answer, port):
            page = show(admin).body.decode()
        assert "&lt;script&gt;ran()" in page
        assert "<script>ran" not in page
        assert "not yet" not in page
        assert "Prometheus does not answer" in state_of(admin)


def test_who_asks_waits_as_long_as_they_say(kind: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        client = Prometheus(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        assert client.told(client.ask({"up": "up"}), 0.2) is None
        assert 0.1 < time.monotonic() - began < 0.7
        assert client.failing_since


# In a browser.


@pytest.mark.timeout(300)
def test_everyone_can_read_it_and_it_can_be_drawn(
    kind: str, pages: Pages, tmp_path: Path, watched: Watched
) -> None:
    watched.exporters.gauges["poky_restore_drill_ok"] = 0
    admin = watched.service.admin()
    wait_until(lambda: "did not find all" in state_of(admin), 30)
    wait_until(lambda: "93.2%" in show(admin).body.decode(), 30)
    pages.pages["/axe.js"] = files("axe_core_python").joinpath("axe.min.js").read_text()
    for is_dark in (False, True):
        page = show(admin).body.decode()
        if is_dark:
            page = page.replace("(prefers-color-scheme: dark)", "all")
        pages.pages["/"] = page.replace("</body>", f"{_AXE}</body>")
        with browser(f"http://{pages.site}/", tmp_path / f"profile-{is_dark}"):
            found = pages.reports.get(timeout=60)
        assert isinstance(found, list), found
        serious = [each for each in found if each[0] in ("serious", "critical")]
        assert not serious, json.dumps(serious, indent=1)
    program = shutil.which("chromium")
    assert program, "chromium is missing: make packages"
    for name, flags in {
        "light": ["--window-size=1280,2400"],
        "dark": ["--window-size=1280,2400", "--blink-settings=preferredColorScheme=0"],
        "narrow": ["--window-size=500,3600"],
    }.items():
        picture = tmp_path / f"{name}.png"
        drawn(program, tmp_path, [*flags, f"--screenshot={picture}"], watched.service)
        assert picture.stat().st_size > 10_000
    drawn(program, tmp_path, [f"--print-to-pdf={tmp_path / 'print.pdf'}"], watched.service)
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")


def drawn(program: str, folder: Path, flags: list[str], service: Service) -> None:
    done = subprocess.run(
        [
            *(program, *_FLAGS, f"--user-data-dir={folder / 'drawn'}", "--hide-scrollbars"),
            *(*flags, f"http://127.0.0.1:{service.admin_port}/"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Content Security Policy" not in done.stderr, done.stderr
