"""What is recorded of a run: writes and reads, with the times at which they began and ended.

Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share. An object's
*number* grows with every change of its key: twice the revision that its ETag shows; a delete's is
one more than that of what it deleted. So reads can be held against writes without trust in values.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

NEVER = 2**63 - 1  # the end of a write that was not acknowledged
ABSENT = 0  # the number of a read that found no object
UNKNOWN = -1  # the number of a write whose answer did not tell


class Write(NamedTuple):
    """A change. ``end`` is NEVER if it was not acknowledged: it may still take effect, or not."""

    key: int
    start: int
    end: int
    number: int
    is_delete: int


class Way(IntEnum):
    """How a cache came by its answer, as X-Cache says."""

    HIT = 0
    MISS = 1
    PASS = 2


class Read(NamedTuple):
    """An answered read. ``path`` is the cache node, or the way around all of them."""

    key: int
    path: int
    start: int
    end: int
    number: int
    way: int = Way.HIT


class History:
    """All writes and reads of one run."""

    def __init__(self, writes: list[Write] | None = None, reads: list[Read] | None = None) -> None:
        self.writes = writes or []
        self.reads = reads or []

    def add(self, folder: Path) -> None:
        """Add what ``Recorder`` has written there."""
        for file in folder.glob("*.writes"):
            self.writes += map(Write._make, _rows(file, len(Write._fields)))
        for file in folder.glob("*.reads"):
            self.reads += map(Read._make, _rows(file, len(Read._fields)))


class Recorder:
    """One process's share, in memory until it is saved: a million reads take 40 MB."""

    def __init__(self) -> None:
        self.writes = array("q")
        self.reads = array("q")

    def save(self, folder: Path, name: str) -> None:
        for kind in ("writes", "reads"):
            with (folder / f"{name}.{kind}").open("wb") as file:
                getattr(self, kind).tofile(file)


def _rows(file: Path, width: int) -> Iterator[tuple[int, ...]]:
    values = array("q", file.read_bytes())
    return zip(*(iter(values),) * width, strict=True)
