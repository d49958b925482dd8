"""Three PostgreSQL under Patroni and three etcd as processes of this host, and one of them is lost.

What Patroni is told is what the role tells it, but for TLS. The programs are Debian 13's ``etcd``
and ``patroni``, found by PATH; Debian 12's lose writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

import psycopg2
import yaml

from tests.coherence.faults import Fault
from tests.coherence.run import Result, run
from tests.coherence.stack import Stack
from tests.service import Client, free_ports, wait_until
from tests.support.roles import render

MEMBERS = range(3)
PATIENCE = 180  #: seconds for what a busy machine may take long for
_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path(), key=lambda p: p.parent.name)


def missing() -> list[str]:
    """The programs that are not there."""
    return [name for name in ("etcd", "patroni", "haproxy") if not shutil.which(name)]


class LocalCluster:
    """The processes, started by ``with``; HAProxy leads to the server that leads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        ports = iter(free_ports(13))
        self._clients = [next(ports) for _ in MEMBERS]
        self._peers = [next(ports) for _ in MEMBERS]
        self._apis = [next(ports) for _ in MEMBERS]
        self._servers = [next(ports) for _ in MEMBERS]
        self._port = next(ports)
        self._patronis: dict[int, subprocess.Popen[bytes]] = {}
        self._others: list[subprocess.Popen[bytes]] = []
        there = f"127.0.0.1:{self._port}/poky?connect_timeout=3"
        self.dsn_owner = f"postgresql://postgres@{there}"
        self.dsn_service = f"postgresql://poky_service@{there}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        self._folder.mkdir(mode=0o755)
        shutil.chown(self._folder, *_owner())
        for member in MEMBERS:
            self._others.append(self._begin(f"etcd{member}", self._etcd(member)))
        self.start(0)
        wait_until(lambda: self.leader is not None, PATIENCE, "a member leads")
        for member in MEMBERS[1:]:
            self.start(member)
        wait_until(self.is_whole, PATIENCE, "all members follow")
        (self._folder / "haproxy.cfg").write_text(self.haproxy_settings())
        command = ["haproxy", "-f", str(self._folder / "haproxy.cfg")]
        self._others.append(self._begin("haproxy", command))
        dsn = f"host=127.0.0.1 port={self._servers[0]} user=postgres dbname=postgres"
        with closing(psycopg2.connect(dsn)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute("CREATE ROLE poky_owner NOLOGIN")
            cursor.execute("CREATE ROLE poky_service LOGIN")
            cursor.execute("CREATE DATABASE poky OWNER poky_owner")
        wait_until(self._leads_there, PATIENCE, "HAProxy leads to PostgreSQL")

    def _leads_there(self) -> bool:
        """HAProxy takes every server for well until it has asked it."""
        with suppress(psycopg2.Error):
            for _ in range(2 * len(MEMBERS)):
                psycopg2.connect(f"{self.dsn_owner}&target_session_attrs=read-write").close()
            return True
        return False

    def _begin(self, name: str, command: Sequence[str], *user: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "HOME": str(self._folder),
            "PATH": f"{_BIN}:{os.environ['PATH']}",
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*user, *command], stdout=log, stderr=log, cwd=self._folder, env=environment
            )

    def _etcd(self, member: int) -> list[str]:
        client, peer = (
            f"http://127.0.0.1:{ports[member]}" for ports in (self._clients, self._peers)
        )
        founders = ",".join(f"e{n}=http://127.0.0.1:{self._peers[n]}" for n in MEMBERS)
        options = {
            "name": f"e{member}",
            "data-dir": f"{self._folder}/etcd{member}",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": founders,
            "log-level": "warn",
        }
        return ["etcd", *(f"--{name}={value}" for name, value in options.items())]

    def patroni_settings(self, member: int) -> dict[str, Any]:
        """As the role has it, without TLS."""
        agreed = yaml.safe_load(
            render(
                "patroni",
                "dynamic.yml.j2",
                _patroni_shared_parameters=_SHARED,
                _postgresql_moves=False,
            )
        )
        api, server = (f"127.0.0.1:{ports[member]}" for ports in (self._apis, self._servers))
        return {
            "scope": "poky",
            "name": f"n{member}",
            "restapi": {"listen": api, "connect_address": api},
            "etcd3": {"hosts": ",".join(f"127.0.0.1:{port}" for port in self._clients)},
            "bootstrap": {"dcs": agreed, "initdb": ["data-checksums", "no-sync"]},
            "postgresql": {
                "listen": server,
                "connect_address": server,
                "data_dir": str(self._folder / f"pg{member}"),
                "bin_dir": str(_BIN),
                "pgpass": str(self._folder / f"pgpass{member}"),
                "use_unix_socket": False,
                "authentication": {
                    "superuser": {"username": "postgres"},
                    "replication": {"username": "replicator"},
                },
                "basebackup": [{"checkpoint": "fast"}],
                "parameters": {**_OWN, "unix_socket_directories": str(self._folder)},
                "pg_hba": [
                    "host all all 127.0.0.1/32 trust",
                    "host replication all 127.0.0.1/32 trust",
                ],
            },
            "watchdog": {"mode": "off"},
        }

    def haproxy_settings(self) -> str:
        """As the role has it, without TLS."""
        options, _, servers = render(
            "haproxy",
            "haproxy.cfg.j2",
            _haproxy_servers=[f"n{member}" for member in MEMBERS],
            haproxy_port=self._port,
            haproxy_metrics_listen="",
            haproxy_metrics_from=[],
            hostvars={
                f"n{member}": {
                    "poky_address": "127.0.0.1",
                    "poky_database_port": self._servers[member],
                    "patroni_rest_port": self._apis[member],
                }
                for member in MEMBERS
            },
        ).partition("listen postgresql")
        plain = [
            line.split(" check-ssl")[0].split(" verifyhost")[0] for line in servers.splitlines()
        ]
        kept = [line for line in options.splitlines() if not line.strip().startswith(_OF_DEBIAN)]
        return "\n".join([*kept, "listen postgresql", *plain, ""])

    def start(self, member: int) -> None:
        file = self._folder / f"patroni{member}.yml"
        file.write_text(yaml.safe_dump(self.patroni_settings(member)))
        user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        command = ["patroni", str(file)]
        self._patronis[member] = self._begin(
            f"patroni{member}", command, *(user if os.geteuid() == 0 else ())
        )

    def members(self) -> dict[int, dict[str, Any]]:
        """What a member says of all; nothing if none answers."""
        for port in self._apis:
            with suppress(OSError, ValueError):
                url = f"http://127.0.0.1:{port}/cluster"
                with urllib.request.urlopen(url, timeout=2) as answer:
                    found = json.load(answer)["members"]
                return {int(each["name"][1:]): each for each in found}
        return {}

    @property
    def leader(self) -> int | None:
        leaders = [n for n, each in self.members().items() if each["role"] == "leader"]
        return leaders[0] if leaders else None

    def is_whole(self) -> bool:
        """Whether one leads, both others follow without a lag, and one of them is synchronous."""
        members = self.members().values()
        return (
            sorted(each["role"] for each in members) == ["leader", "replica", "sync_standby"]
            and sum(each["state"] == "streaming" for each in members) == len(MEMBERS) - 1
            and all(each.get("lag", 0) == 0 for each in members)
        )

    def signal(self, member: int, number: signal.Signals) -> None:
        """To all that a machine with this member would run."""
        for pid in self._pids(member):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self, member: int) -> list[int]:
        pids = [self._patronis[member].pid] if member in self._patronis else []
        with suppress(OSError, ValueError):
            file = self._folder / f"pg{member}" / "postmaster.pid"
            postmaster = int(file.read_text().split()[0])
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
            pids += [postmaster, *map(int, children)]
        return pids

    def _stop(self) -> None:
        for member in self._patronis:
            self.signal(member, signal.SIGCONT)
            self.signal(member, signal.SIGKILL)
        for process in [*self._patronis.values(), *self._others]:
            process.kill()
            process.wait(10)


