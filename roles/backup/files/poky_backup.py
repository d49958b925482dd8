#!/usr/bin/python3
"""Backups of Poky's PostgreSQL by pgBackRest: taken, checked, shown, restored.

poky-backup run       take a backup: full every so many days, else what changed since
poky-backup check     see that what is written reaches the repository
poky-backup status    what there is, and since when one can go back
poky-backup restore   put the data back on this host, whose PostgreSQL is stopped

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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SETTINGS = Path("/etc/poky-backup.json")
METRICS = Path("/var/lib/prometheus/node-exporter")
DAY = 86400

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
    further: tuple[str, ...] = ()  #: stanzas of the other databases, on the repository's host
    port: int = 5432
    sockets: str = "/run/postgresql"

    @classmethod
    def read(cls, path: Path = SETTINGS) -> Settings:
        """Read the file; Failed if it is missing."""
        try:
            given = json.loads(path.read_text())
            return cls(**given | {"further": tuple(given.get("further", ()))})
        except FileNotFoundError as error:
            raise Failed(f"{path} is missing: playbooks/backup.yml writes it.") from error

    @property
    def stanzas(self) -> tuple[str, ...]:
        """Each database's name in the repository, the first one's first."""
        return (self.stanza, *self.further)


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
    """Write {metric, with its labels: (help, value)} for the node exporter, if it is here.

    Those of one name follow each other.
    """
    if not METRICS.is_dir():
        return
    lines: list[str] = []
    for metric, (sentence, value) in gauges.items():
        bare = metric.partition("{")[0]
        head = [f"# HELP {bare} {sentence}", f"# TYPE {bare} gauge"]
        lines += [*(head if head[0] not in lines else ()), f"{metric} {value:.3f}"]
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

    def __init__(self, settings: Settings, stanza: str = "") -> None:
        self._stanza = stanza or settings.stanza
        self._label = f'stanza="{stanza}"' if stanza in settings.further else ""

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

    def figures(self) -> dict[str, tuple[str, float]]:
        """What there is, as ``publish`` takes it; without a backup, one that is old."""
        backups = self.backups()
        gauges: dict[str, tuple[str, float]] = {
            self._named("poky_backup_success_timestamp_seconds"): (
                "When the last good backup ended; 0: there is none.",
                backups[-1]["timestamp"]["stop"] if backups else 0,
            )
        }
        for kind in ("full", "diff", "incr"):
            ends = [each["timestamp"]["stop"] for each in backups if each["type"] == kind]
            if ends:
                gauges[self._named("poky_backup_last_timestamp_seconds", f'kind="{kind}"')] = (
                    "When the last good backup of a kind ended.",
                    ends[-1],
                )
        if backups:
            last = backups[-1]
            gauges |= {
                self._named("poky_backup_oldest_timestamp_seconds"): (
                    "The first moment to which the database can be restored.",
                    backups[0]["timestamp"]["stop"],
                ),
                self._named("poky_backup_duration_seconds"): (
                    "How long the last good backup took.",
                    last["timestamp"]["stop"] - last["timestamp"]["start"],
                ),
                self._named("poky_backup_database_bytes"): (
                    "The size of the database in the last good backup.",
                    last["info"]["size"],
                ),
            }
        return gauges

    def _named(self, metric: str, *labels: str) -> str:
        words = ",".join(filter(None, (*labels, self._label)))
        return f"{metric}{{{words}}}" if words else metric

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


def export(settings: Settings) -> None:
    """Export what there is of every database."""
    found: dict[str, tuple[str, float]] = {}
    for stanza in settings.stanzas:
        found |= Repository(settings, stanza).figures()
    # Those of one name have to follow each other.
    publish("poky_backup", dict(sorted(found.items())))


def run(settings: Settings, kind: str, *, only_missing: bool) -> None:
    """Take a backup of every database and export what there is then; Failed at the end."""
    failures = []
    for stanza in settings.stanzas:
        try:
            take(settings, stanza, kind, only_missing=only_missing)
        except Failed as error:
            failures.append(f"{stanza}: {error}" if settings.further else str(error))
    export(settings)
    if failures:
        raise Failed("\n".join(failures))


def take(settings: Settings, stanza: str, kind: str, *, only_missing: bool) -> None:
    """Take a backup of one database, unless it was only to be had and is there."""
    repository = Repository(settings, stanza)
    backups = repository.backups()
    if backups and only_missing:
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
    if done.returncode:
        raise Failed(f"The backup failed ({done.returncode}); what pgBackRest says is above.")
    print(f"a {kind} backup was taken in {time.monotonic() - began:.1f} s")
    print("\n".join(repository.describe()))


def check(settings: Settings) -> None:
    """See that a segment of WAL that is switched now reaches the repository, of every database."""
    export(settings)
    began = time.time()
    for stanza in settings.stanzas:
        call(*Repository(settings, stanza).command("check"))
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


def describe(settings: Settings) -> list[str]:
    """What there is of every database, in words."""
    if not settings.further:
        return Repository(settings).describe()
    return [
        line
        for stanza in settings.stanzas
        for line in (f"{stanza}:", *Repository(settings, stanza).describe())
    ]


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
                print("\n".join(describe(settings)))
            case "restore":
                restore(settings, given.target, given.timeline, keep=given.keep)
    except Failed as error:
        print(f"poky-backup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
