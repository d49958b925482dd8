"""What runs during a bench: one PostgreSQL, and before it Poky, the naive app, Varnish, nginx."""

from __future__ import annotations

import os
import random
import string
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.request import urlopen

import psycopg2

from poky import embedded
from poky.schema.migrate import migrate
from tests.bench.load import Watched
from tests.service import free_ports
from tests.vcl.values import parameters, values, write

PROCESSES, THREADS = 2, 4

_PLAIN_VCL = """\
vcl 4.1;
backend poky { .host = "127.0.0.1"; .port = "%d"; }
sub vcl_backend_response { set beresp.ttl = 1h; return (deliver); }
"""

_NGINX = """\
worker_processes 1;
pid %(folder)s/nginx.pid;
error_log %(folder)s/nginx.log;
events { worker_connections 1024; }
http {
    access_log %(folder)s/nginx-access.log combined buffer=64k;
    client_body_temp_path %(folder)s/body;
    proxy_temp_path %(folder)s/proxy;
    fastcgi_temp_path %(folder)s/fastcgi;
    uwsgi_temp_path %(folder)s/uwsgi;
    scgi_temp_path %(folder)s/scgi;
    upstream varnish { server 127.0.0.1:%(varnish)d; keepalive 64; }
    server {
        listen 127.0.0.1:%(port)d;
        keepalive_requests 1000000;
        location / {
            proxy_pass http://varnish;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
        }
    }
}
"""

# What pgbench and the naive app work on. bench.object has the shape of Poky's own table.
_TABLES = """
CREATE SCHEMA bench;
CREATE SEQUENCE bench.revision CACHE 1;
CREATE TABLE bench.object (LIKE poky._object INCLUDING ALL) WITH (fillfactor = 85);
CREATE TABLE bench.naive (
    bucket text, key text, value bytea NOT NULL, PRIMARY KEY (bucket, key)
) WITH (fillfactor = 85);
GRANT USAGE ON SCHEMA bench TO poky_service;
GRANT USAGE ON SEQUENCE bench.revision TO poky_service;
GRANT SELECT, INSERT, UPDATE ON bench.object, bench.naive TO poky_service;
"""

_KEY = "'key-' || n"  # of object number n
_FILL = """
INSERT INTO {table} (
    bucket_id, key, revision, hash, modified_at, written_at, created_at, content_type, value
) SELECT b.id, {key}, nextval('poky.revision'),
    left(encode(sha256(%(value)s), 'hex'), 8), 1767225600, 1767225600, 1767225600, 'text/plain',
    %(value)s
FROM ({ids}) AS b, generate_series(1, %(keys)s) AS n
"""


@dataclass(frozen=True)
class Database:
    """A migrated database: its name, and how the owner and the service reach it."""

    owner: str
    service: str
    name: str = "poky"

    def execute(self, *statements: str, **parameters: object) -> None:
        """Run statements as the owner, each a transaction of its own."""
        with closing(psycopg2.connect(self.owner)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement, parameters or None)

    def fill(self, bucket: str, keys: int, value: bytes, key: str = _KEY) -> None:
        """A bucket with ``keys`` objects, key-1 and so on, all of the same value."""
        self.execute("SELECT poky.ensure_bucket(%(bucket)s)", bucket=bucket)
        self.fill_there(bucket, keys, value, key)

    def fill_there(self, bucket: str, keys: int, value: bytes, key: str = _KEY) -> None:
        """The same of a bucket that there is."""
        self.execute(
            _FILL.format(
                table="poky._object",
                key=key,
                ids="SELECT id FROM poky.bucket WHERE name = %(bucket)s",
            ),
            bucket=bucket,
            keys=keys,
            value=value,
        )

    def expire(self, bucket: str, after: str) -> None:
        """Let all objects of a bucket expire, an interval from now."""
        self.execute(
            "UPDATE poky._object AS o SET expires_at = now() + %(after)s::interval"
            " FROM poky.bucket AS b WHERE b.name = %(bucket)s AND b.id = o.bucket_id",
            "INSERT INTO poky._expiry (due_at, bucket_id, key) SELECT expires_at, bucket_id, key"
            " FROM poky._object WHERE expires_at IS NOT NULL ON CONFLICT DO NOTHING",
            bucket=bucket,
            after=after,
        )

    def fill_many(self, prefix: str, buckets: int, keys: int, value: bytes) -> None:
        """Many buckets of so many objects each, all of the same value."""
        self.execute(*(f"SELECT poky.ensure_bucket('{prefix}{n}')" for n in range(1, buckets + 1)))
        self.fill_those(prefix, keys, value)

    def fill_those(self, prefix: str, keys: int, value: bytes) -> None:
        """The same of all buckets that there are, by how their names begin."""
        self.execute(
            _FILL.format(
                table="poky._object",
                key=_KEY,
                ids="SELECT id FROM poky.bucket WHERE starts_with(name, %(prefix)s)",
            ),
            prefix=prefix,
            keys=keys,
            value=value,
        )

    def fill_yardsticks(self, bucket: str, bucket_id: int, keys: int, value: bytes) -> None:
        """The same objects for pgbench (under ``bucket_id``) and for the naive app."""
        self.execute(
            _FILL.format(table="bench.object", key=_KEY, ids=f"SELECT {bucket_id} AS id"),
            "INSERT INTO bench.naive SELECT %(bucket)s, 'key-' || n, %(value)s"
            " FROM generate_series(1, %(keys)s) AS n",
            bucket=bucket,
            keys=keys,
            value=value,
        )

    def settle(self) -> None:
        """Vacuum and write out what was filled, so that no slice has to."""
        self.execute("VACUUM ANALYZE", "CHECKPOINT")


