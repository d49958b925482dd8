"""What is recorded of a run: writes and reads, with the times at which they began and ended.

Times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share. An object's
*number* grows with every change of its key: twice the revision that its ETag shows; a delete's is
one more than that of what it deleted, and so is an expiry's (`with_expiries`). So reads can be held
against writes without trust in values.
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
PRESENT = -2  # the number of a refusal that tells no more than that there is an object
CLOCKS = 2_000_000  # what PostgreSQL's clock may gain on ours within a ttl


class Write(NamedTuple):
    """A change. ``end`` is NEVER if it was not acknowledged: it may still take effect, or not.

    ``ttl``: nanoseconds after which what was written expires, 0: never.
    """

    key: int
    start: int
    end: int
    number: int
    is_delete: int
    ttl: int = 0


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


class Told(NamedTuple):
    """What a refusal reveals of an object: it is ABSENT, PRESENT, or has such a number at least."""

    key: int
    start: int
    end: int
    number: int


class History:
    """All writes, reads and refusals of one run."""

    def __init__(
        self,
        writes: list[Write] | None = None,
        reads: list[Read] | None = None,
        told: list[Told] | None = None,
    ) -> None:
        self.writes = writes or []
        self.reads = reads or []
        self.told = told or []

    def add(self, folder: Path) -> None:
        """Add what ``Recorder`` has written there."""
        for file in folder.glob("*.writes"):
            self.writes += map(Write._make, _rows(file, len(Write._fields)))
        for file in folder.glob("*.reads"):
            self.reads += map(Read._make, _rows(file, len(Read._fields)))
        for file in folder.glob("*.told"):
            self.told += map(Told._make, _rows(file, len(Told._fields)))


def with_expiries(writes: list[Write]) -> list[Write]:
    """The writes of one key, and the deletes to which a ttl leads; those have one client.

    PostgreSQL took the time between a write's start and its end: the object is there at least until
    ``ttl`` after the start, and at most until ``ttl`` after the end. The client's next write has
    prevented that if it ended before; if it may have, the delete is in doubt (NEVER).
    """
    found = list(writes)
    for write in writes:
        if not write.ttl or write.end == NEVER:
            continue
        earliest, latest = write.start + write.ttl, write.end + write.ttl + CLOCKS
        following = min(
            (other for other in writes if other.start >= write.end), key=_start, default=None
        )
        if following is not None and following.number == write.number + 1:
            if following.end == NEVER:  # a delete without an answer: gone by then, by either
                start = min(following.start, earliest)
                found[found.index(following)] = following._replace(start=start, end=latest)
        elif following is None or following.start > latest:
            found.append(Write(write.key, earliest, latest, write.number + 1, True))
        elif following.end > earliest:
            found.append(Write(write.key, earliest, NEVER, write.number + 1, True))
    return found


def _start(write: Write) -> int:
    return write.start


class Recorder:
    """One process's share, in memory until it is saved: a million reads take 40 MB."""

    def __init__(self) -> None:
        self.writes = array("q")
        self.reads = array("q")
        self.told = array("q")

    def save(self, folder: Path, name: str) -> None:
        for kind in ("writes", "reads", "told"):
            with (folder / f"{name}.{kind}").open("wb") as file:
                getattr(self, kind).tofile(file)


def _rows(file: Path, width: int) -> Iterator[tuple[int, ...]]:
    values = array("q", file.read_bytes())
    return zip(*(iter(values),) * width, strict=True)
