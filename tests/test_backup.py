"""Backups: where they may be kept, what pgBackRest is told, the program that takes them and back.

What playbooks do with them on machines, under load, is tests/molecule/backup.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.request import Request, urlopen

import psycopg2
import pytest
import yaml

from poky.schema.migrate import migrate
from poky.store import Store
from tests.service import free_ports, wait_until
from tests.support import roles
from tests.test_playbooks import plugin

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 29, 23, 10, 5, 500_000, UTC).timestamp()
DAY = 86400


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    return plugin("filter.poky_backup")


@pytest.fixture(scope="module")
def program() -> ModuleType:
    return load("poky_backup")


@pytest.fixture(scope="module")
def trial(program: ModuleType) -> ModuleType:
    """The drill, which imports the program."""
    return load("poky_restore_drill")


def load(name: str) -> ModuleType:
    path = roles.ROOT / f"roles/backup/files/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# Where backups may be kept, and to which moments they lead.


@pytest.mark.parametrize(
    ("backup", "database", "words"),
    [
        ([], ["a"], []),
        (["a"], ["a"], []),
        (["r"], ["a"], []),
        (["r"], ["a", "b", "c"], []),
        (["r", "s"], ["a"], ["“backup” has 2 hosts"]),
        (["r"], [], ["none in “database”"]),
        (["b"], ["a", "b", "c"], ["b is in “backup” and in “database”"]),
    ],
)
def test_the_repository_is_on_one_host_that_a_cluster_can_lose_members_without(
    rules: ModuleType, backup: list[str], database: list[str], words: list[str]
) -> None:
    faults = rules.poky_backup_faults({"backup": backup, "database": database})
    assert len(faults) == len(words), faults
    assert all(word in fault for word, fault in zip(words, faults, strict=True))


def backup_of(stop: float, kind: str = "full", **more: Any) -> dict[str, Any]:
    return {
        "type": kind,
        "timestamp": {"start": int(stop) - 9, "stop": int(stop)},
        "error": False,
        **more,
    }


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ("", ""),
        ("2026-11-29T23:10:05Z", "2026-11-29 23:10:05.000000+00"),
        ("2026-11-30T00:10:05.25+01:00", "2026-11-29 23:10:05.250000+00"),
        (" 2026-11-29 12:00:00-0500 ", "2026-11-29 17:00:00.000000+00"),
    ],
)
def test_a_moment_is_taken_from_any_time_zone(rules: ModuleType, asked: str, target: str) -> None:
    backups = [backup_of(NOW - 3 * DAY), backup_of(NOW - DAY)]
    said = rules.poky_restore_point(asked, backups, NOW)
    assert said == {"target": target, "refusal": ""}


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        ("2026-11-29T23:10:05", "does not say of which time zone it is"),
        ("2026-11-29T23:10:06Z", "is still to come"),
        ("yesterday", "is no time; write it as 2026-11-29T23:10:05Z"),
        ("23:10", "is no time"),
        ("2026-11-26T23:10:04Z", "2026-11-26T23:10:05Z is the first moment"),
    ],
)
def test_a_moment_without_a_way_to_it_is_refused(
    rules: ModuleType, asked: str, refusal: str
) -> None:
    backups = [backup_of(NOW - 9 * DAY, error=True), backup_of(NOW - 3 * DAY)]
    said = rules.poky_restore_point(asked, backups, NOW)
    assert refusal in said["refusal"]
    assert "no backup" in rules.poky_restore_point(asked, backups[:1], NOW)["refusal"]


@pytest.mark.parametrize(
    ("kinds", "next_one"),
    [
        ([], "full"),
        ([("full", 1)], "diff"),
        ([("full", 6.9), ("diff", 1)], "diff"),
        ([("full", 6.97), ("diff", 1)], "full"),
        ([("full", 8), ("full", 2), ("diff", 1)], "diff"),
    ],
)
def test_a_backup_is_full_every_so_many_days(
    program: ModuleType, kinds: list[tuple[str, float]], next_one: str
) -> None:
    backups = [backup_of(NOW - days * DAY + 9, which) for which, days in kinds]
    assert program.next_kind(backups, 7, NOW) == next_one


# What pgBackRest is told.

HOSTS = {
    name: {
        "poky_address": address,
        "ansible_facts": {"distribution_major_version": "13"},
    }
    for name, address in {
        "a": "192.0.2.1",
        "b": "192.0.2.2",
        "c": "192.0.2.3",
        "r": "192.0.2.9",
    }.items()
}
S3 = {
    "backup_storage": "s3",
    "backup_path": "/poky",
    "backup_s3_bucket": "b",
    "backup_s3_endpoint": "127.0.0.1:1",
    "backup_s3_key": "k",
    "backup_s3_secret": "s",
    "backup_s3_ca_file": "/etc/ssl/certs/ca-certificates.crt",
}


def told(here: str, database: str, backup: str, **given: Any) -> str:
    return roles.render(
        "backup",
        "pgbackrest.conf.j2",
        inventory_hostname=here,
        groups={"database": list(database), "backup": list(backup)},
        hostvars=HOSTS,
        poky_address=HOSTS[here]["poky_address"],
        backup_key="x" * 40,
        ansible_facts=HOSTS[here]["ansible_facts"],
        **given,
    )


@pytest.mark.parametrize(
    ("arguments", "given", "lines"),
    [
        (("a", "a", "a"), {}, ["repo1-type=posix", "pg1-path=/var/lib/postgresql/17/main"]),
        (("r", "a", "r"), {}, ["pg1-host=192.0.2.1", "tls-server-auth=a=poky"]),
        (("a", "a", "r"), {}, ["repo1-host=192.0.2.9", "tls-server-auth=r=poky"]),
        (("r", "abc", "r"), {}, ["backup-standby=y", "pg3-host=192.0.2.3"]),
        (("a", "a", "a"), S3, ["repo1-s3-endpoint=127.0.0.1:1", "repo1-s3-uri-style=path"]),
    ],
    ids=["one-host", "repository", "database", "cluster", "s3"],
)
def test_pgbackrest_understands_what_it_is_told(
    arguments: tuple[str, str, str], given: dict[str, Any], lines: list[str], tmp_path: Path
) -> None:
    """No error of an option: it fails for want of a repository, a key or a network alone."""
    text = told(*arguments, **given)
    assert not [line for line in lines if line not in text.splitlines()]
    assert ("cipher-pass" in text) == ("repo1-host=" not in text)
    file = tmp_path / "pgbackrest.conf"
    file.write_text(text.replace("/var/lib/pgbackrest", str(tmp_path)))
    command = ["pgbackrest", f"--config={file}", "--stanza=poky", "--io-timeout=1", "info"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    said = done.stdout + done.stderr
    assert "stanza: poky" in said, said
    assert "option" not in said, said
    assert "WARN" not in said, said
    # The certificates of this host are not there, nor is a store that answers.
    wanting = "HostConnectError" if "repo1-s3" in text else "missing stanza path"
    assert ("certificate" if "repo1-host=" in text else wanting) in said, said
    file.write_text(text.replace("compress-type=zst", "compress-tipe=zst"))
    broken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "contains invalid option 'compress-tipe'" in broken.stderr


def test_each_of_several_databases_has_a_name_in_the_repository(tmp_path: Path) -> None:
    hosts = {**HOSTS, "b": {**HOSTS["b"], "poky_shard": 1}, "c": {**HOSTS["c"], "poky_shard": 7}}
    given = {
        "groups": {"database": ["a"], "shards": ["c", "b"], "backup": ["r"]},
        "hostvars": hosts,
        "backup_key": "x" * 40,
        "backup_path": str(tmp_path),
        "ansible_facts": HOSTS["a"]["ansible_facts"],
    }

    def of(here: str, template: str) -> str:
        known = {**hosts[here], "inventory_hostname": here}
        return roles.render("backup", template, **{**known, **given})

    text = of("r", "pgbackrest.conf.j2")
    lines = text.splitlines()
    for peer, stanza in (("a", "poky"), ("b", "poky-shard-1"), ("c", "poky-shard-7")):
        assert f"tls-server-auth={peer}={stanza}" in lines
        section = text.partition(f"[{stanza}]\n")[2].partition("\n[")[0]
        assert f"pg1-host={HOSTS[peer]['poky_address']}" in section
    (tmp_path / "pgbackrest.conf").write_text(text)
    command = ["pgbackrest", f"--config={tmp_path}/pgbackrest.conf", "info"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "option" not in done.stdout + done.stderr
    assert of("c", "pgbackrest.conf.j2").count("[poky-shard-7]") == 1
    assert "[poky]" not in of("c", "pgbackrest.conf.j2")
    for here, further in (("r", ["poky-shard-1", "poky-shard-7"]), ("c", [])):
        known = {**hosts[here], "inventory_hostname": here, **given}
        assert list(roles.value("backup", "_backup_further", **known)) == further


def test_postgresql_of_several_databases_lets_buckets_move() -> None:
    groups = {"database": ["a"], "service": ["a"], "backup": ["r"]}
    facts = {"distribution_major_version": "13", "memtotal_mb": 1024}

    def settings(here: str, shards: list[str]) -> dict[str, str]:
        found: dict[str, str] = roles.value(
            "postgresql",
            "_postgresql_settings",
            groups={**groups, "shards": shards},
            hostvars=HOSTS,
            poky_address=HOSTS[here]["poky_address"],
            poky_shard=7,
            inventory_hostname=here,
            ansible_facts=facts,
        )
        return {name: str(value) for name, value in found.items()}

    alone, first, further = settings("a", []), settings("a", ["c"]), settings("c", ["c"])
    assert (alone["wal_level"], alone["max_slot_wal_keep_size"]) == ("replica", "-1")
    for each, stanza in ((first, "poky"), (further, "poky-shard-7")):
        assert (each["wal_level"], each["max_slot_wal_keep_size"]) == ("logical", "16384MB")
        assert f"--stanza={stanza} " in each["archive_command"]


def test_settings_of_postgresql_archive_where_there_is_a_repository() -> None:
    groups = {"database": ["a"], "service": ["a"], "backup": ["r"]}
    given = {"inventory_hostname": "a", "hostvars": HOSTS, "poky_address": "192.0.2.1"}
    facts = {"distribution_major_version": "13", "memtotal_mb": 1024}
    for backup, mode in ((["r"], "on"), ([], "off")):
        settings = roles.value(
            "postgresql",
            "_postgresql_settings",
            groups={**groups, "backup": backup},
            ansible_facts=facts,
            **given,
        )
        assert settings["archive_mode"] == mode
        assert bool(settings["archive_command"]) == (mode == "on")
        assert str(settings["archive_timeout"]) == "60"


# The program, with a PostgreSQL and a pgBackRest of its own.


@dataclass
class Server:
    """A PostgreSQL of Debian that archives, and its repository; the program's user runs both."""

    program: ModuleType
    home: Path
    settings: Any

    @property
    def dsn(self) -> str:
        return f"host={self.home} dbname=poky user=postgres"

    def control(self, verb: str, *words: str) -> None:
        self.program.call(
            f"{self.settings.bin}/pg_ctl", "-D", self.settings.data, "-s", "-w", *words, verb
        )

    def start(self) -> None:
        self.control("start", "-l", f"{self.home}/log")
        with closing(
            psycopg2.connect(f"host={self.home} dbname=postgres user=postgres")
        ) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                wait_until(lambda: _recovered(cursor), what="it has replayed all", timeout=60)

    def ask(self, statement: str) -> Any:
        with closing(psycopg2.connect(self.dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            connection.commit()
            return cursor.fetchone() if cursor.description else None


def _recovered(cursor: Any) -> bool:
    cursor.execute("SELECT NOT pg_is_in_recovery()")
    return bool(cursor.fetchone()[0])


@pytest.fixture
def server(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    yield from made(program, monkeypatch)


@pytest.fixture
def stored(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Server]:
    """The same, its repository in an S3-compatible store, with a certificate by a CA of ours.

    moto's, and nginx before it: moto ends its connections as TLS forbids.
    """
    port, plain = free_ports(2)
    ca = Path(tempfile.mkdtemp(prefix="poky-store-"))  # PostgreSQL's user does not see pytest's
    ca.chmod(0o755)
    issue(ca)
    (tmp_path / "nginx.conf").write_text(
        f"""
        daemon off;
        {"user root;" if os.geteuid() == 0 else ""}
        pid {tmp_path}/pid;
        error_log {tmp_path}/nginx.log;
        events {{ }}
        http {{
            access_log {tmp_path}/access.log;
            client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;
            fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u;
            scgi_temp_path {tmp_path}/s;
            client_max_body_size 0;
            server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {ca}/store.pem;
                ssl_certificate_key {ca}/store.key;
                location / {{
                    proxy_pass http://127.0.0.1:{plain};
                    proxy_set_header Host $http_host;
                }}
            }}
        }}
        """
    )
    commands = (
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(plain)],
        ["nginx", "-e", f"{tmp_path}/nginx.log", "-c", f"{tmp_path}/nginx.conf"],
    )
    with (tmp_path / "store.log").open("wb") as log:
        processes = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
    try:
        trusting = ssl.create_default_context(cafile=f"{ca}/ca.pem")
        bucket = Request(f"https://127.0.0.1:{port}/backups", method="PUT")
        bucket.add_header(
            "Authorization", "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request"
        )

        def is_made() -> bool:
            with suppress(OSError), urlopen(bucket, context=trusting, timeout=5) as answer:
                return bool(answer.status == 200)
            return False

        wait_until(is_made, 60, f"the store answers; see {tmp_path / 'store.log'}")
        given = {
            **S3,
            **{"backup_s3_endpoint": f"127.0.0.1:{port}", "backup_s3_bucket": "backups"},
            **{"backup_s3_ca_file": f"{ca}/ca.pem", "backup_path": "/poky"},
        }
        (ca / "ca.pem").chmod(0o644)
        yield from made(program, monkeypatch, **given)
    finally:
        for process in processes:
            process.terminate()
            process.wait(20)
        shutil.rmtree(ca)


def issue(folder: Path) -> None:
    """A CA, and a certificate by it for 127.0.0.1, as the role ca makes them."""
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc"
    for words in (
        f"req -x509 {key} -subj /CN=ca -addext basicConstraints=critical,CA:TRUE"
        " -keyout ca.key -out ca.pem",
        f"req {key} -subj /CN=store -addext subjectAltName=IP:127.0.0.1,DNS:127.0.0.1"
        " -keyout store.key -out store.csr",
        "x509 -req -in store.csr -CA ca.pem -CAkey ca.key -copy_extensions copy -out store.pem",
    ):
        done = ["openssl", *words.split()]
        subprocess.run(done, cwd=folder, capture_output=True, check=True)


def made(program: ModuleType, monkeypatch: pytest.MonkeyPatch, **given: Any) -> Iterator[Server]:
    """A PostgreSQL that archives as the role tells it, with a repository."""
    bin = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    home = Path(tempfile.mkdtemp(prefix="poky-backup-"))
    (home / "metrics").mkdir()
    (home / "room").mkdir()
    for path in (home, home / "metrics", home / "room"):
        path.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(path, pwd.getpwnam("postgres").pw_uid, -1)
    configuration = told("a", "a", "a", **{"backup_path": f"{home}/repository", **given})
    configuration = configuration.replace("/var/lib/postgresql/17/main", f"{home}/data")
    (home / "pgbackrest.conf").write_text(
        f"{configuration}\npg1-socket-path={home}\npg1-user=postgres\n"
    )
    (home / "pgbackrest.conf").chmod(0o644)
    monkeypatch.setenv("PGBACKREST_CONFIG", f"{home}/pgbackrest.conf")
    monkeypatch.setenv("PGBACKREST_LOCK_PATH", f"{home}/lock")
    monkeypatch.setenv("PGUSER", "postgres")
    monkeypatch.setattr(program, "METRICS", home / "metrics")
    settings = program.Settings(
        stanza="poky",
        data=f"{home}/data",
        bin=str(bin),
        database="poky",
        full_days=7,
        drill_directory=f"{home}/room",
        drill_port=5499,
        drill_objects=100,
        sockets=str(home),
    )
    server = Server(program, home, settings)
    program.call(f"{bin}/initdb", "-D", settings.data, "-U", "postgres", "-A", "trust", "-N")
    program.call(
        "tee",
        "-a",
        f"{settings.data}/postgresql.conf",
        given=f"""
listen_addresses = ''
unix_socket_directories = '{home}'
unix_socket_permissions = 0777
fsync = off
shared_buffers = 32MB
archive_mode = on
archive_command = 'pgbackrest --stanza=poky archive-push %p'
""",
    )
    server.start()
    try:
        with closing(psycopg2.connect(f"host={home} dbname=postgres user=postgres")) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("CREATE ROLE poky_owner NOLOGIN")
                cursor.execute("CREATE ROLE poky_service LOGIN")
                cursor.execute("CREATE DATABASE poky OWNER poky_owner")
        migrate(server.dsn, release="tests", kind="partitioned")
        program.call("pgbackrest", "--stanza=poky", "stanza-create")
        yield server
    finally:
        if program.runs(Path(settings.data)):
            server.control("stop", "-m", "immediate")
        shutil.rmtree(home, ignore_errors=True)


def write(store: Store, *keys: str, value: bytes = b"v") -> None:
    for key in keys:
        store.put("tips", key, value, "text/plain")


def figures(server: Server, name: str) -> dict[str, float]:
    text = (server.home / "metrics" / f"{name}.prom").read_text()
    return {
        metric: float(value) for metric, value in re.findall(r"^([^#\s]+) ([\d.]+)$", text, re.M)
    }


@pytest.mark.timeout(300)
def test_the_program_takes_backups_goes_back_and_tries_it(
    server: Server, program: ModuleType, trial: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = server.settings
    with closing(Store(server.dsn, pool_size=1)) as store:
        store.ensure_bucket("tips")
        write(store, *map(str, range(50)), value=b"x" * 3000)
        program.run(settings, "auto", only_missing=True)
        assert "a full backup was taken" in capsys.readouterr().out
        program.run(settings, "auto", only_missing=True)
        assert capsys.readouterr().out == ""
        # Of several databases, one that fails keeps none of the others from theirs.
        several = replace(settings, stanza="poky-shard-9", further=("poky",))
        with pytest.raises(program.Failed, match="poky-shard-9: The backup failed"):
            program.run(several, "diff", only_missing=False)
        assert "a diff backup was taken" in capsys.readouterr().out
        seen = figures(server, "poky_backup")
        name = "poky_backup_success_timestamp_seconds"
        assert seen[name] == 0
        assert seen[f'{name}{{stanza="poky"}}'] > 0
        assert 'poky_backup_last_timestamp_seconds{kind="diff",stanza="poky"}' in seen
        program.run(settings, "auto", only_missing=True)
        assert time.time() - figures(server, "poky_backup")[
            "poky_backup_success_timestamp_seconds"
        ] == pytest.approx(0, abs=60)
        assert 'poky_backup_last_timestamp_seconds{kind="full"}' in figures(server, "poky_backup")
        program.check(settings)
        assert "poky_backup_check_timestamp_seconds" in figures(server, "poky_backup_check")

        # A drill beside it finds what is there, and leaves alone what is not its own.
        other = Path(settings.drill_directory, "other")
        other.touch()
        server.ask("UPDATE poky._object SET written_at = written_at - 1000 WHERE key <> '0'")
        program.check(settings)
        drill = trial.Drill(settings)
        drill.run()
        assert drill.faults == [], drill.lines
        assert any("50 objects restored" in line for line in drill.lines)
        assert any("49 objects of 1 buckets that have not changed" in line for line in drill.lines)
        assert [*Path(settings.drill_directory).iterdir()] == [other]

        # Back to the moment before the damage; the server that runs is left alone.
        write(store, "kept")
        (moment,) = server.ask("SELECT clock_timestamp()")
        write(store, "lost")
        server.ask("SELECT pg_switch_wal()")
        with pytest.raises(program.Failed, match="stop it first"):
            program.restore(settings, "", "", keep=True)
    server.control("stop", "-m", "fast")
    target = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    program.restore(settings, target, "", keep=True)
    former = Path(f"{settings.data}.before-restore")
    assert former.is_dir()
    server.start()
    with closing(Store(server.dsn, pool_size=1)) as store:
        assert [key for key in ("0", "kept", "lost") if store.get("tips", key)] == ["0", "kept"]

    # The first data that were set aside may have what no repository has.
    inode = former.stat().st_ino
    server.control("stop", "-m", "fast")
    program.restore(settings, "", "", keep=True)
    assert former.stat().st_ino == inode
    assert Path(f"{former}-2").is_dir()


@pytest.mark.timeout(300)
def test_a_repository_in_s3_is_written_and_restored_from(
    stored: Server, program: ModuleType
) -> None:
    """Real pgBackRest and a store that is not Amazon's: the variables of the role are enough."""
    settings = stored.settings
    with closing(Store(stored.dsn, pool_size=1)) as store:
        store.ensure_bucket("tips")
        write(store, *map(str, range(50)), value=b"x" * 3000)
        program.run(settings, "full", only_missing=False)
        write(store, "later")
        program.run(settings, "diff", only_missing=False)
        assert set(figures(stored, "poky_backup")) >= {
            'poky_backup_last_timestamp_seconds{kind="full"}',
            'poky_backup_last_timestamp_seconds{kind="diff"}',
        }
        program.check(settings)
        (moment,) = stored.ask("SELECT clock_timestamp()")
        write(store, "lost")
        stored.ask("SELECT pg_switch_wal()")
    assert not (stored.home / "repository").exists()
    stored.control("stop", "-m", "fast")
    target = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f+00")
    program.restore(settings, target, "", keep=False)
    stored.start()
    with closing(Store(stored.dsn, pool_size=1)) as store:
        found = [key for key in ("0", "later", "lost") if store.get("tips", key)]
    assert found == ["0", "later"]


@pytest.mark.timeout(300)
def test_a_drill_notices_what_is_missing_or_differs(
    server: Server, program: ModuleType, trial: ModuleType
) -> None:
    """The live server has what it never told the repository: as if the backup had lost it."""
    settings = server.settings
    with closing(Store(server.dsn, pool_size=1)) as store:
        store.ensure_bucket("tips")
        write(store, *map(str, range(20)))
        program.run(settings, "full", only_missing=False)
        program.call(f"{settings.bin}/psql", "-h", str(server.home), "-U", "postgres",
                     "-c", "ALTER SYSTEM SET archive_command = 'false'",
                     "-c", "SELECT pg_reload_conf()")  # fmt: skip
        write(store, "new")
    server.ask(
        "UPDATE poky._object SET written_at = written_at - 1000, value = 'other'"
        " WHERE key IN ('3', 'new')"
    )
    drill = trial.Drill(settings)
    drill.run()
    assert any("the bucket tips has" in fault for fault in drill.faults), drill.faults
    assert any("objects differ" in fault for fault in drill.faults), drill.faults


@pytest.mark.parametrize(
    ("last_start", "said"),
    [
        (["restored log file"], ""),
        (["FATAL:  recovery ended before configured recovery target was reached"], "recovery"),
    ],
)
def test_waiting_for_the_replay_hears_of_this_start_alone(
    tmp_path: Path, last_start: list[str], said: str
) -> None:
    """What a restore that has failed left in the log does not end the next one."""
    (waiting,) = (
        task["ansible.builtin.command"]["argv"][-1]
        for task in yaml.safe_load((roles.ROOT / "roles/backup/tasks/restore/data.yml").read_text())
        if task["name"].startswith("Wait until it has replayed")
    )
    start = "LOG:  starting PostgreSQL 17.2"
    former = [start, "FATAL:  recovery ended before configured recovery target was reached"]
    (tmp_path / "postgresql-17-main.log").write_text("\n".join([*former, start, *last_start, ""]))
    (tmp_path / "restore.log").write_text("\n".join(former))
    os.utime(tmp_path / "restore.log", (0, 0))
    script = waiting.replace("runuser", "false").replace("/var/log/postgresql", str(tmp_path))
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
    assert said in done.stdout
    assert bool(done.stdout) == bool(said), done.stdout


def test_where_there_is_no_room_nothing_is_restored(program: ModuleType, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(program.Failed, match=r"free, and .* are needed"):
        program.require_space(tmp_path, free)
    program.require_space(tmp_path, free / 2)


def test_times_and_sizes_are_told_to_people(program: ModuleType) -> None:
    assert program.when(NOW) == "2026-11-29T23:10:05Z"
    assert [program.size(number) for number in (7, 1500, 2.5e9, 3e12)] == [
        "7 B",
        "1.5 kB",
        "2.5 GB",
        "3.0 TB",
    ]
