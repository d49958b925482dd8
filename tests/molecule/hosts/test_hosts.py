"""What a host lets another one do, seen from there: sockets, firewall, TLS; modes and updates."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from deployment import Deployment, wait_until
from testinfra.host import Host

LISTENS = {"poky-m-app": {22, 80, 443}, "poky-m-data": {22, 5432}}
# A program of the service's release that connects to the database, and says how that went.
CONNECT = """
import re, sys, psycopg2
dsn = open("/etc/poky/credentials/poky_dsn").read()
try:
    psycopg2.connect(re.sub(sys.argv[1], sys.argv[2], dsn)).close()
except psycopg2.Error as error:
    print(error)
"""
PYTHON = "/opt/poky/current/venv/bin/python"


@pytest.fixture
def app(deployment: Deployment) -> Host:
    return deployment.host("poky-m-app")


@pytest.fixture
def data(deployment: Deployment) -> Host:
    return deployment.host("poky-m-data")


def reaches(host: Host, address: str, port: int) -> bool:
    """Whether a TCP connection comes about; what is dropped takes two seconds to tell."""
    command = f"timeout 2 bash -c '</dev/tcp/{address}/{port}'"
    return host.run(command).rc == 0


def answers_ssh(address: str) -> bool:
    """Whether the controller reaches it."""
    with suppress(OSError), socket.create_connection((address, 22), timeout=2) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def test_a_second_deploy_changes_nothing(deployment: Deployment) -> None:
    assert set(deployment.succeed("deploy").changed().values()) == {0}


@pytest.mark.parametrize("name", LISTENS)
def test_nothing_else_listens_to_other_machines(deployment: Deployment, name: str) -> None:
    listed = deployment.host(name).check_output("ss -Hltn").splitlines()
    addresses = [line.split()[3].rpartition(":") for line in listed]
    outside = {
        int(port) for address, _, port in addresses if not address.startswith(("127.", "[::1"))
    }
    assert outside == LISTENS[name]


def test_others_reach_what_they_need_and_no_more(
    deployment: Deployment, app: Host, data: Host
) -> None:
    here, there = deployment.address("poky-m-app"), deployment.address("poky-m-data")
    assert reaches(app, there, 5432)
    for port in (22, 80, 443):
        assert reaches(data, here, port)
    # Programs that nobody declared.
    for host, address, other in ((app, here, data), (data, there, app)):
        host.check_output("systemd-run --unit=stranger python3 -m http.server 9999")
        try:
            wait_until(lambda: reaches(host, address, 9999), 30, "the stranger listens")  # noqa: B023
            assert not reaches(other, address, 9999)
        finally:
            host.check_output("systemctl stop stranger")


def test_a_further_port_is_for_those_that_it_was_given(
    deployment: Deployment, app: Host, data: Host
) -> None:
    here, there = deployment.address("poky-m-app"), deployment.address("poky-m-data")
    rules = [{"ports": [9999], "from": [there]}, {"ports": [9998], "from": ["192.0.2.1"]}]
    deployment.succeed("deploy", hosts_firewall_allow=rules)
    app.check_output("systemd-run --unit=stranger9 python3 -m http.server 9999")
    app.check_output("systemd-run --unit=stranger8 python3 -m http.server 9998")
    wait_until(lambda: reaches(data, here, 9999), 30, "the stranger is reached")
    wait_until(lambda: reaches(app, here, 9998), 30, "the other one listens")
    assert not reaches(data, here, 9998)
    deployment.succeed("deploy")
    assert not reaches(data, here, 9999)
    app.check_output("systemctl stop stranger9 stranger8")


def test_the_service_insists_on_the_database_that_our_ca_vouches_for(
    deployment: Deployment, app: Host, data: Host
) -> None:
    query = (
        "SELECT DISTINCT ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        " WHERE usename = 'poky_service'"
    )
    said = data.check_output(f'runuser -u postgres -- psql -XAtc "{query}"')
    assert said == "t|TLSv1.3"
    assert "sslmode=verify-full" in app.check_output("cat /etc/poky/credentials/poky_dsn")
    wrong = {
        "sslrootcert=\\S+": "sslrootcert=/etc/ssl/certs/ca-certificates.crt",
        "host=\\S+": "host=poky-m-data.example hostaddr=" + deployment.address("poky-m-data"),
        "sslmode=\\S+": "sslmode=disable",
    }
    assert app.check_output(f"{PYTHON} - x x <<'E'\n{CONNECT}\nE") == ""
    for pattern, instead in wrong.items():
        said = app.check_output(f"{PYTHON} - '{pattern}' '{instead}' <<'E'\n{CONNECT}\nE")
        assert any(
            words in said
            for words in ("certificate verify failed", "does not match host name", "no pg_hba.conf")
        ), said


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        ("-tls1_3", True),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-GCM-SHA256", True),
        ("-tls1_2 -cipher ECDHE-ECDSA-CHACHA20-POLY1305", True),
        ("-tls1_2 -cipher ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0", False),
        ("-tls1_2 -cipher AES128-SHA:@SECLEVEL=0", False),
        ("-tls1_1 -cipher ALL:@SECLEVEL=0", False),
        ("-tls1 -cipher ALL:@SECLEVEL=0", False),
    ],
)
def test_ciphers_as_seen_from_another_host(
    deployment: Deployment, data: Host, options: str, accepted: bool
) -> None:
    here = deployment.address("poky-m-app")
    done = data.run(f"openssl s_client -connect {here}:443 {options} </dev/null")
    assert (done.rc == 0) == accepted, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "path", "user", "group", "mode"),
    [
        ("poky-m-app", "/etc/poky/database-ca.pem", "root", "root", 0o644),
        ("poky-m-app", "/etc/poky/credentials/poky_dsn", "root", "root", 0o400),
        ("poky-m-app", "/etc/nginx/poky/key.pem", "root", "root", 0o600),
        ("poky-m-app", "/var/log/nginx/poky.access.log", "www-data", "adm", 0o640),
        ("poky-m-app", "/var/log/nginx/poky.error.log", "www-data", "adm", 0o640),
        ("poky-m-data", "/etc/postgresql/*/main/poky.key", "postgres", "postgres", 0o600),
        ("poky-m-data", "/etc/nftables.d/poky.nft", "root", "root", 0o644),
    ],
)
def test_modes(
    deployment: Deployment, name: str, path: str, user: str, group: str, mode: int
) -> None:
    said = deployment.host(name).check_output(f"stat -c '%U %G %a' {path}")
    assert said == f"{user} {group} {mode:o}"


def test_the_service_may_talk_with_its_neighbours_alone(deployment: Deployment, app: Host) -> None:
    allowed = app.check_output("systemctl show --value -p IPAddressAllow poky@8081").split()
    neighbours = {f"{deployment.address(name)}/32" for name in LISTENS}
    assert neighbours <= set(allowed)
    assert set(allowed) - neighbours <= {"127.0.0.0/8", "::1/128"}
    assert app.check_output("systemctl show --value -p IPAddressDeny poky@8081").split()


@pytest.mark.parametrize("name", LISTENS)
def test_security_updates_come_but_restart_no_server(deployment: Deployment, name: str) -> None:
    host = deployment.host(name)
    said = host.check_output("apt-config dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in said
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in said
    for package in ("postgresql", "varnish", "nginx"):
        assert f'Unattended-Upgrade::Package-Blacklist:: "^{package}";' in said
    assert "SystemMaxUse=1G" in host.check_output(
        "systemd-analyze cat-config systemd/journald.conf"
    )


def test_status_shows_when_certificates_end(deployment: Deployment) -> None:
    said = deployment.succeed("status").output
    assert "/etc/nginx/poky/certificate.pem" in said
    assert "main/poky.pem" in said


def test_a_firewall_that_cuts_ansible_off_is_gone_after_a_minute(deployment: Deployment) -> None:
    """Both machines are cut off, so each is asked from here."""
    deployment.fail("deploy", "poky-m-app", _hosts_ssh=[2222])
    for name in LISTENS:
        address = deployment.address(name)
        wait_until(lambda: answers_ssh(address), 120, f"{name} answers ssh again")  # noqa: B023
        assert deployment.host(name).run("nft list table inet poky").rc != 0
    deployment.succeed("deploy")
    for name in LISTENS:
        assert deployment.host(name).run("nft list table inet poky").rc == 0
