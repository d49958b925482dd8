"""Faults of a database server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from poky import embedded


def processes_of(server: embedded.Embedded) -> list[int]:
    """The server's processes, parent first: it must not start others meanwhile."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [server.pid, *map(int, children)]


@contextmanager
def hung(server: embedded.Embedded) -> Iterator[None]:
    """Its processes exist and do nothing."""
    pids = processes_of(server)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
