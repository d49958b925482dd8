"""A database is damaged under load and brought back to the second before: nothing before is lost,
and nothing after passes for new. Figures are in build/molecule/backup/figures.jsonl.
"""

from __future__ import annotations

import http.client
import itertools
import json
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from deployment import Deployment, Hammer, wait_until
from testinfra.host import Host

BUCKET = "kept"
DATABASE = "poky_dev"


@dataclass
class Sent:
    """A write: its value names it. Times are seconds since 1970, by the clock of all machines."""

    key: str
    value: str
    began: float
    ended: float
    tag: str


@dataclass
class Writers:
    """Clients that write all the time, on connections of their own, and remember the answers."""

    address: str
    count: int = 6
    sent: list[Sent] = field(default_factory=list)
    refused: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(number,), daemon=True)
            for number in range(self.count)
        ]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _write(self, number: int) -> None:
        connection = http.client.HTTPConnection(self.address, timeout=60)
        for count in itertools.count():
            if self._stop.is_set():
                return
            key = f"k{number}-{count % 50}"
            began = time.time()
            value = f"{key} {count} {began!r}"
            try:
                connection.request("PUT", f"/kv/{BUCKET}/{key}", value)
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                continue
            if answer.status == 200:
                tag = answer.headers["ETag"]
                self.sent.append(Sent(key, value, began, time.time(), tag))
            else:
                self.refused.append((time.time(), answer.status))
                time.sleep(0.1)
            time.sleep(0.005)


def psql(host: Host, statement: str) -> str:
    command = f'runuser -u postgres -- psql -XAtq -d {DATABASE} -c "{statement}"'
    return str(host.check_output(command)).strip()


@pytest.fixture(scope="session")
def database(deployment: Deployment) -> Host:
    return deployment.host(deployment.groups["database"][0])


@pytest.fixture(scope="session")
def repository() -> Host:
    import testinfra
    from deployment import BUILD

    config = BUILD / "machines/ssh_config"
    return testinfra.get_host("ssh://poky-m-repository", ssh_config=str(config))


