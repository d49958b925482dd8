"""``poky serve`` as a black box: starting, stopping, losing its database, being killed."""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg2
import pytest

from poky import embedded, process
from poky.process import notify, schedule, why_not
from poky.schema.migrate import migrate
from tests.conftest import Database
from tests.service import Client, Service, free_ports, running, wait_until
from tests.support.databases import hung, processes_of

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[embedded.Embedded]:
    """A PostgreSQL of one test's own, with fsync, to be killed."""
    with embedded.ensure_running(tmp_path_factory.mktemp("own")) as server:
        migrate(server.dsn_owner, release="tests")
        yield server


class Writers:
    """Clients that write growing numbers, each to a key of its own, and remember what was said."""

    def __init__(self, service: Service, bucket: str, count: int = 4) -> None:
        self.acknowledged: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.statuses: dict[int, int] = {}
        self.outcomes: set[str | None] = set()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._write, args=(service, f"/kv/{bucket}/w{number}"))
            for number in range(count)
        ]

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _write(self, service: Service, path: str) -> None:
        client = service.client(timeout=20)
        number = 0
        while not self._stop.is_set():
            number += 1
            self.sent[path] = number
            try:
                answer = client.put(path, str(number))
                status = answer.status
                if status == 503:
                    self.outcomes.add(answer.headers["Poky-Outcome"])
            except (OSError, http.client.HTTPException):
                client.close()
                client = service.client(timeout=20)
                status = 0
                time.sleep(0.01)
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 200:
                self.acknowledged[path] = number
        client.close()

    def wait_for(self, more: int) -> None:
        """Wait until so many more writes are acknowledged."""
        enough = self.statuses.get(200, 0) + more
        wait_until(lambda: self.statuses.get(200, 0) >= enough, 60, f"{more} more writes")

    def check(self, client: Client) -> None:
        """Every acknowledged write is there, or one that was sent after it."""
        for path, number in self.acknowledged.items():
            # The service asks a database that has refused again after a rest.
            wait_until(lambda path=path: client.get(path).status == 200, what=f"{path} is read")
            there = int(client.get(path).body)
            assert number <= there <= self.sent[path], path


def make_bucket(service: Service, name: str = "b") -> str:
    assert service.admin().request("PUT", f"/buckets/{name}").status == 200
    return name


# Starting and stopping.


@pytest.mark.parametrize("kind", ["partitioned"])
def test_sigterm_finishes_what_runs_and_exits_0(
    own_database: Database, log: Path, kind: str
) -> None:
    """A request that waits for a lock when SIGTERM comes is answered, with Connection: close."""
    with running(own_database.dsn_service, log, lock_timeout="4") as service:
        bucket = make_bucket(service)
        service.client().put(f"/kv/{bucket}/k", "1")
        holder = own_database.connect()
        with holder.cursor() as cursor:
            cursor.execute("SELECT poky.put(%s, 'k', '2', 't')", [bucket])
        answers: list[Any] = []
        waiting = threading.Thread(
            target=lambda: answers.append(service.client().put(f"/kv/{bucket}/k", "3"))
        )
        waiting.start()
        wait_until(
            lambda: service.client().get("/status?verbose").json()["inflight"] == 1,
            what="the put waits for the lock",
        )
        assert service.process
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in log.read_text(), what="it began to stop")
        wait_until(lambda: _status(service) is None, what="it accepts no connections any more")
        holder.commit()
        waiting.join(20)
        assert service.process.wait(20) == 0
        assert answers[0].status == 200
        assert answers[0].headers["Connection"] == "close"
    with holder.cursor() as cursor:
        cursor.execute("SELECT value FROM poky.get(%s, 'k')", [bucket])
        assert bytes(cursor.fetchone()[0]) == b"3"
    holder.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_sigterm_exits_within_the_deadline_whatever_runs(
    own_database: Database, log: Path, kind: str
) -> None:
    with running(
        own_database.dsn_service, log, lock_timeout="30", statement_timeout="30",
        shutdown_timeout="1",
    ) as service:  # fmt: skip
        bucket = make_bucket(service)
        service.client().put(f"/kv/{bucket}/k", "1")
        holder = own_database.connect()
        with holder.cursor() as cursor:
            cursor.execute("SELECT poky.put(%s, 'k', '2', 't')", [bucket])

        def put() -> None:
            with pytest.raises((OSError, http.client.HTTPException)):
                service.client().put(f"/kv/{bucket}/k", "3")

        waiting = threading.Thread(target=put)
        waiting.start()
        wait_until(lambda: service.client().get("/status?verbose").json()["inflight"] == 1)
        began = time.monotonic()
        assert service.stop() == 1
        assert time.monotonic() - began < 6
        waiting.join(10)
        holder.close()


