#!/usr/bin/python3
"""Restore Poky's PostgreSQL beside the server that runs, compare, and remove it again.

Root runs it, by a timer or by hand, without arguments; it shares the settings of poky-backup.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poky_backup import (
    Failed,
    Json,
    Repository,
    Settings,
    call,
    copy_back,
    publish,
    require_space,
    runs,
    size,
    when,
)

#: seconds that a transaction may be open: so much before the last write, all is in the backup
OPEN = 60


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
    """Try a restore; exit status 0 all is there, 1 it failed."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        drill(Settings.read())
    except Failed as error:
        print(f"poky-restore-drill: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
