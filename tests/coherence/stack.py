"""The real stack on loopback: PostgreSQL, instances of the service, Varnish nodes, nginx.

Between Varnish and the service's lease listeners, and between the service and the purge listeners,
stand gates, which are the network that can be made to fail.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import psycopg2

from poky import embedded
from poky.access import Grants, Token
from poky.schema import moving
from poky.schema.migrate import migrate
from poky.schema.shards import join_shards
from poky.store import Node, Store, StoreError, open_store
from tests.coherence.gate import Gate, Gates
from tests.service import Client, Service, free_ports, wait_until
from tests.vcl.sabotage import SABOTAGES, held_up, sabotaged, stalled
from tests.vcl.values import ROLE, parameters, values, write

ROOT = Path(__file__).resolve().parents[2]
VCL = ROOT / "roles" / "varnish" / "files" / "poky.vcl"


class Cache:
    """A Varnish node."""

    def __init__(self, name: str, folder: Path, vcl: Path, storage: str) -> None:
        self.name = name
        self._storage = storage
        self.port, self.purge_port = free_ports(2)
        self._folder = folder / name
        self._vcl = vcl
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._reloads = 0

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *("varnishd", "-F", "-j", "none", "-n", str(self._folder), "-i", self.name),
                    *("-a", f"http=127.0.0.1:{self.port}"),
                    *("-a", f"purge=127.0.0.1:{self.purge_port}"),
                    *("-f", str(self._vcl), "-p", f"vcl_path={self._vcl.parent}"),
                    *("-s", self._storage, "-p", "thread_pools=1", "-p", "thread_pool_min=50"),
                    *parameters(),
                ],
                stdout=log,
                stderr=log,
            )
        wait_until(self.is_up, 60, f"Varnish {self.name} is up; see {self._log}")

    def is_up(self) -> bool:
        assert self._process
        assert self._process.poll() is None, self._log.read_text()
        try:
            return Client(self.purge_port).get("/node").headers["Poky-Node"] == self.name
        except OSError:
            return False

    def reload(self) -> None:
        """Load the VCL once more under another name, and use that."""
        self._reloads += 1
        for command in ("vcl.load", "vcl.use"):
            file = [str(self._vcl)] if command == "vcl.load" else []
            self.admin(command, f"again{self._reloads}", *file)

    def admin(self, *command: str) -> str:
        done = subprocess.run(
            ["varnishadm", "-n", str(self._folder), "-t", "60", *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def requests(self) -> int:
        """How many requests it has had from clients."""
        command = ["varnishstat", "-n", str(self._folder), "-j", "-f", "MAIN.client_req"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return int(json.loads(done.stdout)["counters"]["MAIN.client_req"]["value"])

    def pause(self) -> None:
        os.kill(self._child(), signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._child(), signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        if self._process:
            # The child would end by itself, with its sockets, once it notices.
            children = self._children()
            self._process.kill()
            for child in children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            self._process.wait(10)
            wait_until(self._is_off, 20, f"the ports of {self.name} are free")
            self._process = None

    def _is_off(self) -> bool:
        with suppress(OSError):
            for port in (self.port, self.purge_port):
                socket.create_server(("127.0.0.1", port)).close()
            return True
        return False

    def _child(self) -> int:
        """The process that serves; the one that we started only manages it."""
        return self._children()[0]

    def _children(self) -> list[int]:
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []


class Server(Protocol):
    """Where the database is."""

    dsn_owner: str
    dsn_service: str


class Stack:
    """Everything, started by ``with``."""

    def __init__(
        self,
        folder: Path,
        *,
        lease_seconds: float = 3,
        purge_timeout: float = 0.5,
        nodes: int = 2,
        instances: int = 2,
        gated: bool = True,
        storage: str = "malloc,256m",
        access: str = "open",
        shards: int = 1,
        server: Server | None = None,
    ) -> None:
        self.folder = folder
        self.lease_seconds = lease_seconds
        self.caches: list[Cache] = []
        self.services: list[Service] = []
        self.purge_gates: list[Gate] = []
        self.lease_gates: list[Gate] = []
        self.nginx_port = 0
        self.purge_timeout = purge_timeout
        self._counts = nodes, instances
        self._gated = gated
        self._storage = storage
        self._access = access
        self._shards = shards
        self._bucket = ""  # that was created last
        self._token: Token | None = None
        self._owner: Store | None = None
        self._own_server = server is None
        self._server = server
        self._gates = Gates()
        self._nginx: subprocess.Popen[bytes] | None = None
        self._store: Store | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def database(self) -> embedded.Embedded:
        """The one server that faults strike."""
        assert isinstance(self._server, embedded.Embedded)
        return self._server

    @property
    def server(self) -> Server:
        """Where the database is: one server, or a cluster."""
        assert self._server
        return self._server

    @property
    def store(self) -> Store:
        """A store of the test's own, to look into."""
        assert self._store
        return self._store

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._server is None:
            settings = {"wal_level": "logical"} if self._shards > 1 else {}
            own = embedded.ensure_running(self.folder / "home", settings=settings)
            own.supervise()
            self._server = own
        migrate(self._server.dsn_owner, release="coherence")
        self._make_shards()
        self._store = open_store(self._server.dsn_service, self._dsns("poky_service"), pool_size=4)
        for node in self._store.nodes():  # of a run before
            self._store.suspend_node(node.name, hold=True)
            self._store.drain_node(node.name, self._node(node.name).generation)
            self._store.remove_node(node.name)
        nodes, instances = self._counts
        vcl = self.folder / "vcl"
        vcl.mkdir(exist_ok=True)
        self.caches = [
            Cache(f"n{n + 1}", self.folder, vcl / "poky.vcl", self._storage) for n in range(nodes)
        ]
        self.purge_gates = [self._gates.open(cache.purge_port) for cache in self.caches]
        purge_ports = [gate.port if self._gated else gate.target for gate in self.purge_gates]
        settings = {
            "POKY_CACHES": " ".join(
                f"{cache.name}=http://127.0.0.1:{port}"
                for cache, port in zip(self.caches, purge_ports, strict=True)
            ),
            "POKY_LEASE_SECONDS": str(self.lease_seconds),
            "POKY_PURGE_TIMEOUT": str(self.purge_timeout),
            "POKY_LOG_LEVEL": "warning",
            "POKY_ACCESS": self._access,
            "POKY_SHARDS": self._setting("poky_service"),
        }
        self.services = [
            Service(self._server.dsn_service, self.folder / f"poky{n + 1}.log", settings)
            for n in range(instances)
        ]
        self.lease_gates = [self._gates.open(service.lease_port) for service in self.services]
        write(
            vcl,
            values(
                service=[service.port for service in self.services],
                lease=[gate.port for gate in self.lease_gates],
                lease_timeout=round((self.lease_seconds - self.purge_timeout) * 0.4, 3),
                write_timeout=self.lease_seconds + 10,
                access=self._access,
            ),
        )
        for service in self.services:
            service.start()
        for cache in self.caches:
            cache.start()
        self._start_nginx()
        self.wait_until_whole()

    def _make_shards(self) -> None:
        """Further databases in the same server."""
        if self._shards == 1:
            return
        with closing(psycopg2.connect(self.server.dsn_owner)) as connection:
            connection.autocommit = True
            for number in range(1, self._shards):
                connection.cursor().execute(f"CREATE DATABASE shard{number} OWNER poky_owner")
        for dsn in self._dsns("postgres").values():
            migrate(dsn, kind="partitioned", release="coherence")
        join_shards(self.server.dsn_owner, self._dsns("postgres"))

    def _dsns(self, user: str) -> dict[int, str]:
        """The DSNs of all databases but control, by number."""
        is_service = user == "poky_service"
        dsn = self.server.dsn_service if is_service else self.server.dsn_owner
        return {n: dsn.replace("/poky?", f"/shard{n}?") for n in range(1, self._shards)}

    @property
    def owner_shards(self) -> dict[int, str]:
        """The owner's DSNs of the databases besides control; none with one database."""
        return self._dsns("postgres")

    def _setting(self, user: str) -> str:
        return " ".join(f"{number}={dsn}" for number, dsn in self._dsns(user).items())

    def move_bucket(self) -> None:
        """Move the bucket that was created last to the next database, while it is used."""
        self.next_move()()

    def next_move(self) -> Callable[[], object]:
        """What moves the bucket that was created last to the next database."""
        place = self.store.place(self._bucket)
        assert place
        owners = {0: self.server.dsn_owner, **self.owner_shards}
        return partial(moving.move, owners, self._bucket, (place.shard + 1) % self._shards)

    def _start_nginx(self) -> None:
        (self.nginx_port,) = free_ports(1)
        folder = self.folder / "nginx"
        folder.mkdir(exist_ok=True)
        servers = "".join(f"server 127.0.0.1:{cache.port} max_fails=0;" for cache in self.caches)
        (folder / "nginx.conf").write_text(
            f"""
            daemon off;
            {"user root;" if os.geteuid() == 0 else ""}
            pid {folder}/pid;
            error_log {folder}/error.log;
            worker_processes 1;
            events {{ worker_connections 1024; }}
            http {{
                access_log off;
                client_body_temp_path {folder}/body;
                proxy_temp_path {folder}/proxy;
                fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
                keepalive_requests 1000000;
                upstream caches {{ {servers} keepalive 32; keepalive_requests 1000000; }}
                server {{
                    listen 127.0.0.1:{self.nginx_port};
                    location / {{
                        proxy_pass http://caches;
                        proxy_http_version 1.1;
                        proxy_set_header Connection "";
                        proxy_next_upstream off;
                    }}
                }}
            }}
            """
        )
        command = ["nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        self._nginx = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
        wait_until(lambda: _answers(self.nginx_port), what="nginx is up")

    def alter(self, alterations: str) -> None:
        """Restart the instances with alterations (tests.coherence.instance), or without."""
        for service in self.services:
            service.stop()
            service.module = "tests.coherence.instance" if alterations else "poky"
            service.settings["COHERENCE_ALTERATIONS"] = alterations
            # What an alteration keeps busy must not be what is tested.
            service.settings["POKY_THREADS"] = "16" if alterations else "4"
            service.start()

    def use_vcl(self, sabotage: str = "", *, stalls: bool = False) -> None:
        """Restart the nodes with an altered VCL (tests.vcl.sabotage), or with the true one."""
        vcl = VCL.read_text()
        access = (ROLE / "files" / "poky_access_tokens.vcl").read_text()
        if sabotage and SABOTAGES[sabotage].file == "poky.vcl":
            vcl = sabotaged(vcl, sabotage)
        elif sabotage:
            access = sabotaged(access, sabotage)
        if stalls:
            vcl = stalled(vcl)
            access = held_up(access)
        (self.folder / "vcl" / "poky_access_tokens.vcl").write_text(access)
        mode = (ROLE / "files" / "poky_mode_lease.vcl").read_text()
        (self.folder / "vcl" / "poky_mode_lease.vcl").write_text(held_up(mode) if stalls else mode)
        for cache in self.caches:
            cache.stop()
        (self.folder / "vcl" / "poky.vcl").write_text(vcl)
        for cache in self.caches:
            cache.start()
        self.wait_until_whole()

    def forgive(self) -> None:
        """Let the nodes' next suspension count as their first: an earlier fault is no relapse."""
        with closing(psycopg2.connect(self.server.dsn_owner)) as connection, connection:
            connection.cursor().execute("UPDATE poky.cache_node SET reinstated_at = NULL")

    @property
    def authorization(self) -> dict[str, str]:
        """The header of a client that may do everything; none where no tokens are asked for."""
        if self._access == "open":
            return {}
        if self._token is None:
            self._token = Token.create()
            grants = Grants.parse(["read,write,delete,list,admin:*"]).texts
            self.owner.create_token(
                self._token.id, f"all-{self._token.id}", self._token.hash, grants, None
            )
        return {"authorization": f"Bearer {self._token}"}

    @property
    def owner(self) -> Store:
        """A store with the owner's rights, for tokens and public buckets."""
        if self._owner is None:
            self._owner = Store(self.server.dsn_owner, pool_size=4)
        return self._owner

    def create_bucket(self, name: str) -> str:
        self.store.ensure_bucket(name)
        self._bucket = name
        return name

    def wait_until_whole(self, timeout: float = 60) -> None:
        """Wait until every node takes part and has a lease."""
        wait_until(self._is_whole, timeout, "all caches take part again")
        bucket = self.create_bucket("whole")
        token = self.authorization
        self.services[0].client().put(f"/kv/{bucket}/k", "v", **token)

        def has_lease(cache: Cache) -> bool:
            with suppress(OSError, HTTPException):  # on a busy machine it may not listen yet
                found = Client(cache.port).get(f"/kv/{bucket}/k", **token)
                return found.headers["X-Cache"] == "HIT"
            return False

        for cache in self.caches:
            wait_until(partial(has_lease, cache), timeout, f"{cache.name} has a lease")

    def _is_whole(self) -> bool:
        try:
            nodes = self.store.nodes()
        except StoreError:
            return False
        return len(nodes) == len(self.caches) and all(node.suspended_at is None for node in nodes)

    def _node(self, name: str) -> Node:
        return next(node for node in self.store.nodes() if node.name == name)

    def poky(self, *arguments: str) -> str:
        """The command, as an operator would give it."""
        done = subprocess.run(
            [sys.executable, "-m", "poky", *arguments],
            env={
                **os.environ,
                "POKY_DSN": self.server.dsn_service,
                "POKY_SHARDS": self._setting("poky_service"),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _stop(self) -> None:
        if self._nginx:
            self._nginx.terminate()
            self._nginx.wait(10)
        for cache in self.caches:
            cache.stop()
        for service in self.services:
            if service.process and service.process.poll() is None:
                service.stop()
        for store in (self._store, self._owner):
            if store:
                store.close()
        self._gates.close()
        if self._own_server and isinstance(self._server, embedded.Embedded):
            self._server.close()


def _answers(port: int) -> bool:
    try:
        return Client(port).get("/status").status == 200
    except OSError:
        return False