@pytest.mark.parametrize("kind", ["partitioned"])
def test_systemd_is_told_and_the_watchdog_is_fed(
    own_database: Database, log: Path, tmp_path: Path, kind: str
) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(20)
    service = Service(
        own_database.dsn_service,
        log,
        {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "300000"},
    ).start(wait=False)
    assert listener.recv(999).startswith(b"READY=1")
    assert service.client().get("/status").status == 200  # ready means that it listens
    assert listener.recv(999) == b"WATCHDOG=1"
    assert listener.recv(999) == b"WATCHDOG=1"
    assert service.stop() == 0
    said = b""
    while not said.startswith(b"STOPPING=1"):
        said = listener.recv(999)
    listener.close()


@pytest.mark.parametrize("kind", ["partitioned"])
@pytest.mark.parametrize("cpu", ["-1", "0", "8081"])
def test_all_threads_stay_on_the_cpu_that_is_set(
    own_database: Database, log: Path, kind: str, cpu: str
) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    service = Service(own_database.dsn_service, log, {"POKY_CPU": cpu}).start()
    assert service.process
    threads = os.listdir(f"/proc/{service.process.pid}/task")
    assert len(threads) > 4
    for thread in map(int, threads):
        if cpu == "-1":
            assert os.sched_getaffinity(thread) == set(allowed)
            assert os.sched_getscheduler(thread) == os.SCHED_OTHER
        else:
            assert os.sched_getaffinity(thread) == {allowed[int(cpu) % len(allowed)]}
            assert os.sched_getscheduler(thread) == os.SCHED_BATCH
    assert service.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_each_signal_that_asks_for_an_end_gets_an_orderly_one(
    log: Path, number: signal.Signals
) -> None:
    service = Service("host=/nowhere", log).start(wait=False)
    wait_until(lambda: _status(service) is not None, what="it listens")
    assert service.stop(number) == 0
    assert "stopping" in log.read_text()
    assert "Traceback" not in log.read_text()


def test_no_signal_is_lost_whenever_it_comes() -> None:
    """One that interrupts the wait for it between any two steps, 500 times."""
    program = """if True:
        import faulthandler, signal
        from poky.process import Stopping
        faulthandler.dump_traceback_later(60, exit=True)
        for number in range(500):
            stopping = Stopping()
            signal.signal(signal.SIGALRM, lambda *_: stopping.set())
            signal.setitimer(signal.ITIMER_REAL, (number % 200 + 1) / 1e6)
            while not stopping.wait(1e-4):
                pass
        """
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_second_ctrl_c_ends_it_at_once(own_database: Database, log: Path) -> None:
    with running(
        own_database.dsn_service, log, lock_timeout="30", statement_timeout="30"
    ) as service:
        bucket = make_bucket(service)
        service.client().put(f"/kv/{bucket}/k", "1")
        holder = own_database.connect()
        with holder.cursor() as cursor:
            cursor.execute("SELECT poky.put(%s, 'k', '2', 't')", [bucket])

        def put() -> None:
            with pytest.raises((OSError, http.client.HTTPException)):
                service.client().put(f"/kv/{bucket}/k", "3")

        waiting = threading.Thread(target=put)
        waiting.start()
        wait_until(lambda: service.client().get("/status?verbose").json()["inflight"] == 1)
        assert service.process
        service.process.send_signal(signal.SIGINT)
        wait_until(lambda: "stopping" in log.read_text(), what="it began to stop")
        began = time.monotonic()
        assert service.stop(signal.SIGINT) == 1
        assert time.monotonic() - began < 3
        waiting.join(10)
        holder.close()


