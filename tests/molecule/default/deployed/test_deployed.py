"""One machine after a deploy: what runs, who may see it, how it is confined, and that it serves."""

from __future__ import annotations

import re
import ssl
import urllib.request

import pytest
from deployment import ROOT, Deployment
from testinfra.host import Host


@pytest.fixture(scope="module")
def host(deployment: Deployment) -> Host:
    (name,) = deployment.groups["service"]
    return deployment.host(name)


@pytest.mark.parametrize(
    "unit", ["poky.target", "poky@8081", "poky@8082", "varnish", "nginx", "postgresql"]
)
def test_runs_now_and_at_boot(host: Host, unit: str) -> None:
    assert host.service(unit).is_running
    assert host.service(unit).is_enabled


def test_nothing_has_failed(host: Host) -> None:
    assert host.check_output("systemctl --failed --no-legend --plain") == ""


# What listens, and whether other machines may reach it.
PORTS = {
    ("nginx", 80): True,
    ("nginx, TLS", 443): True,
    ("Varnish", 6081): False,
    ("Varnish, purges", 6091): False,
    ("service", 8081): False,
    ("service", 8082): False,
    ("admin", 9081): False,
    ("admin", 9082): False,
    ("leases", 10081): False,
    ("leases", 10082): False,
    ("PostgreSQL", 5432): False,
}


@pytest.mark.parametrize(("who", "port"), PORTS)
def test_listens_where_it_should(host: Host, who: str, port: int) -> None:
    listed = host.check_output(f"ss -Hltn 'sport = :{port}'").splitlines()
    found = [line.split()[3] for line in listed]
    assert found, f"{who} does not listen on {port}"
    outside = [address for address in found if not address.startswith(("127.0.0.1:", "[::1]:"))]
    assert bool(outside) == PORTS[who, port], found


def test_nothing_else_listens_to_other_machines(host: Host) -> None:
    listed = host.check_output("ss -Hltn").splitlines()
    addresses = [line.split()[3].rpartition(":") for line in listed]
    outside = {
        int(port) for address, _, port in addresses if not address.startswith(("127.", "[::1"))
    }
    assert outside == {22, 80, 443}


@pytest.mark.parametrize(
    ("unit", "most"), [("poky@8081", 2.0), ("varnish", 5.0), ("nginx", 5.0), ("postgresql", 5.0)]
)
def test_is_confined(host: Host, unit: str, most: float) -> None:
    if unit == "postgresql":
        unit = host.check_output("systemctl list-units --plain --no-legend 'postgresql@*'").split()[
            0
        ]
    said = host.check_output(f"systemd-analyze security --no-pager {unit.removesuffix('.service')}")
    found = re.search(r"Overall exposure level for .*: ([0-9.]+)", said)
    assert found, said
    assert float(found[1]) <= most


@pytest.mark.parametrize(
    ("path", "user", "mode"),
    [
        ("/etc/poky/credentials", "root", 0o700),
        ("/etc/poky/credentials/poky_dsn", "root", 0o400),
        ("/etc/poky/credentials/poky_owner_dsn", "root", 0o400),
        ("/etc/nginx/poky/key.pem", "root", 0o600),
    ],
)
def test_secrets_are_roots_alone(host: Host, path: str, user: str, mode: int) -> None:
    file = host.file(path)
    assert (file.user, file.mode) == (user, mode)


def test_no_secret_is_in_the_environment_or_on_a_command_line(host: Host) -> None:
    secrets = [
        path.read_text().strip() for path in (ROOT / "tests/molecule/build/secrets").iterdir()
    ]
    assert len(secrets) >= 4
    environments = "for pid in $(pidof -x poky); do cat /proc/$pid/environ; done"
    said = host.check_output(f"cat /etc/poky/poky.env; ps -eo args; {environments}")
    assert "POKY_CACHES" in said
    assert [secret for secret in secrets if secret in said] == []


@pytest.mark.parametrize("path", ["/var/lib/nginx/body", "/var/lib/nginx/proxy"])
def test_nginx_has_room_for_large_bodies(host: Host, path: str) -> None:
    assert host.file(path).user == "www-data"


def test_the_service_may_not_touch_a_table(host: Host) -> None:
    dsn = host.check_output("cat /etc/poky/credentials/poky_dsn")
    done = host.run("psql %s -c 'SELECT * FROM poky._object'", dsn)
    assert done.rc != 0
    assert "permission denied" in done.stderr


def test_the_database_keeps_checksums_and_scram(host: Host) -> None:
    shown = host.check_output(
        "runuser -u postgres -- psql -Atc \"SELECT name || '=' || setting FROM pg_settings"
        " WHERE name IN ('data_checksums', 'password_encryption') ORDER BY 1\""
    )
    assert shown.splitlines() == ["data_checksums=on", "password_encryption=scram-sha-256"]


def test_an_object_lives_through_nginx(deployment: Deployment) -> None:
    deployment.succeed("buckets", poky_bucket="molecule")
    path = "/kv/molecule/key"
    assert deployment.request("PUT", path, "one")[0] == 200
    assert deployment.request("GET", path)[2] == b"one"
    status, headers, body = deployment.request("GET", path)
    assert (status, body, headers["X-Cache"]) == (200, b"one", "HIT")
    assert deployment.request("PUT", path, "two")[0] == 200
    assert deployment.request("GET", path)[2] == b"two"
    assert deployment.request("DELETE", path)[0] == 200
    assert deployment.request("GET", path)[0] == 404


def test_https_is_what_our_own_ca_vouches_for(deployment: Deployment) -> None:
    context = ssl.create_default_context(cafile=str(ROOT / "build/ca/ca.pem"))
    url = f"https://{deployment.address(deployment.groups['web'][0])}/status"
    with urllib.request.urlopen(url, timeout=20, context=context) as answer:
        assert answer.read() == b"ok"


def test_status_has_nothing_to_complain_of(deployment: Deployment) -> None:
    run = deployment.succeed("status")
    assert sum(run.changed().values()) == 0


def test_the_release_is_described_where_it_is(deployment: Deployment, host: Host) -> None:
    (release,) = deployment.releases()
    assert host.check_output("readlink /opt/poky/current") == f"releases/{release}"
    assert [entry["outcome"] for entry in deployment.journal()] == ["good"]
    assert deployment.journal()[0]["to"] == release
    assert deployment.lock() == {}


@pytest.mark.parametrize("command", ["bucket list", "cache status", "config", "migrate --plan"])
def test_the_command_works_where_an_incident_needs_it(host: Host, command: str) -> None:
    done = host.run(f"poky {command}")
    assert done.rc == 0, done.stdout + done.stderr


def test_the_end_of_the_certificate_is_told(deployment: Deployment) -> None:
    assert re.search(r"certificate +until 20\d\d-\d\d-\d\d", deployment.succeed("status").output)
