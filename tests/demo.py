"""``make demo``: real records go in, come back, and are changed, through the HTTP interface.

Every record of Debian's package lists (``apt-cache dumpavail``); without apt, the files of Python's
own library. Starts a Poky of its own on an embedded PostgreSQL and leaves nothing behind.
"""

from __future__ import annotations

import base64
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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from poky import embedded
from poky.schema.migrate import migrate
from poky.transfer import Session, stored_objects
from tests.service import Client, running

BATCH = 500
OBJECTS = "application/vnd.poky.objects+json"
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


def batches(keys: Sequence[str], what: str) -> Iterator[list[str]]:
    chunks = [list(keys[start : start + BATCH]) for start in range(0, len(keys), BATCH)]
    yield from track(chunks, what, console=console)


def load(client: Client, found: dict[str, bytes]) -> str:
    results: dict[str, int] = {}
    for keys in batches(list(found), "storing"):
        items = []
        for key in keys:
            data = found[key]
            try:
                items.append({"key": key, "data": data.decode()})
            except UnicodeDecodeError:
                items.append({"key": key, "data_base64": base64.b64encode(data).decode()})
        answer = client.batch("PUT", "demo", items)
        assert answer.status == 200, answer.body
        for item in answer.json():
            results[item["result"]] = results.get(item["result"], 0) + 1
    assert results == {"inserted": len(found)}, results
    return f"{len(found):,} inserted"


def compare(client: Client, found: dict[str, bytes]) -> str:
    size = 0
    for keys in batches(list(found), "reading back"):
        answer = client.batch("POST", "demo", [{"key": key} for key in keys], accept=OBJECTS)
        for key, item in zip(keys, answer.json(), strict=True):
            data = item.get("data")
            value = data.encode() if data is not None else base64.b64decode(item["data_base64"])
            assert value == found[key], f"{key} came back different"
            size += len(value)
    return f"{size / 1e6:,.1f} MB equal, byte for byte"


def enumerate_by_prefix(client: Client, found: dict[str, bytes]) -> str:
    prefix = max("lp", key=lambda letter: sum(key.startswith(letter) for key in found))
    expected = sorted(key for key in found if key.startswith(prefix))
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = client.get(f"/kv/demo?prefix={prefix}&limit=1000&after={after}").json()
        seen += [each["key"] for each in page["keys"]]
        after = page["next"]
    assert seen == expected
    return f"{len(seen):,} keys with the prefix {prefix}"


def update(client: Client, found: dict[str, bytes]) -> str:
    accepted = rejected = 0
    for key in track(list(found)[::97][:400], "updating", console=console):
        path = f"/kv/demo/{key}"
        tag = client.get(path).etag
        assert client.put(path, found[key] + b"\nSeen: yes", if_match=tag).status == 200
        assert client.put(path, b"too late", if_match=tag).status == 412
        assert client.get(path).body == found[key] + b"\nSeen: yes"
        accepted, rejected = accepted + 1, rejected + 1
    return f"{accepted} accepted, {rejected} with a stale tag refused"


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
                client = service.client()
                steps: list[tuple[str, Callable[[Client, Any], str]]] = [
                    ("store by batches of 500", load),
                    ("read back by batches", compare),
                    ("list by prefix", enumerate_by_prefix),
                    ("compare and set", update),
                    ("poky export", lambda *_: export(server, Path(folder) / "demo.zst")),
                    (
                        "poky import, verify",
                        lambda *_: load_export(server, Path(folder) / "demo.zst"),
                    ),
                ]
                for name, step in steps:
                    began = time.monotonic()
                    result = step(client, found)
                    seconds = time.monotonic() - began
                    count = int("".join(itertools.takewhile(str.isdigit, result.replace(",", ""))))
                    objects = len(found) if step is compare else count
                    table.add_row(name, result, f"{seconds:.1f}", f"{objects / seconds:,.0f}")
                client.close()
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