def test_nohup_is_respected(tmp_path: Path, log: Path) -> None:
    port, admin_port = free_ports(2)
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["nohup", sys.executable, "-m", "poky", "serve", "-d", "host=/nowhere"],
            env={**os.environ, "POKY_PORT": str(port), "POKY_ADMIN_PORT": str(admin_port)},
            stdout=output,
            stderr=output,
            cwd=tmp_path,
        )
    try:
        wait_until(lambda: _answers(port), what="it answers")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGWINCH)  # ignored, and taken after the other
        assert _answers(port) == 200
        assert "stopping" not in log.read_text()
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_a_log_that_is_not_read_delays_no_request_and_no_exit(tmp_path: Path) -> None:
    """Its pipe is full: of lines of requests, and of records written in the midst of requests."""
    reader, writer = os.pipe()
    service = Service("host=/nowhere", tmp_path / "unused")
    service.start(wait=False, output=writer)
    try:
        wait_until(lambda: _status(service) is not None, what="it listens")
        client = service.client(timeout=10)
        for _ in range(1500):
            assert client.get(f"/nothing/{'x' * 3000}").status == 404
            if _ % 100 == 0:
                assert client.get("/kv/b/k").status == 503  # which is logged as a warning
        assert client.get("/kv/b/k").status == 503
        dropped = wait_until(
            lambda: (
                re.search(
                    rb"^poky_log_dropped_lines_total [1-9]",
                    service.admin().get("/metrics").body,
                    re.MULTILINE,
                )
                or client.get(f"/nothing/{'x' * 3000}").status != 404
            ),
            what="lines were dropped",
        )
        assert dropped is not True
        began = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - began < 6
    finally:
        if service.process and service.process.poll() is None:
            service.process.kill()
        os.close(reader)
        os.close(writer)


def test_without_a_stderr_it_serves(tmp_path: Path) -> None:
    port, admin_port = free_ports(2)
    process = subprocess.Popen(
        ["/bin/sh", "-c", 'exec "$0" -m poky serve -d host=/nowhere 2>&- >&-', sys.executable],
        env={**os.environ, "POKY_PORT": str(port), "POKY_ADMIN_PORT": str(admin_port)},
    )
    try:
        wait_until(lambda: _answers(port), what="it answers")
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()


def _answers(port: int) -> int | None:
    try:
        return Client(port).get("/help").status
    except OSError:
        return None


