"""Every program of the stack comes back by itself, and what clients send and do has bounds."""

from __future__ import annotations

import secrets

import pytest
from deployment import Deployment, wait_until
from testinfra.host import Host


@pytest.fixture(scope="module")
def host(deployment: Deployment) -> Host:
    (name,) = deployment.groups["service"]
    return deployment.host(name)


@pytest.fixture(scope="module")
def postgresql(host: Host) -> str:
    listed = host.check_output("systemctl list-units --plain --no-legend 'postgresql@*'")
    return listed.split()[0]


def main_pid(host: Host, unit: str) -> int:
    return int(host.check_output(f"systemctl show --property=MainPID --value {unit}"))


def serves(deployment: Deployment) -> bool:
    try:
        return deployment.request("GET", "/kv/molecule/after")[0] in (200, 404)
    except OSError:
        return False


@pytest.mark.parametrize("program", ["nginx", "varnish", "postgresql", "poky@8081"])
def test_a_killed_program_comes_back_however_often(
    deployment: Deployment, host: Host, postgresql: str, program: str
) -> None:
    """More often than systemd starts a unit by default: five times in ten seconds."""
    unit = postgresql if program == "postgresql" else program
    for _ in range(7):
        before = main_pid(host, unit)
        host.run(f"kill -9 {before}")
        wait_until(lambda before=before: main_pid(host, unit) not in (0, before), 60, unit)
    wait_until(lambda: host.service(unit).is_running, 60, f"{unit} is active")
    wait_until(lambda: serves(deployment), 60, f"an answer after {unit} was killed")


def test_postgresql_comes_back_when_its_disk_has_room_again(
    deployment: Deployment, host: Host, postgresql: str
) -> None:
    version = postgresql.removeprefix("postgresql@").split("-")[0]
    wal = f"/var/lib/postgresql/{version}/main/pg_wal"
    host.check_output(f"systemctl stop {postgresql}")
    host.check_output(
        # Room for what is there, whatever was written before, and for two segments and a half more.
        f"mv {wal} {wal}.kept && mkdir {wal} &&"
        f" mount -t tmpfs -o size=$(( $(du -sm {wal}.kept | cut -f1) + 40 ))m none {wal}"
    )
    host.check_output(
        f"cp -a {wal}.kept/. {wal}/ && chown postgres:postgres {wal} && chmod 700 {wal}"
    )
    host.check_output(f"systemctl start {postgresql}")
    wait_until(lambda: deployment.request("PUT", "/kv/molecule/k", "v")[0] == 200, 60, "a write")
    host.run(f"head -c 1G /dev/zero >{wal}/full")
    value = secrets.token_hex(500_000)  # what does not compress fills the log fast

    def refused() -> bool:
        return deployment.request("PUT", "/kv/molecule/large", value)[0] == 503

    wait_until(refused, 90, "a write is refused")
    host.run(f"kill -9 {main_pid(host, postgresql)}")
    host.check_output(f"sleep 20; rm {wal}/full")
    wait_until(lambda: deployment.request("PUT", "/kv/molecule/k", "v")[0] == 200, 90, "a write")
    host.check_output(f"systemctl stop {postgresql}")
    host.check_output(f"rm -rf {wal}.kept && cp -a {wal} {wal}.kept && umount {wal}")
    host.check_output(f"rmdir {wal} && mv {wal}.kept {wal} && systemctl start {postgresql}")
    wait_until(lambda: deployment.request("PUT", "/kv/molecule/k", "v")[0] == 200, 60, "a write")


def test_large_bodies_wait_in_a_bounded_place(host: Host) -> None:
    inside = f"nsenter -t {main_pid(host, 'nginx')} -m findmnt -bno FSTYPE,SIZE /var/lib/nginx/body"
    assert host.check_output(inside).split() == ["tmpfs", str(256 << 20)]


def test_no_second_log_of_requests_runs(host: Host) -> None:
    assert host.check_output("systemctl is-enabled varnishncsa || true") == "masked"
    assert host.run("pidof varnishncsa").rc != 0


@pytest.mark.parametrize("name", ["nginx", "postgresql-common"])
def test_a_log_is_rotated_by_its_size(host: Host, name: str) -> None:
    assert "maxsize 100M" in host.file(f"/etc/logrotate.d/{name}").content_string
    assert host.service("logrotate.timer").is_running
    log = {"nginx": "/var/log/nginx/poky.access.log"}.get(name, "/var/log/postgresql/large.log")
    host.check_output(f"head -c 101M /dev/zero >>{log}")
    done = host.run("systemctl start logrotate.service")
    assert done.rc == 0, done.stderr
    assert host.file(log).size < 100 << 20
