#!/usr/bin/python3
"""Backups of Poky's PostgreSQL by pgBackRest: taken, checked, shown, restored, tried.

poky-backup run       take a backup: full every so many days, else what changed since
poky-backup check     see that what is written reaches the repository
poky-backup status    what there is, and since when one can go back
poky-backup restore   put the data back on this host, whose PostgreSQL is stopped
poky-backup drill     restore beside the server that runs, compare, remove it again

Root runs it; PostgreSQL and pgBackRest run as the user postgres. Settings are in
/etc/poky-backup.json. Figures for Prometheus go where the node exporter reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/poky-backup.json")
METRICS = Path("/var/lib/prometheus/node-exporter")
DAY = 86400
#: seconds that a transaction may be open: so much before the last write, all is in the backup
OPEN = 60

Json = dict[str, Any]


class Failed(Exception):
    """It did not work; the message says what and what to do."""


@dataclass(frozen=True)
class Settings:
    """What the role has written; paths of the server on this host, or those of a drill."""

    stanza: str
    data: str
    bin: str
    database: str
    full_days: int
    drill_directory: str
    drill_port: int
    drill_objects: int
    port: int = 5432
    sockets: str = "/run/postgresql"

    @classmethod
    def read(cls, path: Path = SETTINGS) -> Settings:
        """Read the file; Failed if it is missing."""
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise Failed(f"{path} is missing: playbooks/backup.yml writes it.") from error


def as_postgres(*command: str) -> list[str]:
    """The command as PostgreSQL's user."""
    return [*(["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []), *command]


def call(*command: str, given: str | None = None) -> str:
    """Run a command as postgres; what it says. Failed with the end of what it said."""
    done = subprocess.run(
        as_postgres(*command), input=given, capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise Failed(f"{command[0].rpartition('/')[2]} failed ({done.returncode}): {said}")
    return done.stdout


def when(seconds: float) -> str:
    """A time for people and for restore."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def publish(name: str, gauges: dict[str, tuple[str, float]]) -> None:
    """Write {metric: (help, value)} for the node exporter, if it is here."""
    if not METRICS.is_dir():
        return
    lines = []
    for metric, (sentence, value) in gauges.items():
        lines += [f"# HELP {metric} {sentence}", f"# TYPE {metric} gauge", f"{metric} {value:.3f}"]
    new = METRICS / f"{name}.prom.new"
    new.write_text("\n".join(lines) + "\n")
    new.chmod(0o644)
    new.rename(METRICS / f"{name}.prom")


# How far it is.


@contextmanager
def progress(what: str, measure: Callable[[], float]) -> Iterator[None]:
    """A bar with the time left on a terminal; elsewhere a line every half minute.

    ``measure`` says which part is done; 0 if it does not know.
    """
    over = threading.Event()
    terminal = sys.stderr.isatty()

    def show() -> None:
        began = time.monotonic()
        while not over.wait(0.5 if terminal else 30):
            done = min(measure(), 1.0)
            passed = time.monotonic() - began
            line = f"{what}: {passed:.0f} s"
            if done > 0.01:
                line = f"{what}: {done:.0%}, {passed * (1 - done) / done:.0f} s left"
            if terminal:
                bar = "█" * int(done * 30)
                print(f"\r\033[K{bar:░<30} {line}", end="", file=sys.stderr, flush=True)
            else:
                print(line, file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def used(directory: Path) -> float:
    """Bytes of the files below a directory, as they are while they come."""
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


# The repository.


class Repository:
    """What pgBackRest has of the stanza, and how it is asked."""

    def __init__(self, settings: Settings) -> None:
        self._stanza = settings.stanza

    def command(self, *arguments: str) -> list[str]:
        """A command line of pgBackRest."""
        return ["pgbackrest", f"--stanza={self._stanza}", *arguments]

    def info(self) -> Json:
        """``pgbackrest info`` of the stanza."""
        found = json.loads(call(*self.command("info", "--output=json")))
        if not found:
            raise Failed("The repository is empty: run playbooks/backup.yml.")
        stanza: Json = found[0]
        return stanza

    def backups(self) -> list[Json]:
        """The good backups, oldest first."""
        found = self.info().get("backup", [])
        return sorted(
            (each for each in found if not each.get("error")),
            key=lambda each: each["timestamp"]["stop"],
        )

    def publish(self) -> None:
        """Export what there is; a repository without a backup is one that is old."""
        backups = self.backups()
        gauges: dict[str, tuple[str, float]] = {
            "poky_backup_success_timestamp_seconds": (
                "When the last good backup ended; 0: there is none.",
                backups[-1]["timestamp"]["stop"] if backups else 0,
            )
        }
        if backups:
            last = backups[-1]
            gauges |= {
                "poky_backup_oldest_timestamp_seconds": (
                    "The first moment to which the database can be restored.",
                    backups[0]["timestamp"]["stop"],
                ),
                "poky_backup_duration_seconds": (
                    "How long the last good backup took.",
                    last["timestamp"]["stop"] - last["timestamp"]["start"],
                ),
                "poky_backup_database_bytes": (
                    "The size of the database in the last good backup.",
                    last["info"]["size"],
                ),
            }
        publish("poky_backup", gauges)

    def describe(self) -> list[str]:
        """What there is, in words."""
        backups = self.backups()
        if not backups:
            return ["There is no backup yet."]
        last = backups[-1]
        full = sum(each["type"] == "full" for each in backups)
        ended = last["timestamp"]["stop"]
        took = ended - last["timestamp"]["start"]
        return [
            f"backups: {len(backups)}, full ones: {full}; the last, {last['label']}, ended"
            f" {when(ended)} after {took} s",
            f"database {size(last['info']['size'])},"
            f" this backup {size(last['info']['repository']['delta'])} in the repository",
            f"it can be restored to any moment from {when(backups[0]['timestamp']['stop'])} on",
        ]


def next_kind(backups: Sequence[Json], full_days: int, now: float) -> str:
    """Full every so many days, in between what changed since; an hour early is in time."""
    full = [each["timestamp"]["start"] for each in backups if each["type"] == "full"]
    return "diff" if full and now - full[-1] < full_days * DAY - 3600 else "full"


def run(settings: Settings, kind: str, *, only_missing: bool) -> None:
    """Take a backup and export what there is then."""
    repository = Repository(settings)
    backups = repository.backups()
    if backups and only_missing:
        repository.publish()
        return
    kind = next_kind(backups, settings.full_days, time.time()) if kind == "auto" else kind
    began = time.monotonic()
    terminal = sys.stderr.isatty()
    command = repository.command(
        f"--type={kind}", f"--log-level-console={'warn' if terminal else 'info'}", "backup"
    )

    def copied() -> float:
        with suppress(Failed, KeyError, TypeError):
            lock = repository.info()["status"]["lock"]["backup"]
            return float(lock["size-cplt"]) / float(lock["size"])
        return 0.0

    # Older releases of pgBackRest do not tell how far they are.
    with progress(f"{kind} backup", copied):
        done = subprocess.run(as_postgres(*command), check=False, cwd="/")
    repository.publish()
    if done.returncode:
        raise Failed(f"The backup failed ({done.returncode}); what pgBackRest says is above.")
    print(f"a {kind} backup was taken in {time.monotonic() - began:.1f} s")
    print("\n".join(repository.describe()))


def check(settings: Settings) -> None:
    """See that a segment of WAL that is switched now reaches the repository."""
    repository = Repository(settings)
    repository.publish()
    began = time.time()
    call(*repository.command("check"))
    publish(
        "poky_backup_check",
        {
            "poky_backup_check_timestamp_seconds": (
                "Up to when what was written is certainly in the repository.",
                began,
            )
        },
    )
    print(f"what was written up to {when(began)} is in the repository")


# Restore.


def runs(data: Path) -> bool:
    """Whether a PostgreSQL has these data."""
    try:
        pid = int((data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError, IndexError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def require_space(directory: Path, needed: float) -> None:
    """Refuse what would fill the disk."""
    free = shutil.disk_usage(directory).free
    if free < needed * 1.1:
        raise Failed(f"{directory} has {size(free)} free, and {size(needed)} are needed.")


def copy_back(repository: Repository, data: Path, expected: float, *arguments: str) -> None:
    """Have pgBackRest fill an empty directory from the backup, or correct what is there."""
    command = repository.command(f"--pg1-path={data}", *arguments, "restore")
    with progress(f"restore of {size(expected)}", lambda: used(data) / max(expected, 1)):
        call(*command)


def set_aside(data: Path) -> Path:
    """Rename a directory, whatever earlier restores have set aside."""
    former, number = data.with_name(f"{data.name}.before-restore"), 1
    while former.exists():
        number += 1
        former = former.with_name(f"{data.name}.before-restore-{number}")
    return data.rename(former)


def restore(settings: Settings, target: str, timeline: str, *, keep: bool) -> None:
    """Put the data back, to be recovered by the next start of PostgreSQL."""
    repository, data = Repository(settings), Path(settings.data)
    backups = repository.backups()
    if not backups:
        raise Failed("The repository has no backup.")
    if runs(data):
        raise Failed(f"A PostgreSQL runs with {data}: stop it first.")
    expected = backups[-1]["info"]["size"]
    began = time.monotonic()
    arguments = [f"--type={'time' if target else 'default'}"]
    if target:
        arguments += [f"--target={target}", "--target-action=promote"]
    if timeline:
        arguments.append(f"--target-timeline={timeline}")
    if keep:
        if data.exists() and any(data.iterdir()):
            require_space(data.parent, expected)
            print(f"the former data are in {set_aside(data)}: remove them when all is well")
        call("mkdir", "-p", "-m", "700", str(data))
    else:
        arguments.append("--delta")
    copy_back(repository, data, expected, *arguments)
    print(f"{size(used(data))} restored in {time.monotonic() - began:.1f} s")


# The drill.


def ask(settings: Settings, port: int, statement: str) -> Any:
    """What a server on this host answers, as JSON."""
    words = ("-XAtq", "-v", "ON_ERROR_STOP=1", "-h", settings.sockets, "-p", str(port))
    said = call(f"{settings.bin}/psql", *words, "-d", settings.database, "-f", "-", given=statement)
    return json.loads(said) if said.strip() else None


NEWEST = """
SELECT json_build_object('objects', count(*), 'written', coalesce(max(o.written_at), 0),
                         'revision', coalesce(max(o.revision), 0))
  FROM poky._object AS o"""
COUNTS = """
SELECT coalesce(json_object_agg(b.name, b.objects), '{{}}') FROM (
    SELECT b.name, count(*) AS objects FROM poky._object AS o
      JOIN poky.bucket AS b ON b.id = o.bucket_id WHERE o.written_at < {before} GROUP BY 1) AS b"""
SAMPLE = """
SELECT coalesce(json_agg(json_build_object('bucket', b.name, 'key', o.key, 'revision', o.revision,
    'hash', o.hash, 'digest', md5(o.value), 'type', o.content_type)), '[]')
  FROM (SELECT * FROM poky._object WHERE written_at < {before}
         ORDER BY random() LIMIT {count}) AS o
  JOIN poky.bucket AS b ON b.id = o.bucket_id"""
DIFFERENT = """
SELECT coalesce(json_agg(s.bucket || '/' || s.key), '[]')
  FROM json_to_recordset($sample_of_poky${sample}$sample_of_poky$) AS s (
       bucket text, key text, revision bigint, hash text, digest text, type text)
  LEFT JOIN poky.bucket AS b ON b.name = s.bucket
  LEFT JOIN poky._object AS o ON o.bucket_id = b.id AND o.key = s.key
 WHERE (o.revision, o.hash, md5(o.value), o.content_type)
       IS DISTINCT FROM (s.revision, s.hash, s.digest, s.type)
    OR left(encode(sha256(o.value), 'hex'), 8) <> o.hash"""
IS_READY = "SELECT to_json(NOT pg_is_in_recovery())"

# Its own settings, whatever those of the server are: it needs no more memory than this, archives
# nothing, and no one reaches it but root and postgres. Without hot_standby the limits of the server
# need not be known.
CONFIGURATION = """
listen_addresses = ''
port = {port}
unix_socket_directories = '{sockets}'
unix_socket_permissions = 0700
hba_file = '{directory}/drill_hba.conf'
ident_file = ''
cluster_name = 'restore drill'
archive_mode = off
hot_standby = off
ssl = off
jit = off
shared_buffers = 128MB
max_connections = 20
synchronous_standby_names = ''
"""


@dataclass
class Drill:
    """A restore beside the server that runs, and what came of it."""

    settings: Settings
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0  #: until it answered
    lost_seconds: float = 0.0

    @property
    def directory(self) -> Path:
        return Path(self.settings.drill_directory, "restore-drill")

    def _ask(self, statement: str, *, live: bool = False) -> Any:
        return ask(
            self.settings, self.settings.port if live else self.settings.drill_port, statement
        )

    def run(self) -> None:
        """Restore, start, compare, remove."""
        self._remove()
        repository = Repository(self.settings)
        backups = repository.backups()
        if not backups:
            raise Failed("The repository has no backup.")
        expected = backups[-1]["info"]["size"]
        require_space(self.directory.parent, expected)
        live = self._live_now()
        began = time.monotonic()
        try:
            call("mkdir", "-m", "700", str(self.directory))
            copy_back(repository, self.directory, expected, "--archive-mode=off", "--type=default")
            copied = time.monotonic() - began
            self._start()
            self.seconds = time.monotonic() - began
            self.lines.append(
                f"recovery time {self.seconds:.1f} s: {size(expected)} copied in {copied:.1f} s,"
                f" the rest to replay what was written since {backups[-1]['label']}"
            )
            self._check_pages()
            self._compare(live)
        finally:
            self._stop()
            self._remove()

    def _live_now(self) -> Json | None:
        """What the server has that runs here, before anything else."""
        try:
            found: Json = self._ask(NEWEST, live=True)
        except Failed as error:
            self.lines.append(
                f"no server runs here to compare with ({str(error).splitlines()[-1]})"
            )
            return None
        return found

    def _start(self) -> None:
        files = {
            "drill.conf": CONFIGURATION.format(
                port=self.settings.drill_port,
                sockets=self.settings.sockets,
                directory=self.directory,
            ),
            "drill_hba.conf": "local all postgres peer\n",
        }
        for name, text in files.items():
            call("tee", str(self.directory / name), given=text)
        log = self.directory / "drill.log"
        options = f"-c config_file={self.directory}/drill.conf"
        call(
            f"{self.settings.bin}/pg_ctl",
            *("-D", str(self.directory), "-l", str(log), "-s", "-W", "-o", options, "start"),
        )
        began = time.monotonic()
        while not self._is_ready():
            if time.monotonic() - began > 5 and not runs(self.directory):
                end = log.read_text(errors="replace")[-2000:]
                raise Failed(f"The restored server does not start: {end}")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            return bool(self._ask(IS_READY))
        except Failed:
            return False

    def _check_pages(self) -> None:
        began = time.monotonic()
        connection = ("-h", self.settings.sockets, "-p", str(self.settings.drill_port))
        try:
            call(
                f"{self.settings.bin}/pg_amcheck",
                *connection,
                *("--install-missing", "--jobs=2", "-d", self.settings.database),
            )
        except Failed as error:
            self.faults.append(f"pg_amcheck: {error}")
        self.lines.append(f"tables and indexes checked in {time.monotonic() - began:.1f} s")

    def _compare(self, live: Json | None) -> None:
        """All that the live server has from before the recovery point must be there, and equal.

        What it has now and wrote before then was not changed since; so it is in the backup.
        """
        mine = self._ask(NEWEST)
        self.lines.append(f"{mine['objects']:,} objects restored")
        if live is None:
            return
        self.lost_seconds = max(0.0, live["written"] - mine["written"])
        self.lines.append(
            f"recovery point: the last write restored is of {when(mine['written'])}; the writes of"
            f" {self.lost_seconds:.0f} s would be lost; the server has {live['objects']:,} objects"
        )
        before = mine["written"] - OPEN
        kept, found = (
            self._ask(COUNTS.format(before=before), live=one) or {} for one in (True, False)
        )
        for bucket, count in sorted(kept.items()):
            if found.get(bucket, 0) < count:
                self.faults.append(
                    f"the bucket {bucket} has {found.get(bucket, 0):,} of {count:,} objects"
                )
        sample = self._ask(
            SAMPLE.format(before=before, count=self.settings.drill_objects), live=True
        )
        text = json.dumps(sample)
        different = self._ask(DIFFERENT.format(sample=text))
        if different:
            self.faults.append(
                f"{len(different)} of {len(sample)} objects differ, such as {different[0]}"
            )
        self.lines.append(
            f"{sum(kept.values()):,} objects of {len(kept)} buckets that have not changed since are"
            f" there; {len(sample):,} of them were compared by value"
        )

    def _stop(self) -> None:
        if runs(self.directory):
            call(
                f"{self.settings.bin}/pg_ctl", "-D", str(self.directory), "-s", "-m", "fast", "stop"
            )

    def _remove(self) -> None:
        self._stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def publish(self) -> None:
        """Export the outcome."""
        publish(
            "poky_restore_drill",
            {
                "poky_restore_drill_timestamp_seconds": (
                    "When the last restore drill ended.",
                    time.time(),
                ),
                "poky_restore_drill_ok": (
                    "1: the last restore drill found all that there should be.",
                    0 if self.faults else 1,
                ),
                "poky_restore_drill_seconds": (
                    "How long the last restore drill took until its server answered.",
                    self.seconds,
                ),
                "poky_restore_drill_lost_seconds": (
                    "The time whose writes the last restore drill would have lost.",
                    self.lost_seconds,
                ),
            },
        )


def drill(settings: Settings) -> None:
    """Try a restore; Failed if something is missing."""
    attempt = Drill(settings)
    try:
        attempt.run()
    except Failed as error:
        attempt.faults.append(str(error))
    attempt.publish()
    print("\n".join(attempt.lines))
    if attempt.faults:
        raise Failed("The drill failed: " + "; ".join(attempt.faults))
    print("the drill found all that there should be")


def main() -> int:
    """Read the command line; exit status 0 done, 1 it failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    taking = verbs.add_parser("run")
    taking.add_argument("--type", choices=["auto", "full", "diff", "incr"], default="auto")
    taking.add_argument("--if-missing", action="store_true", help="only if there is none")
    verbs.add_parser("check")
    verbs.add_parser("status").add_argument("--json", action="store_true")
    restoring = verbs.add_parser("restore")
    restoring.add_argument("--target", default="", help="a time as pgBackRest takes it")
    restoring.add_argument("--timeline", default="", help="of PostgreSQL, if not the latest")
    restoring.add_argument("--keep", action="store_true", help="keep the data that are there")
    verbs.add_parser("drill")
    given = parser.parse_args()
    try:
        settings = Settings.read()
        match given.verb:
            case "run":
                run(settings, given.type, only_missing=given.if_missing)
            case "check":
                check(settings)
            case "status" if given.json:
                print(json.dumps(Repository(settings).info()))
            case "status":
                print("\n".join(Repository(settings).describe()))
            case "restore":
                restore(settings, given.target, given.timeline, keep=given.keep)
            case "drill":
                drill(settings)
    except Failed as error:
        print(f"poky-backup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