class Stack:
    """Starts what a suite asks for, once; closing it ends everything it started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exit = ExitStack()
        self._values: dict[int, Path] = {}
        # A quarter of the memory, as the role does: 10^7 keys fit into PostgreSQL's own cache.
        megabytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 22
        self._postgres = self._exit.enter_context(
            embedded.ensure_running(
                folder / "home",
                settings={"shared_buffers": f"{megabytes}MB", "max_connections": "500"},
            )
        )
        self.flat = self._database("flat", "flat")
        self.partitioned = self._database("partitioned", "partitioned")
        # A write to a database with caches waits for them: instances without need another one.
        self.cached = self._database("cached", "partitioned")
        self.cached_twice = self._database("cached_twice", "partitioned")
        self.guarded = self._database("guarded", "partitioned")
        self.partitioned.execute(_TABLES)

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def watched(self, service: Sequence[int] = ()) -> Watched:
        """What a slice has to account for."""
        return Watched(service, (self._postgres.pid,), (os.getpid(), self._postgres.pid))

    def value(self, size: int) -> Path:
        """A file with a value of letters and digits: as hard to compress as text in base 64."""
        if size not in self._values:
            path = self.folder / f"value-{size}"
            letters = random.Random(size).choices(string.ascii_letters + string.digits, k=size)
            path.write_text("".join(letters))
            self._values[size] = path
        return self._values[size]

    def poky(
        self,
        database: Database,
        processes: int = PROCESSES,
        threads: int = THREADS,
        cache: str = "",
        access: str = "open",
        program: Sequence[str] = (sys.executable, "-m", "poky"),
        shards: str = "",
    ) -> Service:
        """Processes of ``poky serve``, each with ports and a CPU of its own, as the role has it."""
        commands = [
            self.poky_command(
                database,
                *free_ports(3),
                threads=threads,
                cache=cache,
                access=access,
                cpu=cpu,
                shards=shards,
            )
            for cpu in range(processes)
        ]
        return self._service(
            [replace(command, arguments=[*program, "serve"]) for command in commands]
        )

    def poky_command(
        self,
        database: Database,
        port: int,
        admin_port: int,
        lease_port: int,
        *,
        threads: int = THREADS,
        cache: str = "",
        access: str = "open",
        cpu: int = -1,
        shards: str = "",
    ) -> Command:
        """How to start one process."""
        clean = {name: text for name, text in os.environ.items() if not name.startswith("POKY_")}
        settings = {
            "POKY_DSN": database.service,
            "POKY_PORT": str(port),
            "POKY_ADMIN_PORT": str(admin_port),
            "POKY_LEASE_PORT": str(lease_port),
            "POKY_THREADS": str(threads),
            "POKY_CACHES": cache,
            "POKY_ACCESS": access,
            "POKY_CPU": str(cpu),
            "POKY_SHARDS": shards,
        }
        return Command(port, [sys.executable, "-m", "poky", "serve"], clean | settings, lease_port)

    def naive(self, processes: int = PROCESSES, threads: int = THREADS) -> Service:
        """Processes of the naive app, as many as Poky's and with as many threads."""
        return self._service([self.naive_command(port, threads) for port in free_ports(processes)])

    def naive_command(self, port: int, threads: int = THREADS) -> Command:
        """How to start one process."""
        arguments = [str(port), self.partitioned.service, str(threads)]
        return Command(
            port, [sys.executable, "-m", "tests.bench.naive", *arguments], {**os.environ}
        )

    def plain_varnish(self, backend: int) -> Service:
        """Varnish with a VCL that does nothing but keep what it is given for an hour."""
        vcl = self.folder / "plain.vcl"
        vcl.write_text(_PLAIN_VCL % backend)
        (port,) = free_ports(1)
        return self._service([self._varnish("plain", port, vcl)])

    def cached_poky(
        self, database: Database, nodes: int = 1, access: str = "open"
    ) -> tuple[Service, Service]:
        """Nodes of Poky's own Varnish, and before them the service that knows of them."""
        names = [f"bench-{database.name}-{number}" for number in range(nodes)]
        ports, purges = free_ports(nodes), free_ports(nodes)
        caches = [
            f"{name}=http://127.0.0.1:{purge}" for name, purge in zip(names, purges, strict=True)
        ]
        service = self.poky(database, cache=" ".join(caches), access=access)
        folder = self.folder / f"vcl-{database.name}"
        folder.mkdir(exist_ok=True)
        # varnishd's worker has a user of its own, which may not enter a checkout in /root.
        vcl = write(folder, values(service=service.ports, lease=service.lease_ports, access=access))
        commands = [
            self._varnish(name, port, vcl, purge, folder)
            for name, port, purge in zip(names, ports, purges, strict=True)
        ]
        return self._service(commands), service

    def nginx(self, varnish: int) -> Service:
        """nginx as a proxy before a Varnish."""
        (port,) = free_ports(1)
        conf = self.folder / "nginx.conf"
        conf.write_text(_NGINX % {"folder": self.folder, "varnish": varnish, "port": port})
        command = ["nginx", "-c", str(conf), "-g", "daemon off;"]
        return self._service([Command(port, command, {**os.environ})])

    def _varnish(
        self, name: str, port: int, vcl: Path, purge: int = 0, folder: Path | None = None
    ) -> Command:
        return Command(
            port,
            [
                *("varnishd", "-F", "-i", name, "-n", str(self.folder / name), "-f", str(vcl)),
                *("-a", f"http=127.0.0.1:{port}", "-s", "malloc,512m"),
                *parameters(),
                *(("-a", f"purge=127.0.0.1:{purge}") if purge else ()),
                *(("-p", f"vcl_path={folder}") if folder else ()),
            ],
            {**os.environ},
        )

    def _service(self, commands: list[Command]) -> Service:
        processes = [self.start(command) for command in commands]
        for command, process in zip(commands, processes, strict=True):
            command.wait(process)
        return Service(
            [command.port for command in commands],
            [command.lease_port for command in commands],
            self.watched([process.pid for process in processes]),
        )

    def start(self, command: Command) -> subprocess.Popen[bytes]:
        """Start a process that ends with the stack; its output goes to a file."""
        log = self._exit.enter_context((self.folder / f"{command.port}.log").open("ab"))
        process = subprocess.Popen(
            command.arguments,
            env=command.environment,
            stdout=log,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
        self._exit.callback(end, process)
        return process

    def empty_database(self, name: str, template: str = "template1") -> Database:
        """A database without a schema, or with that of a template that nobody uses."""
        everything = Database(self._postgres.dsn_owner, self._postgres.dsn_service)
        everything.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return Database(
            *(dsn.replace("/poky?", f"/{name}?") for dsn in (everything.owner, everything.service)),
            name,
        )

    def _database(self, name: str, kind: str) -> Database:
        database = self.empty_database(name)
        migrate(database.owner, kind=kind, release="bench")
        return database


@dataclass(frozen=True)
class Command:
    """How to start a process, and the port on which it will answer."""

    port: int
    arguments: list[str]
    environment: dict[str, str]
    lease_port: int = 0

    def wait(self, process: subprocess.Popen[bytes], pause: float = 0.05) -> None:
        """Return when the port answers HTTP, whatever it answers."""
        deadline = time.monotonic() + 30
        while not answers_http(self.port):
            alive = process.poll() is None and time.monotonic() < deadline
            assert alive, f"{' '.join(self.arguments)} gives no answer on port {self.port}"
            time.sleep(pause)


@dataclass(frozen=True)
class Service:
    """Running processes of one kind."""

    ports: Sequence[int]
    lease_ports: Sequence[int]
    watched: Watched

    def with_pids_of(self, other: Service) -> Watched:
        """Account for both at once."""
        return replace(self.watched, service=[*self.watched.service, *other.watched.service])


def answers_http(port: int) -> bool:
    """Whether a server answers on this port."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            return bool(answer.status)
    except OSError as error:
        return hasattr(error, "code")  # 404 and 503 are answers


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, gently at first."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
