"""``make demo``: real records go in, come back, change, expire and are followed, by poky.client.

Every record of Debian's package lists (``apt-cache dumpavail``); without apt, the files of Python's
own library. Starts a Poky of its own on an embedded PostgreSQL and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from poky import embedded
from poky.client import Bucket, Client, ConditionFailed
from poky.schema.migrate import migrate
from poky.transfer import Session, stored_objects
from tests.service import running, wait_until

BATCH = 500
console = Console()


def records() -> tuple[str, dict[str, bytes]]:
    """What the records are, and the records by key."""
    if shutil.which("apt-cache"):
        listed = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout
        found: dict[str, bytes] = {}
        for record in listed.split(b"\n\n"):
            name = re.search(rb"^Package: (\S+)", record, re.MULTILINE)
            version = re.search(rb"^Version: (\S+)", record, re.MULTILINE)
            if name and version:
                key = name[1] + b"=" + version[1]
                found[re.sub(r"[^A-Za-z0-9_.,~:@=+-]", "_", key.decode())] = record
        if found:
            return "Debian packages", found
    library = Path(sysconfig.get_path("stdlib"))
    return "files of Python's library", {
        re.sub(r"[^A-Za-z0-9_.,~:@=+-]", ":", str(file.relative_to(library))): file.read_bytes()
        for file in library.rglob("*.py")
    }


def some(keys: Sequence[str], what: str) -> Iterator[list[str]]:
    chunks = [list(keys[start : start + BATCH]) for start in range(0, len(keys), BATCH)]
    yield from track(chunks, what, console=console)


def load(demo: Bucket, found: dict[str, bytes]) -> str:
    results = Counter(
        each.result
        for keys in some(list(found), "storing")
        for each in demo.put_many({key: text_if_it_is(found[key]) for key in keys})
    )
    assert results == {"inserted": len(found)}, results
    return f"{len(found):,} inserted"


def text_if_it_is(value: bytes) -> bytes | str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def compare(demo: Bucket, found: dict[str, bytes]) -> str:
    size = 0
    for keys in some(list(found), "reading back"):
        objects = demo.get_many(keys)
        for key in keys:
            assert objects[key].value == found[key], f"{key} came back different"
            size += len(found[key])
    return f"{size / 1e6:,.1f} MB equal, byte for byte"


def enumerate_by_prefix(demo: Bucket, found: dict[str, bytes]) -> str:
    prefix = max("lp", key=lambda letter: sum(key.startswith(letter) for key in found))
    expected = sorted(key for key in found if key.startswith(prefix))
    assert [each.key for each in demo.list(prefix)] == expected
    return f"{len(expected):,} keys with the prefix {prefix}"


def update(demo: Bucket, found: dict[str, bytes]) -> str:
    count = 0
    for key in track(list(found)[::97][:400], "updating", console=console):
        tag = demo.head(key).etag
        demo.put(key, found[key] + b"\nSeen: yes", if_match=tag)
        try:
            demo.put(key, b"too late", if_match=tag)
        except ConditionFailed:
            count += 1
        assert demo.get(key).value == found[key] + b"\nSeen: yes"
    assert count == len(list(found)[::97][:400])
    return f"{count} accepted, {count} with a stale tag refused"


def expire(demo: Bucket, found: dict[str, bytes]) -> str:
    """Paths that live for a second."""
    keys = [f"seen/today/{key}" for key in list(found)[:300]]
    for key in track(keys, "storing for a second", console=console):
        demo.put(key, found[key.removeprefix("seen/today/")], ttl=1)
    wait_until(lambda: demo.get(keys[-1]) is None, 20, "the last one has expired")
    assert not demo.get_many(keys)
    assert not list(demo.list("seen/"))
    return f"{len(keys)} stored for a second, and missing after it"


class Follower:
    """Keeps a copy of keys and tags by the feed alone, beside everything else."""

    def __init__(self, bucket: Bucket) -> None:
        self.copy: dict[str, str | None] = {}
        self.results: Counter[str] = Counter()
        self._bucket = bucket
        threading.Thread(target=self._follow, args=(bucket.cursor(),), daemon=True).start()

    def _follow(self, begin: str) -> None:
        for change in self._bucket.follow(begin):
            self.results[change.result] += 1
            if change.result == "put":
                self.copy[change.key] = change.etag
            else:
                self.copy.pop(change.key, None)

    def check(self, demo: Bucket, _: dict[str, bytes]) -> str:
        there = {each.key: each.etag for each in demo.list()}
        wait_until(lambda: self.copy == there, 60, "the copy is the bucket")
        count = sum(self.results.values())
        words = ", ".join(f"{number:,} {result}" for result, number in self.results.items())
        return f"{count:,} changes ({words}): its copy is the bucket"


def poky(server: embedded.Embedded, *arguments: str) -> str:
    """Run the command on the demo's database, and return what it says."""
    dsns = {"POKY_DSN": server.dsn_service, "POKY_OWNER_DSN": server.dsn_owner}
    done = subprocess.run(
        [sys.executable, "-m", "poky", *arguments],
        env={**os.environ, **dsns},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def export(server: embedded.Embedded, file: Path) -> str:
    poky(server, "export", "demo", "-o", str(file))
    with Session(server.dsn_service, "demo") as session:
        count = sum(1 for _ in stored_objects(session, "demo"))
    return f"{count:,} as {file.suffix}, {file.stat().st_size / 1e6:,.1f} MB"


def load_export(server: embedded.Embedded, file: Path) -> str:
    done = json.loads(poky(server, "import", "copy", str(file), "--create", "--json"))
    assert poky(server, "verify", "copy", str(file)) == "copy: the same\n"
    return f"{done['inserted']:,} by COPY, and verified"


def main() -> None:
    what, found = records()
    digest = hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()[:8]
    console.print(f"{len(found):,} {what} (keys {digest})")
    table = Table("step", "result", "seconds", "objects/s", title="Poky, end to end")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with embedded.ensure_running(Path(folder) / "home") as server:
            migrate(server.dsn_owner, release="demo")
            with running(server.dsn_service, Path(folder) / "log") as service:
                service.admin().request("PUT", "/buckets/demo")
                poky(server, "bucket", "set", "demo", "--changes", "7d")
                with Client(service.url) as client:
                    demo = client.bucket("demo")
                    follower = Follower(client.bucket("demo"))
                    file = Path(folder) / "demo.zst"
                    steps: list[tuple[str, Callable[[Bucket, Any], str]]] = [
                        ("store by batches of 500", load),
                        ("read back by batches", compare),
                        ("list by prefix", enumerate_by_prefix),
                        ("compare and set", update),
                        ("expire", expire),
                        ("follow, since the beginning", follower.check),
                        ("poky export", lambda *_: export(server, file)),
                        ("poky import, verify", lambda *_: load_export(server, file)),
                    ]
                    for name, step in steps:
                        began = time.monotonic()
                        result = step(demo, found)
                        seconds = time.monotonic() - began
                        digits = itertools.takewhile(str.isdigit, result.replace(",", ""))
                        objects = len(found) if step is compare else int("".join(digits))
                        table.add_row(name, result, f"{seconds:.1f}", f"{objects / seconds:,.0f}")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
