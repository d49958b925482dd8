"""Monitoring: rules that fire, each with a paragraph on what to do, and only metrics that exist."""

from __future__ import annotations

import json
import os
import platform
import re
import select
import shlex
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import yaml

from tests.conftest import Cluster
from tests.service import Client, free_ports, wait_until
from tests.support import roles
from tests.test_exported import documented

ROOT = roles.ROOT
FILES = ROOT / "roles" / "monitoring" / "files"
ALERTS = [
    rule
    for group in yaml.safe_load((FILES / "poky_alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((FILES / "poky_dashboard.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]

# What Debian's exporters have, of what is named here; not every host runs all of them.
_EXPORTERS = {
    *("node_filesystem_avail_bytes", "pg_up", "pg_stat_replication_pg_wal_lsn_diff"),
    *("pg_stat_archiver_failed_count", "varnish_main_client_req", "varnish_main_backend_req"),
    *("up", "process_cpu_seconds_total"),
    *("patroni_primary", "patroni_sync_standby", "patroni_dcs_last_seen"),
    *("haproxy_backend_active_servers", "haproxy_backend_current_sessions"),
}


def promtool(*arguments: str | Path) -> str:
    program = shutil.which("promtool")
    assert program, "promtool is missing: make packages"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_alert_fires_for_what_it_is_about_and_for_nothing_else() -> None:
    promtool("test", "rules", ROOT / "tests" / "monitoring" / "alerts.yml")


def test_every_alert_is_tried() -> None:
    wrong = yaml.safe_load((ROOT / "tests/monitoring/alerts.yml").read_text())["tests"][-1]
    fired = re.findall(r'alertname="(\w+)"', json.dumps(wrong).replace('\\"', '"'))
    assert sorted(fired) == sorted(rule["alert"] for rule in ALERTS)


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_paragraph_that_says_what_to_do(rule: dict[str, Any]) -> None:
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == rule["alert"].lower()
    text = (ROOT / document).read_text()
    paragraph = re.search(rf"^### {rule['alert']}\n\n(.+?)(?=^##)", text, re.M | re.S)
    assert paragraph, rule["alert"]
    assert len(paragraph[1]) > 80
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"].endswith(".")


@pytest.mark.parametrize("query", [*(rule["expr"] for rule in ALERTS), *QUERIES])
def test_queries_name_metrics_that_exist_and_their_labels(query: str) -> None:
    bare = re.sub(r'"[^"]*"', "", query)
    names = set(
        re.findall(
            r"\b((?:poky|pg|node|varnish|nginx|process|patroni|haproxy)_\w+|up)\b(?!\()", bare
        )
    )
    assert names
    page = documented()
    text = (ROOT / "docs/metrics.md").read_text()
    for name in names:
        base = re.sub("_(?:bucket|sum|count)$", "", name)
        ours = page.get(name) or (page.get(base) if base != name else None)
        if ours and base != name:
            assert ours[0] == "histogram" or name in page, name
        assert ours or name in _EXPORTERS or f"`{name}`" in text, name


def test_queries_can_be_parsed(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": query.replace("$__rate_interval", "5m")}
        for number, query in enumerate(QUERIES)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(QUERIES)} rules found" in promtool("check", "rules", file)


def test_panels_fit_beside_each_other() -> None:
    places = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        places.add((place["x"], place["y"]))
        assert panel["datasource"]["uid"] == "${datasource}"
    assert len(places) == len(DASHBOARD["panels"])


# What Prometheus and the exporters are told, on one host and on several.

_HOSTS = {
    "one": {"poky_address": "192.0.2.1"},
    "two": {"poky_address": "192.0.2.2", "poky_admin_listen": "192.0.2.2", "poky_ports": [8081]},
    "eye": {"poky_address": "192.0.2.9"},
}


def _inventory(*, alone: bool) -> dict[str, Any]:
    hosts = ["one"] if alone else ["one", "two"]
    groups = dict.fromkeys(("service", "cache", "web"), hosts)
    eye = ["one"] if alone else ["eye"]
    everything = sorted({*hosts, *eye})
    return {
        "groups": {**groups, "database": ["one"], "monitoring": eye, "all": everything},
        "hostvars": {name: _HOSTS[name] for name in everything},
        "inventory_hostname": "one",
        "poky_address": "192.0.2.1",
        "group_names": ["service", "cache", "web", "database"],
        "ansible_facts": {"distribution_major_version": "13"},
    }


def test_prometheus_on_the_only_host_asks_by_loopback(tmp_path: Path) -> None:
    text = roles.render("monitoring", "prometheus.yml.j2", **_inventory(alone=True))
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus", str(FILES)))
    promtool("check", "config", file)
    jobs = {
        each["job_name"]: each["static_configs"] for each in yaml.safe_load(text)["scrape_configs"]
    }
    assert set(jobs) == {"node", "postgres", "varnish", "nginx", "poky"}
    targets = [target for each in jobs["poky"] for target in each["targets"]]
    assert targets == ["127.0.0.1:9081", "127.0.0.1:9082"]
    assert all(
        target.startswith("127.0.0.1:")
        for each in jobs.values()
        for config in each
        for target in config["targets"]
    )


def test_prometheus_elsewhere_asks_by_address(tmp_path: Path) -> None:
    inventory = _inventory(alone=False)
    text = roles.render(
        "monitoring", "prometheus.yml.j2", **inventory, monitoring_alertmanagers=["192.0.2.8:9093"]
    )
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus", str(FILES)))
    promtool("check", "config", file)
    found = {
        (job["job_name"], config["labels"]["host"]): config["targets"]
        for job in yaml.safe_load(text)["scrape_configs"]
        for config in job["static_configs"]
    }
    assert found["poky", "two"] == ["192.0.2.2:9081"]
    assert found["node", "eye"] == ["127.0.0.1:9100"]
    assert found["postgres", "one"] == ["192.0.2.1:9187"]
    assert ("postgres", "two") not in found


def test_a_cluster_s_patroni_and_haproxy_are_asked(tmp_path: Path) -> None:
    given = _inventory(alone=False)
    hosts = ["data1", "data2", "data3"]
    given["groups"] = {**given["groups"], "database": hosts}
    given["hostvars"] = {
        **given["hostvars"],
        **{name: {"poky_address": f"192.0.2.3{number}"} for number, name in enumerate(hosts)},
    }
    (tmp_path / "ca.pem").touch()
    text = roles.render("monitoring", "prometheus.yml.j2", **given, _monitoring_tls=str(tmp_path))
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus", str(FILES)))
    promtool("check", "config", file)
    jobs = {each["job_name"]: each for each in yaml.safe_load(text)["scrape_configs"]}

    def targets(job: str) -> list[str]:
        return [each for config in jobs[job]["static_configs"] for each in config["targets"]]

    assert targets("patroni") == ["192.0.2.30:8008", "192.0.2.31:8008", "192.0.2.32:8008"]
    assert jobs["patroni"]["scheme"] == "https"  # and by addresses, which are in the certificates
    assert targets("haproxy") == ["192.0.2.1:8405", "192.0.2.2:8405"]


@pytest.mark.parametrize("groups", [{}, {"monitoring": ["eye"]}])
def test_haproxy_exports_itself_where_there_is_monitoring(
    tmp_path: Path, groups: dict[str, list[str]]
) -> None:
    program = shutil.which("haproxy", path="/usr/sbin:/usr/bin")
    assert program, "haproxy is missing: make packages"
    here, there = free_ports(2)
    given = {
        **{"groups": {"database": [], **groups}, "poky_address": "127.0.0.1"},
        **{"hostvars": {"eye": {"poky_address": "127.0.0.2"}}},
        **{"haproxy_port": here, "haproxy_metrics_port": there, "_haproxy_tls": str(tmp_path)},
    }
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=ca -keyout key"
    command = ["openssl", *words.split(), "-out", "ca.pem"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    text = roles.render("haproxy", "haproxy.cfg.j2", **given)
    # Of a host that runs as a service; here it is one process of the test.
    lines = [
        line for line in text.splitlines() if not re.match(r" +(chroot|stats|user|group) ", line)
    ]
    file = tmp_path / "haproxy.cfg"
    file.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([program, "-db", "-f", str(file)])
    try:
        wait_until(lambda: accepts(here))
        assert accepts(there) == bool(groups)
        if groups:
            client = Client(there)
            page = client.get("/metrics").body.decode()
            assert 'haproxy_backend_active_servers{proxy="postgresql"} 0' in page
            assert client.get("/").status == 404
            # Others than those named are refused.
            assert ask_from("127.0.0.3", there).startswith(b"HTTP/1.1 403 ")
            assert ask_from("127.0.0.2", there).startswith(b"HTTP/1.1 200 ")
    finally:
        process.terminate()
        process.wait(10)


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        return False
    return True


def ask_from(source: str, port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5, (source, 0)) as peer:
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        return peer.recv(100)


def test_exporters_answer_prometheus_alone() -> None:
    given = _inventory(alone=False)
    exporters = roles.value("monitoring", "_monitoring_here", **given)
    assert set(exporters) == {"node", "postgres", "varnish", "nginx"}
    for name, exporter in exporters.items():
        item = {"key": name, "value": exporter}
        unit = roles.render("monitoring", "exporter.conf.j2", **given, item=item)
        assert f"={given['poky_address']}:{exporter['port']} " in unit
        assert "IPAddressDeny=any\nIPAddressAllow=localhost 192.0.2.9\n" in unit


def test_the_ends_of_certificates_are_told_of_the_files_that_there_are(tmp_path: Path) -> None:
    there = tmp_path / "poky.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=a"]
    command += ["-keyout", tmp_path / "key.pem", "-days", "30", "-out", there]
    subprocess.run(command, capture_output=True, check=True)
    subprocess.run([FILES / "poky-certificate", tmp_path / "none", there], cwd=tmp_path, check=True)
    (line,) = re.findall(r"^[^#].*", (tmp_path / "poky_certificate.prom").read_text(), re.M)
    name, seconds = line.split()
    assert name == f'poky_certificate_expiry_timestamp_seconds{{file="{there}"}}'
    assert abs(int(seconds) - time.time() - 30 * 86400) < 100


_DEBIAN = {
    "ansible_facts": {
        "distribution_major_version": platform.freedesktop_os_release().get("VERSION_ID", "12")
    }
}


class _Through(socketserver.BaseRequestHandler):
    """A connection by TCP, as exporters make one, to the socket of the tests' PostgreSQL."""

    def handle(self) -> None:
        with socket.socket(socket.AF_UNIX) as behind:
            behind.connect(self.server.path)  # type: ignore[attr-defined]
            ways = {self.request: behind, behind: self.request}
            while True:
                for one in select.select(list(ways), [], [])[0]:
                    if not (data := one.recv(65536)):
                        return
                    ways[one].sendall(data)


@pytest.mark.slow
def test_the_exporter_of_postgresql_reaches_it(each_cluster: Cluster, tmp_path: Path) -> None:
    """Debian's, told what the role tells it, with a password that has all that one may have."""
    password = "%'\"\\ /@:?#&+$=\u00e9"
    server = each_cluster.server
    with psycopg2.connect(server.dsn_owner) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = 'poky_monitor'")
        if not cursor.fetchone():
            cursor.execute("CREATE ROLE poky_monitor")
        cursor.execute("ALTER ROLE poky_monitor LOGIN PASSWORD %s", (password,))
        cursor.execute("GRANT pg_monitor TO poky_monitor")
    hba = server.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"local all poky_monitor scram-sha-256\n{before}")
    with psycopg2.connect(server.dsn_owner) as connection:
        connection.cursor().execute("SELECT pg_reload_conf()")
    text = roles.render(
        "monitoring",
        "postgres.env.j2",
        postgresql_database="poky",
        postgresql_monitor_password=password,
    )
    through = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Through)
    through.daemon_threads = True
    with psycopg2.connect(server.dsn_owner) as connection:
        folder = connection.info.host
    through.path = f"{folder}/.s.PGSQL.5432"  # type: ignore[attr-defined]
    threading.Thread(target=through.serve_forever, daemon=True).start()
    (line,) = re.findall(r"^DATA_SOURCE_NAME=(.*)$", text, re.M)
    assert "127.0.0.1:5432" in line
    # As systemd reads it.
    name = shlex.split(line)[0].replace(":5432", f":{through.server_address[1]}")
    (port,) = free_ports(1)
    item = {"key": "postgres", "value": {"listen": "--web.listen-address", "port": port}}
    unit = roles.render(
        "monitoring", "exporter.conf.j2", **{**_inventory(alone=True), **_DEBIAN, "item": item}
    )
    (arguments,) = re.findall('^Environment="ARGS=(.*)"$', unit, re.M)
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["prometheus-postgres-exporter", *arguments.split()],
            env={**os.environ, "DATA_SOURCE_NAME": name},
            stderr=output,
        )
    try:
        wait_until(lambda: "Listening on" in log.read_text(), what="the exporter listens")
        figures = ""

        def is_up() -> bool:
            nonlocal figures
            figures = Client(port).get("/metrics").body.decode()
            return "\npg_up 1\n" in figures

        wait_until(is_up, what=f"PostgreSQL is up for the exporter: {log.read_text()}")
        assert "pg_stat_archiver_failed_count" in figures
        assert "level=error" not in log.read_text()
    finally:
        process.kill()
        process.wait()
        through.shutdown()
        hba.write_text(before)
        with psycopg2.connect(server.dsn_owner) as connection:
            connection.cursor().execute("SELECT pg_reload_conf()")
            connection.cursor().execute("ALTER ROLE poky_monitor NOLOGIN PASSWORD NULL")
