"""What the machine did meanwhile: CPU time of process trees, foreign load, memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")
MB = 1_000_000
_AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@contextmanager
def without_autogroup() -> Iterator[None]:
    """Let the kernel share the CPUs among processes, as among the services of one slice of systemd.

    Autogroup (sched(7)) shares them among sessions, and each of PostgreSQL's processes has one of
    its own. It holds in the root CPU cgroup alone, as in many containers. There a process that
    writes may be ready and yet wait for a CPU for 0.3 s beside one that reads all the time. Root
    alone may change it; it is set back at the end.
    """
    try:
        was = _AUTOGROUP.read_text()
        if was.strip() == "1":
            _AUTOGROUP.write_text("0")
    except OSError:  # the kernel has none, or it is not ours to change
        yield
        return
    try:
        yield
    finally:
        _AUTOGROUP.write_text(was)


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time that these processes and all below them have used, those that ended included."""
    parents: dict[int, list[int]] = {}
    times: dict[int, float] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # After the command's name in parentheses: state, ppid, … utime, stime, cutime, cstime.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        pid = int(entry.name)
        parents.setdefault(int(fields[1]), []).append(pid)
        times[pid] = sum(map(int, fields[11:15])) * _TICK
    total, waiting, seen = 0.0, list(roots), set()
    while waiting:
        pid = waiting.pop()
        if pid not in seen:
            seen.add(pid)
            total += times.get(pid, 0.0)
            waiting += parents.get(pid, [])
    return total


def busy_seconds() -> float:
    """CPU time that the whole machine has used, the hypervisor's share for others included."""
    first = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, first[:8])
    return (user + nice + system + irq + softirq + steal) * _TICK


def resident_bytes(pid: int) -> int:
    """Memory of one process that is in RAM, shared pages counted in full (RSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)