def _owner() -> tuple[str, str]:
    """PostgreSQL does not run as root."""
    return ("postgres", "postgres") if os.geteuid() == 0 else (str(os.getuid()), str(os.getgid()))


_SHARED = {"max_connections": 100, "wal_level": "logical", "wal_log_hints": "on"}
# Of the roles, what decides when a write is acknowledged and when a peer is given up.
_OWN = {
    "synchronous_commit": "on",
    "wal_sender_timeout": "5s",
    "wal_receiver_timeout": "5s",
    "wal_receiver_status_interval": "1s",
    "wal_retrieve_retry_interval": "200ms",
    "shared_buffers": "64MB",
    "fsync": "off",  # no machine loses its power here
}
# What needs Debian's user, its directories or its log.
_OF_DEBIAN = ("log ", "chroot", "stats socket", "user ", "group ", "hard-stop-after")


@dataclass
class Witness:
    """An object that every cache has, read four times a second: what readers see of an outage."""

    served: int = 0
    refused: list[float] = field(default_factory=list)

    @contextmanager
    def looking(self, stack: Stack, path: str) -> Iterator[None]:
        over = threading.Event()

        def look(port: int) -> None:
            while not over.wait(0.25):
                status = 0
                with suppress(OSError, HTTPException):
                    status = Client(port).get(path).status
                if status == 200:
                    self.served += 1
                else:
                    self.refused.append(time.monotonic())

        threads = [threading.Thread(target=look, args=(cache.port,)) for cache in stack.caches]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()