def noted(deployment: Deployment, **figures: Any) -> None:
    print(json.dumps(figures))
    with (deployment.work / "figures.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def said(output: str) -> str:
    return " ".join(output.split())


def told(output: str) -> list[str]:
    """The lines that playbooks print at their end, of times and counts."""
    pattern = r"(?m)^ +- ['\"]?(.*(?:restored to|to the last|recovery|objects|checked).*?)['\"]?$"
    return re.findall(pattern, output)


def test_backups_are_taken_checked_and_encrypted(database: Host, repository: Host) -> None:
    info = json.loads(repository.check_output("poky-backup status --json"))
    assert info["cipher"] == "aes-256-cbc"
    assert [each["type"] for each in info["backup"]] == ["full"]
    assert psql(database, "SHOW archive_mode") == "on"
    # No name of ours is readable in what is kept.
    assert repository.run(f"grep -rlaE 'poky._object|{DATABASE}' /var/lib/pgbackrest").rc == 1
    for timer in ("poky-backup", "poky-backup-check"):
        assert repository.service(f"{timer}.timer").is_running
        repository.check_output(f"systemctl start {timer}.service")
    assert database.service("poky-restore-drill.timer").is_running
    figures = repository.check_output("cat /var/lib/prometheus/node-exporter/poky_backup*.prom")
    seconds = {
        name: float(value)
        for name, value in re.findall(r"^(poky_\w+) ([\d.]+)$", figures, re.MULTILINE)
    }
    for name in ("success", "check"):
        assert time.time() - seconds[f"poky_backup_{name}_timestamp_seconds"] < 600


def test_prometheus_sees_all_that_was_deployed(database: Host) -> None:
    """Exporters that run may still not reach what they export."""

    def ask(path: str) -> Any:
        return json.loads(database.check_output(f"curl -s '127.0.0.1:9090/api/v1/{path}'"))["data"]

    def unhealthy() -> list[tuple[str, str]]:
        targets = ask("targets")["activeTargets"]
        assert {each["labels"]["job"] for each in targets} == {
            *("poky", "node", "postgres", "varnish", "nginx")
        }
        return [
            (each["labels"]["job"], each["lastError"]) for each in targets if each["health"] != "up"
        ]

    wait_until(lambda: not unhealthy(), 90, f"every target answers: {unhealthy()}")
    for name in ("pg_up", "nginx_up", "varnish_up"):
        (found,) = ask(f"query?query={name}")["result"]
        assert found["value"][1] == "1", name
    hosts = {each["metric"]["host"] for each in ask("query?query=node_load1")["result"]}
    assert hosts == {"poky-m-backup", "poky-m-repository"}
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def test_a_restore_asks_for_the_name_of_the_environment(
    deployment: Deployment, database: Host
) -> None:
    before = psql(database, "SELECT pg_postmaster_start_time()")
    deployment.fail("restore", "Confirm it with -e backup_restore_confirm=inventory")
    deployment.fail("restore", "replaces the database", backup_restore_confirm="production")
    plan = deployment.succeed("restore", "--check")
    assert "would become what it was" in said(plan.output)
    assert psql(database, "SELECT pg_postmaster_start_time()") == before
    assert deployment.request("GET", "/status")[0] == 200


def test_it_comes_back_to_the_second_before(deployment: Deployment, database: Host) -> None:
    address = deployment.address(deployment.groups["web"][0])
    with Writers(address) as writers:
        wait_until(lambda: len(writers.sent) > 1000, 120, "a thousand writes are acknowledged")
        cursor = json.loads(deployment.request("GET", f"/changes/{BUCKET}?limit=1")[2])["next"]
        moment = psql(
            database,
            "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
        )
        moment = moment.replace(" ", "T") + "Z"
        damaged = time.time()
        psql(database, "DELETE FROM poky._object WHERE key LIKE 'k1%' OR key LIKE 'k2%'")
        count = len(writers.sent)
        wait_until(lambda: len(writers.sent) > count + 300, 60, "writes go on after the damage")
    last = writers.sent[-1]
    # The caches have what will be lost, and clients hold its tags.
    wait_until(
        lambda: deployment.request("GET", f"/kv/{BUCKET}/{last.key}")[1]["X-Cache"] == "HIT",
        30,
        "the cache has the last value",
    )
    began = time.monotonic()
    run = deployment.succeed(
        "restore", backup_restore_time=moment, backup_restore_confirm="inventory"
    )
    seconds = time.monotonic() - began
    target = _epoch(moment)
    values = {sent.value: sent for sent in writers.sent}
    latest: dict[str, Sent] = {}
    for sent in writers.sent:
        if sent.ended < target:
            latest[sent.key] = sent
    assert len(latest) > 100
    later = []
    for key, sent in latest.items():
        status, headers, body = deployment.request("GET", f"/kv/{BUCKET}/{key}")
        assert status == 200, key
        found = values[body.decode()]
        # The last that was acknowledged before, or one that was being written at that moment.
        assert found.tag == headers["ETag"]
        assert found.began < target
        assert _revision(found.tag) >= _revision(sent.tag)
        later.append(found.ended >= target)
    # Nothing of the lost time passes for new.
    lost = [sent for sent in writers.sent if sent.began > target]
    assert len(lost) > 300
    status, _, body = deployment.request(
        "GET", f"/kv/{BUCKET}/{last.key}", **{"If-None-Match": last.tag}
    )
    assert (status, body.decode() != last.value) == (200, True)
    tags = {sent.tag for sent in writers.sent}
    for sent in lost[:20]:
        status, headers, _ = deployment.request("PUT", f"/kv/{BUCKET}/{sent.key}", sent.value)
        assert status == 200
        assert headers["ETag"] not in tags
        assert _revision(headers["ETag"]) > max(map(_revision, tags))
    assert deployment.request("GET", f"/changes/{BUCKET}?after={cursor}")[0] == 410
    assert deployment.lock() == {}
    deployment.succeed("status")
    noted(
        deployment,
        what="a bucket's rows deleted under load, restored to the moment before",
        acknowledged_before=sum(sent.ended < target for sent in writers.sent),
        lost_of_them=0,
        in_flight_kept=sum(later),
        written_after_and_gone=len(lost),
        seconds_from_moment_to_damage=round(damaged - target, 3),
        playbook_seconds=round(seconds, 1),
        said=told(run.output),
    )


def _epoch(moment: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(moment).timestamp()


def _revision(tag: str) -> int:
    return int(tag.strip('"').partition("-")[0])


def test_what_was_restored_is_what_a_deploy_makes(deployment: Deployment) -> None:
    again = deployment.succeed("deploy")
    assert sum(again.changed().values()) == 0, str(again)


def test_a_drill_finds_all_that_there_should_be(deployment: Deployment, database: Host) -> None:
    """Beside the server that runs, under load; it leaves nothing behind."""
    address = deployment.address(deployment.groups["web"][0])
    with Writers(address, count=2) as writers:
        wait_until(lambda: len(writers.sent) > 100, 60, "a hundred writes are acknowledged")
        run = deployment.succeed("restore_drill")
        count = len(writers.sent)
        wait_until(lambda: len(writers.sent) > count, 30, "writes go on")
    assert "the drill found all that there should be" in run.output
    assert not database.file("/var/lib/postgresql/restore-drill").exists
    figures = database.file("/var/lib/prometheus/node-exporter/poky_restore_drill.prom")
    assert "poky_restore_drill_ok 1.000" in figures.content_string
    noted(
        deployment,
        what="drill",
        said=told(run.output),
        refused=len(writers.refused),
    )


def test_passwords_are_rotated_and_no_request_fails(deployment: Deployment, database: Host) -> None:
    passwords = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname ~ '^poky_' ORDER BY 1"
    before = psql(database, passwords)
    deployment.succeed("buckets", poky_bucket="hammer")
    hammer = Hammer(deployment, clients=8, rate=5, seconds=1800)
    try:
        for name in ("poky_database_password", "poky_database_owner_password"):
            deployment.settings[name] = f"rotated, {time.time()}"
        deployment.succeed("rotate")
    finally:
        report = hammer.stop()
    print(json.dumps(report, indent=2))
    assert report["requests"] > 100
    assert (report["failed"], report["wrong"]) == (0, 0), json.dumps(report, indent=2)
    after = psql(database, passwords)
    names = [line.split("|")[0] for line in after.splitlines()]
    assert names == ["poky_monitor", "poky_owner", "poky_reader", "poky_service"]
    changed = [
        name
        for name, old, new in zip(names, before.splitlines(), after.splitlines(), strict=True)
        if old != new
    ]
    assert changed == ["poky_owner", "poky_service"]
    database.check_output("poky migrate --plan")
    assert deployment.lock() == {}
    noted(
        deployment,
        what="passwords rotated under load",
        requests=report["requests"],
        failed=0,
        wrong=0,
    )


def test_the_key_of_backups_is_rotated_and_no_request_fails(
    deployment: Deployment, database: Host, repository: Host
) -> None:
    """A new repository by a new key; the former key still reads the former one."""
    former = json.loads(repository.check_output("poky-backup status --json"))
    key = repository.check_output("sed -n s/^repo1-cipher-pass=//p /etc/pgbackrest/pgbackrest.conf")
    deployment.fail("rotate_backup_key", "put a new backup_key into the vault first")
    deployment.settings["backup_key"] = f"rotated{time.time()}".replace(".", "")
    deployment.fail("backups", "is another one than that of the repository")
    hammer = Hammer(deployment, clients=4, rate=5, seconds=1800)
    try:
        deployment.succeed("rotate_backup_key", "--check")
        deployment.succeed("rotate_backup_key")
    finally:
        report = hammer.stop()
    assert (report["failed"], report["wrong"]) == (0, 0), json.dumps(report, indent=2)
    new = json.loads(repository.check_output("poky-backup status --json"))
    assert [each["type"] for each in new["backup"]] == ["full"]
    assert new["backup"][0]["label"] not in {each["label"] for each in former["backup"]}
    aside = repository.check_output("ls -d /var/lib/pgbackrest/until-*")
    given = f"PGBACKREST_REPO1_PATH={aside} PGBACKREST_REPO1_CIPHER_PASS={{}}"
    read = f"runuser -u postgres -- env {given} pgbackrest --stanza=poky info --output=json"
    (found,) = json.loads(repository.check_output(read.format(key)))
    assert found["backup"] == former["backup"]
    # What it tells of a file that it cannot decrypt has that file's first bytes in it.
    readable = f"{read.format('another')} | LC_ALL=C tr -cd '[:print:]'"
    (closed,) = json.loads(repository.check_output(readable))
    assert (closed["backup"], closed["status"]["code"]) == ([], 99)
    for timer in ("poky-backup", "poky-backup-check"):
        assert repository.service(f"{timer}.timer").is_running
    deployment.succeed("restore_drill")
    noted(
        deployment,
        what="the key of backups rotated under load",
        requests=report["requests"],
        failed=0,
        wrong=0,
    )


def test_certificates_are_renewed_and_no_request_fails(
    deployment: Deployment, database: Host, repository: Host
) -> None:
    folders = "$(ls -d /etc/nginx /etc/pgbackrest 2>/dev/null)"
    files = f"find {folders} -name '*.pem' ! -name ca.pem -exec sha256sum {{}} +"
    before = {host: host.check_output(files).split() for host in (database, repository)}
    hammer = Hammer(deployment, clients=8, rate=5, seconds=1800, reopens=True)
    try:
        deployment.succeed("certificates")
    finally:
        report = hammer.stop()
    assert (report["failed"], report["wrong"]) == (0, 0), json.dumps(report, indent=2)
    for host, words in before.items():
        assert words
        after = host.check_output(files).split()
        assert set(words[1::2]) == set(after[1::2])  # the files
        assert not set(words[::2]) & set(after[::2])  # what is in them
    # What answers has the new one.
    served = database.check_output(
        "openssl s_client -connect localhost:443 </dev/null 2>/dev/null | openssl x509 -outform PEM"
    )
    assert served.strip() in database.file("/etc/nginx/poky/certificate.pem").content_string
    repository.check_output("poky-backup check")
    assert deployment.lock() == {}
    again = deployment.succeed("deploy")
    assert sum(again.changed().values()) == 0, str(again)
    noted(
        deployment,
        what="certificates renewed under load",
        requests=report["requests"],
        failed=0,
        wrong=0,
    )


@pytest.mark.long
def test_a_host_that_has_lost_its_data_gets_them_back(
    deployment: Deployment, database: Host, repository: Host
) -> None:
    """The latest state that there is; a check has just seen it reach the repository."""
    address = deployment.address(deployment.groups["web"][0])
    with Writers(address) as writers:
        wait_until(lambda: len(writers.sent) > 300, 60, "writes are acknowledged")
    repository.check_output("poky-backup check")
    database.check_output("systemctl kill --signal=KILL 'postgresql@*-main.service'")
    with suppress(AssertionError):
        database.check_output("systemctl stop 'postgresql@*-main.service'")
    database.check_output("rm -rf /var/lib/postgresql/*/main")
    run = deployment.succeed("restore", backup_restore_confirm="inventory")
    latest = {sent.key: sent for sent in writers.sent}
    for key, sent in latest.items():
        status, headers, body = deployment.request("GET", f"/kv/{BUCKET}/{key}")
        assert (status, body.decode(), headers["ETag"]) == (200, sent.value, sent.tag)
    noted(
        deployment,
        what="the data directory is gone, restored to the latest state",
        acknowledged=len(writers.sent),
        lost=0,
        said=told(run.output),
    )
