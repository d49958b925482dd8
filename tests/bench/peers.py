"""What a user would pick instead, and the previous release: started beside Poky, and filled alike.

Redis answers HTTP through webdis and syncs its log before it acknowledges; etcd answers HTTP
through the JSON gateway that it brings along. Both are Debian's packages.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tests.bench.stack import Command, Database, Service, Stack
from tests.service import free_ports, wait_until

ROOT = Path(__file__).parents[2]
PACKAGES = ("redis-server", "webdis", "etcd-server")
_WHEELS = Path(__file__).parent / "previous"


def install() -> None:
    """Install the packages that only these contestants need."""
    subprocess.run(
        [ROOT / ".ci" / "install-packages", "make bench SUITE=peers compares with them", *PACKAGES],
        check=True,
    )


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def redis(stack: Stack, keys: int, value: bytes) -> Service:
    """Redis that syncs each write (appendfsync always) behind webdis, with key-1 and so on."""
    folder = stack.folder / "redis"
    folder.mkdir()
    port, http_port = free_ports(2)
    server = stack.start(
        Command(
            port,
            [
                *("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
            ],
            {**os.environ},
        )
    )
    wait_until(lambda: _listens(port), what="Redis listens")
    settings = folder / "webdis.json"
    settings.write_text(
        json.dumps(
            {
                "redis_host": "127.0.0.1",
                "redis_port": port,
                "http_host": "127.0.0.1",
                "http_port": http_port,
                "threads": 2,
                "daemonize": False,
                "database": 0,
                "http_max_request_size": 1 << 27,
                "verbosity": 1,
                "logfile": str(folder / "webdis.log"),
            }
        )
    )
    gateway = Command(http_port, ["webdis", str(settings)], {**os.environ})
    process = stack.start(gateway)
    gateway.wait(process)
    with closing(socket.create_connection(("127.0.0.1", port))) as peer:
        for numbers in _chunks(keys, 1000):
            peer.sendall(
                b"".join(
                    b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"
                    % (len(key), key, len(value), value)
                    for key in (b"key-%d" % number for number in numbers)
                )
            )
            answer = b""
            while answer.count(b"\n") < len(numbers):
                answer += peer.recv(65536)
            assert answer == b"+OK\r\n" * len(numbers), answer[:200]
    return Service([http_port], [], stack.watched([server.pid, process.pid]))


def etcd(stack: Stack, keys: int, value: bytes) -> Service:
    """One node of etcd with its JSON gateway, with key-1 and so on."""
    port, peer_port = free_ports(2)
    url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    command = Command(
        port,
        [
            *("etcd", "--data-dir", str(stack.folder / "etcd"), "--log-level", "error"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url),
            *("--initial-cluster", f"default={peer_url}", "--quota-backend-bytes", str(8 << 30)),
        ],
        {**os.environ},
    )
    process = stack.start(command)
    command.wait(process)
    text = base64.b64encode(value).decode()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as client:
        for numbers in _chunks(keys, 100):
            puts = [
                {
                    "requestPut": {
                        "key": base64.b64encode(b"key-%d" % number).decode(),
                        "value": text,
                    }
                }
                for number in numbers
            ]
            client.request("POST", "/v3/kv/txn", json.dumps({"success": puts}))
            answer = client.getresponse()
            said = answer.read()
            assert answer.status == 200, said[:500]
    return Service([port], [], stack.watched([process.pid]))


def previous(stack: Stack, bucket: str, keys: int, value: bytes) -> tuple[Service, Database]:
    """The previous release, as many processes as Poky's, on a database that it has made itself."""
    poky = _environment() / "bin" / "poky"
    database = stack.empty_database("previous")
    clean = {name: text for name, text in os.environ.items() if not name.startswith("POKY_")}
    subprocess.run(
        [poky, "migrate", "--dsn", database.owner, "--schema", "partitioned"],
        env=clean, check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    database.fill(bucket, keys, value)
    database.settle()
    return stack.poky(database, program=[str(poky)]), database


def _environment() -> Path:
    """The previous release's own environment: its wheel, and what the lock file has."""
    (wheel,) = _WHEELS.glob("*.whl")
    requirements = ROOT / "requirements.txt"
    digest = hashlib.sha256(wheel.read_bytes() + requirements.read_bytes()).hexdigest()[:12]
    folder = ROOT / "build" / "bench" / f"previous-{digest}"
    if not (folder / ".complete").exists():
        venv.create(folder, clear=True, with_pip=True)
        for what in (["--require-hashes", "-r", str(requirements)], ["--no-deps", str(wheel)]):
            subprocess.run(
                [
                    *(folder / "bin" / "python", "-m", "pip", "install", "--quiet"),
                    *("--disable-pip-version-check", *what),
                ],
                check=True,
                stdout=sys.stderr,
            )
        (folder / ".complete").touch()
    return folder


def _chunks(keys: int, size: int) -> Iterator[range]:
    for first in range(1, keys + 1, size):
        yield range(first, min(first + size, keys + 1))
