"""Cursors: what a reader of changes has seen (sql/functions/cursors.sql has their text).

Pure: reads and compares; knows no store.
"""

from functools import lru_cache
from typing import NamedTuple, Self

from poky.store import Changed


class Snapshot(NamedTuple):
    """What was committed at some moment."""

    text: str
    xmax: int
    open: frozenset[int]  #: numbers below xmax of transactions that were not committed

    @classmethod
    @lru_cache(maxsize=256)
    def parse(cls, text: str) -> Self:
        """Read it as the store gives it."""
        _, xmin, xmax, distances = text.split(".")
        began = [int(xmin) + int(each) for each in distances.split("-") if each]
        return cls(text, int(xmax), frozenset(began))

    def has(self, xid: int) -> bool:
        """Whether the transaction was committed then, if it ever was."""
        return xid < self.xmax and xid not in self.open

    def includes(self, other: "Snapshot") -> bool:
        """Whether all that was committed in the other one is committed in this one."""
        return self.xmax >= other.xmax and not any(map(other.has, self.open))


class Cursor(NamedTuple):
    """All of ``seen``; and of what ``until`` has besides, what comes up to revision ``last``.

    And all of the bucket's former stays in other databases: its changes are compared with the
    cursors of one stay.
    """

    seen: Snapshot
    until: Snapshot | None = None
    last: int = 0
    stay: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it as the store gives it."""
        seen, *rest = text.split("_")
        before, mark, _ = seen.partition("s")
        stay = int(before) if mark else 0
        if not rest:
            return cls(Snapshot.parse(seen), stay=stay)
        return cls(Snapshot.parse(seen), Snapshot.parse(rest[0]), int(rest[1]), stay)

    def __str__(self) -> str:
        if self.until is None:
            return self.seen.text
        return f"{self.seen.text}_{self.until.text}_{self.last}"

    def has(self, change: Changed) -> bool:
        """Whether the reader has seen this change."""
        if self.seen.has(change.xid):
            return True
        until = self.until
        return until is not None and change.revision <= self.last and until.has(change.xid)

    def includes(self, other: "Cursor") -> bool:
        """Whether its snapshot alone has all that the other has seen of the same stay."""
        return (
            self.stay == other.stay
            and self.seen.includes(other.seen)
            and (other.until is None or self.seen.includes(other.until))
        )

    def after(self, place: "Cursor") -> Self:
        """Move on to a place in a page that began at or before this cursor."""
        if place.stay != self.stay:
            return self if self.stay > place.stay else type(self)(*place)
        moved = (
            self
            if self.seen.includes(place.seen)
            else self._replace(seen=place.seen, until=None, last=0)
        )
        if place.until is None or moved.seen.includes(place.until):
            return moved
        return moved._replace(until=place.until, last=place.last)

    def age_order(self) -> tuple[int, int, int, int]:
        """Sorts the cursors of one bucket: the one that has seen least comes first."""
        return self.stay, self.seen.xmax, -len(self.seen.open), self.last
