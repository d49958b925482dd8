"""A limit on the memory of a process, as systemd's MemoryMax sets one: beyond it, SIGKILL.

Which way works is tried, not assumed: control groups of version 2 or 1, where this user may make
one with a memory controller; else a thread that reads VmRSS and kills.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Protocol

MB = 1 << 20

_numbers = itertools.count(1)


class Limit(Protocol):
    """A limit under which processes can be started."""

    how: str

    def start(self, arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process under the limit."""

    def kills(self) -> int:
        """How many times the limit has killed."""

    def close(self) -> None:
        """Undo what was made; the processes have ended."""


def limited(limit: int) -> Limit:
    """The strictest limit of so many bytes that this machine offers."""
    for kind in (_CgroupTwo, _CgroupOne):
        with contextlib.suppress(OSError):
            return kind(limit)
    return _Watched(limit)


def high_water(pid: int) -> int:
    """The most memory that a process has had in RAM so far (VmHWM), in bytes; 0 if it is gone."""
    return _status(pid, "VmHWM")


def resident(pid: int) -> int:
    """The memory of a process that is in RAM (VmRSS), in bytes; 0 if it is gone."""
    return _status(pid, "VmRSS")


def _status(pid: int, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return 0


class _Cgroup:
    how = ""

    def __init__(self, parent: Path, files: dict[str, str]) -> None:
        self._path = parent / f"poky-test-{os.getpid()}-{next(_numbers)}"
        self._path.mkdir()
        try:
            for name, text in files.items():
                (self._path / name).write_text(text)
        except OSError:
            self._path.rmdir()
            raise

    def start(self, arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        enter = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self._path / "cgroup.procs")]
        return subprocess.Popen([*enter, *arguments], **options)

    def _count(self, name: str) -> int:
        for line in (self._path / name).read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
        return 0

    def close(self) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self._path.rmdir()
                return
            time.sleep(0.05)


class _CgroupTwo(_Cgroup):
    how = "cgroup v2"

    def __init__(self, limit: int) -> None:
        line = next(
            line for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"
        )
        mount = Path("/sys/fs/cgroup")
        if "memory" not in (mount / "cgroup.controllers").read_text().split():
            raise OSError("no memory controller")
        # A group with processes has no groups with controllers below it: beside it, then.
        for parent in dict.fromkeys([(mount / line[3:].lstrip("/")).parent, mount]):
            with contextlib.suppress(OSError):
                super().__init__(parent, {"memory.max": str(limit), "memory.oom.group": "1"})
                with contextlib.suppress(OSError):
                    (self._path / "memory.swap.max").write_text("0")
                return
        raise OSError("no control group may be made here")

    def kills(self) -> int:
        return self._count("memory.events")


class _CgroupOne(_Cgroup):
    how = "cgroup v1"

    def __init__(self, limit: int) -> None:
        super().__init__(Path("/sys/fs/cgroup/memory"), {"memory.limit_in_bytes": str(limit)})

    def kills(self) -> int:
        return self._count("memory.oom_control")


class _Watched:
    """Where there are no control groups: late by some milliseconds, and sees one process."""

    how = "VmRSS, read 100 times a second"

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kills = 0
        self._ended = threading.Event()

    def start(self, arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(arguments, **options)
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        return process

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while process.poll() is None and not self._ended.wait(0.01):
            if resident(process.pid) > self._limit:
                self._kills += 1
                process.send_signal(signal.SIGKILL)

    def kills(self) -> int:
        return self._kills

    def close(self) -> None:
        self._ended.set()