@dataclass
class Loss:
    """What was seen of one lost leader."""

    result: Result
    first: float  #: seconds until a write was acknowledged again
    witness: Witness

    @property
    def refused_for(self) -> float:
        """For how many seconds cached reads were refused."""
        times = self.witness.refused
        return max(times) - min(times) if times else 0.0


def _killed(cluster: LocalCluster, member: int) -> Callable[[], None]:
    cluster.signal(member, signal.SIGKILL)
    return lambda: cluster.start(member)


def _frozen(cluster: LocalCluster, member: int) -> Callable[[], None]:
    cluster.signal(member, signal.SIGSTOP)
    return lambda: cluster.signal(member, signal.SIGCONT)


#: Each strikes a member, and returns what brings it back.
LOSSES = {"killed": _killed, "frozen": _frozen}


def lose(stack: Stack, cluster: LocalCluster, name: str) -> Loss:
    """Lose the leader under load; it is back 0.3 s after another one's first acknowledgement."""
    witness, firsts = Witness(), []

    def strike(stack: Stack) -> None:
        wait_until(cluster.is_whole, PATIENCE, "all members follow before")
        leader = cluster.leader
        assert leader is not None
        path = f"/kv/{stack.create_bucket('witness')}/k"
        stack.services[0].client().put(path, "here")
        for cache in stack.caches:
            Client(cache.port).get(path)
        with witness.looking(stack, path):
            time.sleep(1)
            struck = time.monotonic()
            bring_back = LOSSES[name](cluster, leader)
            wait_until(lambda: cluster.leader not in (None, leader), PATIENCE, "another one leads")
            wait_until(lambda: _is_written(stack), PATIENCE, "a write is acknowledged")
            firsts.append(time.monotonic() - struck)
            time.sleep(0.3)
            bring_back()
            wait_until(cluster.is_whole, PATIENCE, "all members follow after")
            time.sleep(2)
        stack.wait_until_whole(PATIENCE)

    result = run(stack, Fault(name, "The leader is lost.", strike), reads=1)
    return Loss(result, firsts[0], witness)


def _is_written(stack: Stack) -> bool:
    with suppress(OSError, HTTPException):
        return stack.services[0].client().put("/kv/witness/first", "x").status == 200
    return False