TAKEN = "the port that is taken"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"PORT": TAKEN}, "another program does.* another port with -p or POKY_PORT"),
        ({"ADMIN_PORT": TAKEN}, "another program does.* another port with POKY_ADMIN_PORT"),
        (
            {"LEASE_PORT": TAKEN, "CACHES": "http://127.0.0.1:1"},
            "another program does.* another port with POKY_LEASE_PORT",
        ),
        ({"LISTEN": "203.0.113.9"}, "does not have that address. Set POKY_LISTEN"),
        ({"ADMIN_LISTEN": "203.0.113.9"}, "does not have that address. Set POKY_ADMIN_LISTEN"),
        ({"LISTEN": "nowhere.invalid"}, "nowhere.invalid: no name.* Set POKY_LISTEN"),
        ({"LISTEN": "[::1]"}, "Set POKY_LISTEN .* ::1 without brackets"),
        ({"LISTEN": "/run/poky.sock"}, "/run/poky.sock: no name.* Set POKY_LISTEN"),
        ({"LISTEN": "a..b"}, "a..b: no name.* Set POKY_LISTEN"),
        ({"LISTEN": "a" * 300}, "no name.* Set POKY_LISTEN"),
        ({"LISTEN": "fe80::1"}, "See POKY_LISTEN and POKY_PORT"),
        ({"ADMIN_LISTEN": "/"}, "no socket. Set POKY_ADMIN_LISTEN"),
        ({"ADMIN_LISTEN": "/nowhere/x"}, "No such file or directory. Set POKY_ADMIN_LISTEN"),
        ({"ADMIN_LISTEN": "/tmp/" + "a" * 200}, "too long. Set POKY_ADMIN_LISTEN"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_one_sentence(
    log: Path, settings: dict[str, str], sentence: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = {f"POKY_{name}": port if to == TAKEN else to for name, to in settings.items()}
        if "POKY_LISTEN" in given:
            given["POKY_ACCESS"] = "open"
        service = Service("host=/nowhere", log, given).start(wait=False)
        assert service.process
        assert service.process.wait(20) == 1
    said = [line for line in log.read_text().splitlines() if "POKY_ACCESS" not in line]
    assert len(said) == 1, said
    assert re.search(f"cannot listen on .*{sentence}", said[0]), said
    assert "Errno" not in said[0]
    assert "(" not in said[0]


def test_the_admin_listener_may_be_a_socket_of_its_user(
    database: Database, log: Path, tmp_path: Path
) -> None:
    """Where others share the machine: they reach its loopback addresses."""
    path = tmp_path / "ad min"
    with running(database.dsn_service, log, admin_listen=str(path)) as service:
        assert path.stat().st_mode & 0o777 == 0o660
        said = service.client().put("/buckets/x").detail
        command = re.search(r"curl -X PUT (--unix-socket .* http://localhost)/buckets/NAME", said)
        assert command
        for words in ("-X PUT {}/buckets/by-socket", "{}/metrics", "{}/status"):
            line = f"curl -sS --fail {words.format(command[1])}"
            subprocess.run(["bash", "-c", line], check=True, capture_output=True)
        assert command[1] in service.client().get("/").body.decode()
        with pytest.raises(OSError):  # noqa: PT011 - refused
            service.admin().get("/status")
        other = Service("host=/nowhere", tmp_path / "other", {"POKY_ADMIN_LISTEN": str(path)})
        other.start(wait=False)
        assert other.process
        assert other.process.wait(20) == 1
        assert "another program does" in other.log.read_text()
    # What a process left behind that was killed is in nobody's way.
    assert path.is_socket()
    with running(database.dsn_service, log, admin_listen=str(path)):
        subprocess.run(["bash", "-c", line], check=True, capture_output=True)


def test_no_file_is_removed_for_a_socket(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    service = Service("host=/nowhere", log, {"POKY_ADMIN_LISTEN": str(path)}).start(wait=False)
    assert service.process
    assert service.process.wait(20) == 1
    assert path.read_text() == "mine"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_a_privileged_port_is_called_that(code: int) -> None:
    """Root, as which the tests may run, may use all."""
    said = why_not(PermissionError(code, "Permission denied"), "127.0.0.1", 80, "POKY_")
    assert "80" in said
    assert "POKY_PORT" in said
    assert "1024" in said


@pytest.mark.parametrize("kind", ["partitioned"])
def test_several_processes_serve_one_database(own_database: Database, tmp_path: Path) -> None:
    with (
        running(own_database.dsn_service, tmp_path / "a") as a,
        running(own_database.dsn_service, tmp_path / "b") as b,
    ):
        bucket = make_bucket(a)
        a.client().put(f"/kv/{bucket}/k", "from a")
        assert b.client().get(f"/kv/{bucket}/k").body == b"from a"


# The database goes away.


@pytest.mark.slow
def test_it_starts_and_stays_up_while_the_database_is_away(tmp_path: Path, log: Path) -> None:
    server = embedded.ensure_running(tmp_path / "home")
    migrate(server.dsn_owner, release="tests")
    dsn = server.dsn_service
    server.close()
    service = Service(dsn, log).start(wait=False)
    try:
        wait_until(lambda: _status(service) is not None, what="it listens")
        began = time.monotonic()
        away = service.client().get("/status")
        assert (away.status, away.headers["Cache-Control"]) == (503, "no-store")
        assert time.monotonic() - began < 1
        for method, path, body in (
            ("GET", "/kv/b/k", None),
            ("PUT", "/kv/b/k", "x"),
            ("DELETE", "/kv/b/k", None),
            ("GET", "/kv/b", None),
            ("GET", "/buckets", None),
        ):
            refused = service.client().request(method, path, body)
            assert refused.status == 503
            assert refused.headers["Retry-After"]
            assert "reached" in refused.detail
        with embedded.ensure_running(tmp_path / "home"):
            began = time.monotonic()
            wait_until(lambda: _status(service) == 200, what="it has found the database")
            assert time.monotonic() - began < 2
            bucket = make_bucket(service)
            assert service.client().put(f"/kv/{bucket}/k", "x").status == 200
    finally:
        service.stop()


def _status(service: Service) -> int | None:
    try:
        return service.client().get("/status").status
    except OSError:
        return None


def test_no_schema_is_said_as_such(empty_database: Database, log: Path) -> None:
    service = Service(empty_database.dsn_service, log).start(wait=False)
    try:
        wait_until(lambda: _status(service) is not None, what="it listens")
        shown = service.client().get("/status?verbose")
        assert (shown.status, shown.json()["schema"]) == (503, "missing")
        assert "poky migrate" in service.client().get("/kv/b/k").detail
    finally:
        service.stop()


TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE usename = 'poky_service' AND datname = current_database()"
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_connections_terminated_while_idle_fail_no_request(
    own_database: Database, log: Path
) -> None:
    with running(own_database.dsn_service, log) as service:
        bucket = make_bucket(service)
        client = service.client()
        administrator = own_database.connect()
        administrator.autocommit = True
        with administrator.cursor() as cursor:
            for turn in range(20):
                cursor.execute(TERMINATE)
                assert cursor.fetchone()[0] > 0
                wait_until(lambda: _backends(cursor) == 0)
                assert client.put(f"/kv/{bucket}/k", str(turn)).status == 200
                assert client.get(f"/kv/{bucket}/k").body == str(turn).encode()
        administrator.close()


def _backends(cursor: Any) -> int:
    cursor.execute(TERMINATE.replace("count(pg_terminate_backend(pid))", "count(*)"))
    return cursor.fetchone()[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_connections_terminated_under_load(own_database: Database, log: Path) -> None:
    """Every read succeeds; a write in doubt says so, is not repeated, and is there or not."""
    with (
        running(own_database.dsn_service, log) as service,
        Writers(service, make_bucket(service), count=6) as writers,
    ):
        administrator = own_database.connect()
        administrator.autocommit = True
        reader = service.client()
        with administrator.cursor() as cursor:
            for _ in range(60):
                cursor.execute(TERMINATE + " AND random() < 0.5")
                for path in list(writers.acknowledged):
                    assert reader.get(path).status == 200
        administrator.close()
        writers.wait_for(200)
        writers.check(reader)
    assert set(writers.statuses) <= {200, 503}
    assert writers.statuses[200] > 5 * writers.statuses.get(503, 0)
    # None: no connection could be had, so that nothing was written.
    assert writers.outcomes <= {"unknown", None}


@pytest.mark.slow
def test_a_database_that_hangs_is_given_up_and_taken_again(
    own_server: embedded.Embedded, log: Path
) -> None:
    with running(own_server.dsn_service, log) as service:
        bucket = make_bucket(service)
        service.client().put(f"/kv/{bucket}/k", "1")
        with hung(own_server):
            began = time.monotonic()
            assert service.client().get("/status").status == 503
            assert time.monotonic() - began < 1
            for answer in (
                lambda: service.client().get(f"/kv/{bucket}/k"),
                lambda: service.client().put(f"/kv/{bucket}/k", "2"),
            ):
                began = time.monotonic()
                assert answer().status == 503
                assert time.monotonic() - began < 7
        wait_until(lambda: _status(service) == 200)
        assert service.client().put(f"/kv/{bucket}/k", "3").status == 200


@pytest.mark.slow
def test_a_database_that_hangs_delays_every_request_by_five_seconds_at_most(
    own_server: embedded.Embedded, log: Path
) -> None:
    """Also those that wait for a thread or a connection which others have."""
    with running(own_server.dsn_service, log) as service:
        bucket = make_bucket(service)
        service.client().put(f"/kv/{bucket}/k", "1")
        times: list[tuple[float, int]] = []
        stopping = threading.Event()

        def ask(number: int) -> None:
            client = service.client()
            while not stopping.is_set():
                began = time.monotonic()
                path = f"/kv/{bucket}/{number % 5}"
                answer = client.get(path) if number % 2 else client.put(path, "2")
                times.append((time.monotonic() - began, answer.status))
                time.sleep(0.05)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(times) > 200)
        with hung(own_server):
            try:
                del times[:]
                wait_until(lambda: sum(status == 503 for _, status in times) > 100, 40)
            finally:
                stopping.set()
        for thread in threads:
            thread.join(20)
        slowest = max(seconds for seconds, _ in times)
        assert slowest < 5.8, slowest  # five, and what a busy machine adds
        wait_until(lambda: _status(service) == 200)
        assert service.client().put(f"/kv/{bucket}/k", "3").status == 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_stuck_lock_is_503_in_bounded_time(own_database: Database, log: Path) -> None:
    with running(own_database.dsn_service, log) as service:
        bucket = make_bucket(service)
        service.client().put(f"/kv/{bucket}/k", "1")
        holder = own_database.connect()
        with holder.cursor() as cursor:
            cursor.execute("SELECT poky.put(%s, 'k', '2', 't')", [bucket])
        began = time.monotonic()
        refused = service.client().put(f"/kv/{bucket}/k", "3")
        assert refused.status == 503
        assert "locked" in refused.detail
        assert 1 < time.monotonic() - began < 4
        holder.close()
        assert service.client().put(f"/kv/{bucket}/k", "3").status == 200


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_a_busy_pool_is_503_in_bounded_time(own_database: Database, log: Path) -> None:
    with running(
        own_database.dsn_service, log, threads="4", pool_size="1", pool_timeout="0.5",
        lock_timeout="3",
    ) as service:  # fmt: skip
        bucket = make_bucket(service)
        service.client().put(f"/kv/{bucket}/k", "1")
        holder = own_database.connect()
        with holder.cursor() as cursor:
            cursor.execute("SELECT poky.put(%s, 'k', '2', 't')", [bucket])
        first = threading.Thread(target=lambda: service.client().put(f"/kv/{bucket}/k", "3"))
        first.start()
        wait_until(
            lambda: "poky_database_busy 1.0" in service.admin().get("/metrics").body.decode()
        )
        refused = service.client().get(f"/kv/{bucket}/k")
        assert refused.status == 503
        assert "busy" in refused.detail
        holder.close()
        first.join(10)


# Being killed.


@pytest.mark.slow
def test_every_acknowledged_write_survives_kill_9_of_the_service(
    own_server: embedded.Embedded, log: Path
) -> None:
    service = Service(own_server.dsn_service, log).start()
    try:
        bucket = make_bucket(service)
        with Writers(service, bucket) as writers:
            for _ in range(3):
                writers.wait_for(100)
                service.stop(signal.SIGKILL)
                service.start()
        assert writers.statuses[200] >= 300
        writers.check(service.client())
    finally:
        service.stop()


@pytest.mark.slow
def test_every_acknowledged_write_survives_kill_9_of_postgresql(
    own_server: embedded.Embedded, log: Path
) -> None:
    own_server.supervise()
    with running(own_server.dsn_service, log) as service:
        bucket = make_bucket(service)
        with Writers(service, bucket) as writers:
            for _ in range(2):
                writers.wait_for(100)
                for pid in processes_of(own_server):
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda: _status(service) == 503, what="the service has noticed")
                wait_until(lambda: _status(service) == 200, 60, what="PostgreSQL is back")
        assert set(writers.statuses) <= {200, 503}
        writers.check(service.client())


# Memory.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["partitioned"])
def test_32_clients_with_the_largest_value_do_not_exhaust_memory(
    own_database: Database, log: Path
) -> None:
    """What is over the budget is refused with 503 before it is read."""
    value = os.urandom(16 * 1024 * 1024)
    with running(own_database.dsn_service, log, statement_timeout="30") as service:
        bucket = make_bucket(service)
        statuses: list[int] = []
        lock = threading.Lock()

        def put(number: int) -> None:
            client = service.client(timeout=60)
            for _ in range(2000):
                try:
                    answer = client.put(f"/kv/{bucket}/k{number}", value)
                    status = answer.status
                except (OSError, http.client.HTTPException):
                    status = 503  # refused while the client was still sending
                client.close()
                with lock:
                    statuses.append(status)
                if status == 200:
                    return
                assert status == 503
                time.sleep(0.05)

        threads = [threading.Thread(target=put, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        peak = 0
        while any(thread.is_alive() for thread in threads):
            assert service.process
            peak = max(peak, _resident_bytes(service.process.pid))
            time.sleep(0.02)
        assert statuses.count(200) == 32
        assert 503 in statuses
        assert peak < 900 * 1024 * 1024
        for number in (0, 31):
            assert service.client().get(f"/kv/{bucket}/k{number}").body == value


def _resident_bytes(pid: int) -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


# Its parts.


@pytest.mark.parametrize("level", ["info", "warning"])
@pytest.mark.parametrize("kind", ["partitioned"])
def test_requests_are_in_the_log_unless_only_warnings_are(
    own_database: Database, log: Path, kind: str, level: str
) -> None:
    with running(own_database.dsn_service, log, log_level=level) as service:
        service.client().get("/kv/nowhere/k")
    assert ("path=/kv/nowhere/k" in log.read_text()) == (level == "info")
    assert ("serves http://127.0.0.1" in log.read_text()) == (level == "info")


class Rounds:
    """Stops after so many waits, and remembers how long they were to be."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waits: list[float] = []

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        return len(self.waits) > self.count


@pytest.mark.parametrize(
    ("microseconds", "pause"), [("3000000", 1.0), ("", 5.0), ("0", 5.0), (None, 5.0)]
)
def test_the_watchdog_is_fed_while_all_workers_look_for_work(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    microseconds: str | None,
    pause: float,
) -> None:
    said: list[str] = []
    monkeypatch.setattr(process, "notify", said.append)
    if microseconds is None:
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    else:
        monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    now = time.monotonic()
    listeners: Any = [SimpleNamespace(heartbeat=now), SimpleNamespace(heartbeat=now - 15)]
    stopping: Any = Rounds(2)
    process._watch(listeners, stopping)
    assert said == ["WATCHDOG=1"] * 2
    assert stopping.waits == [pause] * 3
    listeners[1].heartbeat = now - 21
    process._watch(listeners, cast(Any, Rounds(1)))
    assert len(said) == 2
    assert "no worker has looked for work in 21 s" in caplog.text


def test_listeners_are_stopped_at_once_and_waited_for_a_second_longer_than_they_have() -> None:
    let_go = threading.Event()
    began = time.monotonic()
    ends: Any = SimpleNamespace(stop=lambda: time.sleep(0.2), in_flight=0)
    hangs: Any = SimpleNamespace(stop=lambda: let_go.wait(30), in_flight=2)
    assert process._stop([ends, ends, ends], 5) == 0
    assert 0.2 <= time.monotonic() - began < 0.5
    assert process._stop([ends, hangs], 0) == 2
    assert 1.1 < time.monotonic() - began < 2
    assert all(each.daemon for each in threading.enumerate() if each.name.endswith("(<lambda>)"))
    let_go.set()


@pytest.mark.parametrize("kind", ["partitioned"])
def test_the_end_closes_all_in_order_and_waits_for_no_terminal(
    own_database: Database, kind: str
) -> None:
    """Whoever is told that it is ready may hang: it is a daemon, as all other threads are."""
    script = """
import os, signal, sys, threading, time
from poky import process
from poky.config import Config

house = []
opened = process.open_store

def open_store(*arguments, **options):
    store = opened(*arguments, **options)
    told(store, "close", f"store {len(house)}")
    house.append(store)
    return store

def told(thing, name, says):
    inner = getattr(thing, name)
    setattr(thing, name, lambda *given: (print(says, flush=True), inner(*given))[1])

process.open_store = open_store
told(process.Background, "stop", "background")
told(process.Caches, "stop", "caches")
told(process.Metrics, "close", "metrics")

def ready():
    late = [each for each in threading.enumerate() if not each.daemon]
    print([each.name for each in late], flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(600)

sys.exit(process.serve(Config.from_env(dict(os.environ)), ready))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "POKY_DSN": own_database.dsn_service,
            **dict(zip(("POKY_PORT", "POKY_ADMIN_PORT"), map(str, free_ports(2)), strict=True)),
        },
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "['MainThread']", "background", "caches", "metrics", "store 0", "store 1"
    ]  # fmt: skip


def test_a_wait_for_the_end_takes_no_longer_than_it_may() -> None:
    stopping = process.Stopping()
    began = time.monotonic()
    assert stopping.wait(0.02) is False
    assert 0.01 < time.monotonic() - began < 0.8
    assert not stopping.is_set
    stopping.set()
    assert stopping.wait(30) is True
    assert stopping.wait(30) is True
    assert stopping.is_set


@pytest.mark.parametrize("error", [None, RuntimeError("why")])
def test_a_listener_that_ends_ends_the_process(
    error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    def serve() -> None:
        threads.append(threading.current_thread())
        if error:
            raise error

    threads: list[threading.Thread] = []
    stopping = process.Stopping()
    process._accept([cast(Any, SimpleNamespace(serve=serve))], stopping)
    assert stopping.wait(10)
    assert threads[0].daemon
    assert caplog.messages == (["a listener ended"] if error else [])


def test_systemd_is_told_at_either_kind_of_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"poky-{tmp_path.name}-{os.getpid()}"
    for address, bound in ((str(tmp_path / "s"), str(tmp_path / "s")), (f"@{name}", f"\0{name}")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(bound)
            listener.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            notify("READY=1")
            assert listener.recv(99) == b"READY=1"
    notify("nobody listens")
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("nobody is there")


def test_a_system_that_forbids_it_is_no_reason_not_to_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "sched_setscheduler", forbid)
    schedule(-1)
    assert caplog.text == ""
    schedule(0)
    assert "does not let us choose a CPU" in caplog.text


@pytest.mark.parametrize(
    ("error", "address", "prefix", "said"),
    [
        (OSError(errno.EADDRINUSE, "x"), "::1", "POKY_", "on port 80 of ::1: another program"),
        (OSError(errno.EADDRINUSE, "x"), "::1", "POKY_ADMIN_", "with POKY_ADMIN_PORT."),
        (OSError(errno.EAFNOSUPPORT, "x"), "::1", "POKY_", "does not have that address"),
        (OSError(errno.EACCES, "x"), "::1", "POKY_LEASE_", "port with POKY_LEASE_PORT."),
        (OSError(errno.EMFILE, "too many"), "::1", "POKY_", ": too many. See POKY_LISTEN and"),
        (UnicodeError("x"), "a..b", "POKY_", "on a..b: no name or address"),
        (OSError(errno.EADDRINUSE, "x"), "/s", "POKY_ADMIN_", "on /s: another program does. Set"),
        (OSError(errno.EEXIST, "x"), "/s", "POKY_ADMIN_", "there is a file that is no socket"),
        (OSError(errno.ENOENT, "gone"), "/s", "POKY_ADMIN_", "on /s: gone. Set POKY_ADMIN_LISTEN"),
        (ValueError("why"), "/s", "POKY_ADMIN_", "on /s: why. Set"),
        (ValueError("why"), "::1", "POKY_", "of ::1: why. See"),
    ],
)
def test_why_nothing_listens_is_said(
    error: Exception, address: str, prefix: str, said: str
) -> None:
    assert said in why_not(error, address, 80, prefix)


# The command.


def poky(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("POKY_")}
    return subprocess.run(
        [sys.executable, "-m", "poky", *arguments],
        capture_output=True,
        text=True,
        env={**clean, **(env or {})},
        timeout=60,
        check=False,
    )


def test_nothing_that_is_deprecated_is_used(database: Database, log: Path) -> None:
    """Such as Bottle(autojson=False): it works on until a release of a library ends it."""
    service = Service(database.dsn_service, log, {"PYTHONWARNINGS": "default"})
    try:
        service.start()
        assert service.client().get("/help").status == 200
    finally:
        service.stop()
    assert "Deprecat" not in log.read_text()


def test_the_command_explains_itself() -> None:
    for command in ((), ("serve",), ("migrate",), ("bucket",), ("bucket", "create"), ("config",)):
        said = poky(*command, "--help")
        assert said.returncode == 0
        assert "Usage: poky" in said.stdout
    assert poky("nonsense").returncode == 2


def test_version_names_the_schemas_it_works_with() -> None:
    shown = json.loads(poky("version", "--json").stdout)
    assert set(shown) == {"version", "schema", "schema_min", "schema_max"}


def test_all_configuration_errors_are_reported_at_once() -> None:
    said = poky("config", env={"POKY_PORT": "x", "POKY_THREADS": "0", "POKY_CACHE_MODE": "wild"})
    assert said.returncode == 2
    for name in ("POKY_PORT", "POKY_THREADS", "POKY_CACHE_MODE"):
        assert any(line.startswith(name) for line in said.stderr.splitlines()), name
    assert "Traceback" not in said.stderr


def test_config_masks_secrets() -> None:
    said = poky("config", "--json", env={"POKY_DSN": "postgresql://u:pw-secret@h/d"})
    assert "pw-secret" not in said.stdout
    assert json.loads(said.stdout)["POKY_DSN"] == "postgresql://u:***@h/d"


@pytest.mark.parametrize("kind", ["partitioned"])
def test_buckets_by_command(own_database: Database) -> None:
    env = {"POKY_DSN": own_database.dsn_service}
    assert poky("bucket", "create", "a", "b", env=env).stdout == "a: created\nb: created\n"
    assert poky("bucket", "create", "a", env=env).stdout == "a: exists\n"
    listed = json.loads(poky("bucket", "list", "--json", env=env).stdout)
    assert [each["name"] for each in listed] == ["a", "b"]
    assert "a " in poky("bucket", "list", env=env).stdout
    with psycopg2.connect(own_database.dsn_service) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT poky.put('a', 'k', 'v', 't')")
    connection.close()
    refused = poky("bucket", "drop", "a", env=env)
    assert refused.returncode == 1
    assert "--keys" in refused.stderr
    assert poky("bucket", "drop", "a", "--keys", env=env).stdout == "a: dropped\n"
    gone = poky("bucket", "drop", "a", env=env)
    assert gone.returncode == 1
    assert "no bucket named a" in gone.stderr
    bad = poky("bucket", "create", "a b", env=env)
    assert bad.returncode == 1
    assert "A-Z a-z" in bad.stderr


def test_migrate_by_command(empty_database: Database) -> None:
    env = {"POKY_OWNER_DSN": empty_database.dsn_owner}
    plan = json.loads(poky("migrate", "--plan", "--json", env=env).stdout)
    assert "functions.sql" in plan["pending"]
    done = poky("migrate", "--schema", "flat", env=env)
    assert done.returncode == 0, done.stderr
    assert "applied: schema.sql" in done.stdout
    assert "up to date" in poky("migrate", env=env).stdout
    assert "CREATE SCHEMA poky" in poky("migrate", "--print").stdout


def test_a_database_that_is_away_is_one_sentence() -> None:
    for command in (("bucket", "list"), ("migrate",)):
        said = poky(*command, "-d", "host=/nowhere/at/all")
        assert said.returncode == 1
        assert "Traceback" not in said.stderr
        assert said.stderr.strip()
