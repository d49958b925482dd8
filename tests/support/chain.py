"""The whole chain on loopback, as the roles would deploy it: PostgreSQL, instances, Varnish, nginx.

Settings come from the roles' own templates and defaults; only ports and folders are the test's.
Each instance runs under the role's MemoryMax, and is started again when it ends, as systemd does.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from poky import embedded
from tests.service import free_ports, wait_until
from tests.support import roles
from tests.support.memory import MB, high_water, limited

# Nothing here has to survive the machine.
_HASTY = {"fsync": "off", "synchronous_commit": "off", "shared_buffers": "128MB"}


class Instance:
    """A process ``poky serve`` under a memory limit, started again whenever it ends."""

    def __init__(self, command: list[str], settings: dict[str, str], folder: Path, limit: int):
        self.port, self.admin_port, self.lease_port = free_ports(3)
        self.settings = settings
        self.deaths = 0
        self.peak = 0  # the most memory that any of its processes had, in bytes
        self.log = folder / f"poky-{self.port}.log"
        self._command = command
        self._limit_bytes = limit
        self._limit = limited(limit)
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    @property
    def how(self) -> str:
        """How the limit is kept."""
        return f"{self._limit_bytes // MB} MB by {self._limit.how}"

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    def forget_peak(self) -> None:
        """Count the peak from now on."""
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.peak = 0

    def start(self) -> None:
        self._launch()
        self._keeper.start()
        wait_until(lambda: http_status(self.port) == 200, 30, f"an instance is up: {self.log}")

    def stop(self) -> None:
        self._stopping.set()
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._keeper.is_alive():
            self._keeper.join(5)
        self._limit.close()

    def _launch(self) -> None:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("POKY_")}
        ports = {
            "POKY_PORT": str(self.port),
            "POKY_ADMIN_PORT": str(self.admin_port),
            "POKY_LEASE_PORT": str(self.lease_port),
        }
        with self.log.open("ab") as log:
            self._process = self._limit.start(
                [*self._command, "serve"],
                env={**clean, **self.settings, **ports},
                stdout=log,
                stderr=log,
            )

    def _keep(self) -> None:
        while not self._stopping.wait(0.02):
            self.peak = max(self.peak, high_water(self.pid))
            if self._process and self._process.poll() is not None and not self._stopping.is_set():
                self.deaths += 1
                time.sleep(1)  # RestartSec
                self._launch()


class Chain:
    """Everything, started by ``with``; with ``front=False`` PostgreSQL and the service alone."""

    def __init__(
        self,
        folder: Path,
        *,
        instances: int = 1,
        front: bool = True,
        root: Path = roles.ROOT,
        server: embedded.Embedded | None = None,
        settings: dict[str, str] | None = None,
        given: dict[str, dict[str, object]] | None = None,
    ) -> None:
        self.folder = folder
        self.root = root
        self.instances: list[Instance] = []
        self.http_port = self.https_port = self.cache_port = 0
        self._count = instances
        self._front = front
        self._server = server
        self._settings = settings or {}
        self._given = given or {}
        self._exit = ExitStack()

    @property
    def database(self) -> embedded.Embedded:
        assert self._server
        return self._server

    @property
    def port(self) -> int:
        """Where clients begin: nginx, or else the first instance."""
        return self.http_port or self.instances[0].port

    @property
    def deaths(self) -> int:
        return sum(instance.deaths for instance in self.instances)

    @property
    def peak(self) -> int:
        """The most memory that any instance had, in bytes."""
        return max(instance.peak for instance in self.instances)

    def poky(self, *arguments: str) -> None:
        """Run the command ``poky`` on the chain's database."""
        dsns = {"POKY_DSN": self.database.dsn_service, "POKY_OWNER_DSN": self.database.dsn_owner}
        done = subprocess.run(
            [*self._poky(), *arguments],
            env={**os.environ, **dsns},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()

    def _poky(self) -> list[str]:
        if self.root == roles.ROOT:
            return [sys.executable, "-m", "poky"]
        return [str(self.root / ".venv" / "bin" / "poky")]

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._server is None:
            self._server = embedded.ensure_running(self.folder / "home", settings=_HASTY)
            self._exit.callback(self._server.close)
        self.poky("migrate")
        purge_port = 0
        if self._front:
            self.cache_port, purge_port, self.http_port, self.https_port = free_ports(4)
        settings = self._service_settings(purge_port)
        limit = _bytes(roles.value("poky", "poky_memory_max", self.root, **self._of("poky")))
        for _ in range(self._count):
            instance = Instance(self._poky(), settings, self.folder, limit)
            self.instances.append(instance)
            self._exit.callback(instance.stop)
            instance.start()
        if self._front:
            self._start_varnish(purge_port)
            self._start_nginx()
            wait_until(lambda: http_status(self.http_port) == 200, 30, "nginx reaches the service")

    def _of(self, role: str) -> dict[str, object]:
        return self._given.get(role, {})

    def _service_settings(self, purge_port: int) -> dict[str, str]:
        caches = [{"name": "cache", "url": f"http://127.0.0.1:{purge_port}"}] if purge_port else []
        text = roles.render(
            "poky",
            "poky.env.j2",
            self.root,
            **{"poky_listen": "127.0.0.1", "poky_caches": caches, **self._of("poky")},
        )
        lines = [line.partition("=") for line in text.splitlines() if line.startswith("POKY_")]
        found = {name: shlex.split(word)[0] if word else "" for name, _, word in lines}
        return {**found, "POKY_DSN": self.database.dsn_service, **self._settings}

    def _start_varnish(self, purge_port: int) -> None:
        folder = self.folder / "varnish"
        folder.mkdir(exist_ok=True)
        for file in (self.root / "roles" / "varnish" / "files").glob("*.vcl"):
            shutil.copy(file, folder)
        backends = [
            {"name": f"service_{each.port}", "host": "127.0.0.1", "port": each.port}
            for each in self.instances
        ]
        leases = [
            {"name": f"lease_{each.port}", "host": "127.0.0.1", "port": each.lease_port}
            for each in self.instances
        ]
        given = {
            "varnish_identity": "cache",
            "varnish_listen": "127.0.0.1",
            "varnish_port": self.cache_port,
            "varnish_purge_listen": "127.0.0.1",
            "varnish_purge_port": purge_port,
            "varnish_mode": "lease",
            "varnish_access": "open",
            "varnish_cors_origins": self._of("poky").get("poky_cors_origins", []),
            "varnish_service_backends": backends,
            "varnish_lease_backends": leases,
            "_varnish_lease": 10.0,
            "_varnish_peers": [],
            **self._of("varnish"),
        }
        values = roles.render("varnish", "poky_values.vcl.j2", self.root, **given)
        (folder / "poky_values.vcl").write_text(values)
        unit = roles.render("varnish", "poky.conf.j2", self.root, **given).replace("\\\n", " ")
        start = next(line for line in re.findall("^ExecStart=(.+)$", unit, re.M))
        words = shlex.split(start)
        for option in ("-j", "-T", "-S"):
            if option in words:
                del words[words.index(option) : words.index(option) + 2]
        words[words.index("-f") + 1] = str(folder / "poky.vcl")
        state = self.folder / "varnish-state"
        self._daemon(
            "varnish",
            [*words, "-j", "none", "-n", str(state), "-p", f"vcl_path={folder}"],
            lambda: http_status(self.cache_port) == 200,
        )

    def _start_nginx(self) -> None:
        folder = self.folder / "nginx"
        for name in ("", "log", "lib", "run"):
            (folder / name).mkdir(exist_ok=True)
        certificate = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec"),
                *("-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", *certificate),
            ],
            check=True,
            capture_output=True,
        )
        conf = roles.render(
            "nginx",
            "poky.conf.j2",
            self.root,
            **{
                "nginx_http_port": self.http_port,
                "nginx_https_port": self.https_port,
                "nginx_caches": [f"127.0.0.1:{self.cache_port}"],
                "nginx_server_names": ["localhost"],
                "nginx_max_connections": 4096,
                "_nginx_directory": str(folder),
                "ansible_facts": {"distribution_major_version": _nginx_of()},
                "hostvars": {"localhost": {}},
                "groups": {"service": ["localhost"]},
                **self._of("nginx"),
            },
        )
        for place, ours in (("/var/log/nginx", "log"), ("/var/lib/nginx", "lib"), ("/run", "run")):
            conf = re.sub(rf"{place}(?=/)", str(folder / ours), conf)
        (folder / "poky.conf").write_text(conf)
        temporary = "".join(
            f"{kind}_temp_path {folder}/lib/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            if f"{kind}_temp_path" not in conf
        )
        (folder / "nginx.conf").write_text(
            f"""
            daemon off;
            {"user root;" if os.geteuid() == 0 else ""}
            pid {folder}/pid;
            error_log {folder}/log/error.log;
            worker_processes 2;
            worker_rlimit_nofile 65536;
            events {{ worker_connections 8192; }}
            http {{
                {temporary}
                include {folder}/poky.conf;
            }}
            """
        )
        self._daemon(
            "nginx",
            ["nginx", "-e", f"{folder}/log/error.log", "-c", f"{folder}/nginx.conf"],
            lambda: http_status(self.http_port) > 0,
        )

    def _daemon(self, name: str, command: list[str], is_up: object) -> None:
        log_path = self.folder / f"{name}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self._exit.callback(_end, process)

        def ready() -> bool:
            assert process.poll() is None, f"{name} ended: {log_path.read_text()}"
            assert callable(is_up)
            return bool(is_up())

        wait_until(ready, 30, f"{name} is up; see {log_path}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _nginx_of() -> str:
    """The Debian whose nginx this is like: 1.25.1 brought another way to say HTTP/2."""
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    version = tuple(int(part) for part in re.findall(r"\d+", said)[:3])
    return "13" if version >= (1, 25, 1) else "12"


def http_status(port: int, path: str = "/status", timeout: float = 5) -> int:
    """The status of an answer; 0 if there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]?)", str(text)).groups()  # type: ignore[union-attr]
    return int(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]
