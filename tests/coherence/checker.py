"""What is wrong with a history: stale reads, reads that go back, registers without an order.

An expiry counts as a delete (`with_expiries`): an object that is served late is a stale read, and
one that returns after it was missing is an inversion.

Four checks, each per key. *Stale*, the promise itself: the read began after the acknowledgement
of a greater number. *Revealed*: it began after a write had been refused with an answer that tells
of a greater number (412, 404, ``rejected``, ``missing``), through whatever cache. *Inversion*: it
began after another read through the same cache had ended with a greater number. *Zones*: whether
writes and reads of one cache can be put in any order that respects their times, which is what
linearizable means for a register (P. Gibbons, E. Korach: Testing Shared Memories, SIAM J. Computing
26, 1997); it does not trust the numbers' order.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from tests.coherence.history import (
    ABSENT,
    NEVER,
    PRESENT,
    UNKNOWN,
    History,
    Read,
    Told,
    Way,
    Write,
    with_expiries,
)


@dataclass
class Verdict:
    """How many reads were checked, and what was found; the first few findings in words."""

    reads: int = 0
    writes: int = 0
    told: int = 0
    stale: int = 0
    revealed: int = 0
    inversions: int = 0
    unordered: int = 0
    worst_ms: float = 0.0
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.stale or self.revealed or self.inversions or self.unordered)

    def note(self, sentence: str) -> None:
        if len(self.findings) < 20:
            self.findings.append(sentence)


def check(history: History) -> Verdict:
    """Check every key and every path through which it was read."""
    verdict = Verdict(reads=len(history.reads), writes=len(history.writes), told=len(history.told))
    writes, told = defaultdict(list), defaultdict(list)
    reads: dict[int, dict[int, list[Read]]] = defaultdict(lambda: defaultdict(list))
    for write in history.writes:
        writes[write.key].append(write)
    for each in history.told:
        told[each.key].append(each)
    for read in history.reads:
        reads[read.key][read.path].append(read)
    for key, paths in reads.items():
        own = with_expiries(writes[key])
        register = _Register(own, told[key])
        for path, share in paths.items():
            share.sort(key=lambda read: read.start)
            numbered = register.follow(share, verdict)
            if conflicts := zone_conflicts(own, numbered):
                verdict.unordered += 1
                verdict.note(f"key {key} through {path} has no order: {conflicts} zone conflicts")
    return verdict


class _Register:
    """One key: which numbers a read may return, given when it began and ended."""

    def __init__(self, writes: Sequence[Write], told: Sequence[Told] = ()) -> None:
        acknowledged = sorted((w.end, w.number) for w in writes if w.end != NEVER)
        self._ends = [end for end, _ in acknowledged]
        self._greatest = list(accumulate((number for _, number in acknowledged), max))
        self._deletes = sorted(w.number for w in writes if w.is_delete)
        self._told: list[tuple[int, int]] = []  # by end: what refusals told, and the greatest
        for each in sorted(told, key=lambda each: each.end):
            number = max(self._floor_of(each), self._told[-1][1] if self._told else 0)
            self._told.append((each.end, number))

    def _floor_of(self, told: Told) -> int:
        """The least number that makes it right, by what was acknowledged or told before it."""
        floor = max(self._acknowledged_before(told.start), self._told_before(told.start))
        if told.number == ABSENT:
            return self._delete_from(floor) if floor else 0
        if told.number == PRESENT:
            return floor + 1 if floor in self._deletes else floor
        return told.number

    def _acknowledged_before(self, moment: int) -> int:
        before = bisect_left(self._ends, moment)
        return self._greatest[before - 1] if before else 0

    def _told_before(self, moment: int) -> int:
        before = bisect_left(self._told, (moment, 0))
        return self._told[before - 1][1] if before else 0

    def follow(self, reads: Sequence[Read], verdict: Verdict) -> list[Read]:
        """Check the reads of one path in order of their starts; the same with numbers for ABSENT.

        A read that found nothing is taken to follow the first delete that makes it right: that
        choice leaves the most to later reads, so whatever is wrong then is wrong with any choice.
        """
        numbered = []
        running: list[tuple[int, int, Read]] = []  # by end: they bind the reads that start later
        floor, newest = 0, None
        for read in reads:
            while running and running[0][0] < read.start:
                _, number, ended = heapq.heappop(running)
                if number > floor:
                    floor, newest = number, ended
            greatest, told = self._acknowledged_before(read.start), self._told_before(read.start)
            number = read.number
            if number == ABSENT and greatest + floor + told:
                number = self._delete_from(max(greatest, floor, told))
            if number < greatest:
                verdict.stale += 1
                acknowledged = self._ends[bisect_right(self._greatest, number)]
                late = (read.start - acknowledged) / 1e6
                verdict.worst_ms = max(verdict.worst_ms, late)
                verdict.note(
                    f"{_told(read, number)}, {late:.3f} ms after a greater number was"
                    f" acknowledged, up to {greatest}"
                )
            elif number < told:
                verdict.revealed += 1
                verdict.note(f"{_told(read, number)}, after a refusal had told of {told}")
            elif number < floor:
                verdict.inversions += 1
                assert newest
                verdict.note(f"{_told(read, number)}, after {_told(newest, floor)}")
            heapq.heappush(running, (read.end, number, read))
            numbered.append(read._replace(number=number))
        return numbered

    def _delete_from(self, number: int) -> int:
        """The first delete with at least this number; else the last one, which is too old."""
        at = bisect_left(self._deletes, number)
        if at < len(self._deletes):
            return self._deletes[at]
        return self._deletes[-1] if self._deletes else ABSENT


def _told(read: Read, number: int) -> str:
    way = Way(read.way).name.lower()
    return f"key {read.key} through {read.path}: {number} read ({way}, {read.start} to {read.end})"


def zone_conflicts(writes: Sequence[Write], reads: Sequence[Read]) -> int:
    """How many pairs of zones contradict each other: 0 iff the register is linearizable.

    All operations with one number form a cluster; its zone lies between the earliest end and the
    latest start. Where the end comes first the zone is *forward*: the register certainly held the
    number all that time, so no other zone of that kind may overlap it, and no backward zone (one
    moment within it suffices for the whole cluster) may lie inside.
    """
    starts: dict[int, int] = {ABSENT: 0}
    ends: dict[int, int] = {ABSENT: 0}
    begun: dict[int, int] = {ABSENT: 0}
    for write in writes:
        if write.number != UNKNOWN:
            starts[write.number] = begun[write.number] = write.start
            ends[write.number] = write.end
    conflicts = 0
    for read in reads:
        if read.number in starts:
            starts[read.number] = max(starts[read.number], read.start)
            ends[read.number] = min(ends[read.number], read.end)
            conflicts += read.end < begun[read.number]  # read before it was written
        else:  # a write without an acknowledgement, known only from those who read it
            starts[read.number], ends[read.number] = read.start, read.end
            begun[read.number] = 0
    forward = sorted((ends[n], starts[n]) for n in starts if ends[n] < starts[n])
    backward = [(starts[n], ends[n]) for n in starts if ends[n] >= starts[n]]
    lows = [low for low, _ in forward]
    reach = list(accumulate((high for _, high in forward), max))
    conflicts += sum(low < top for low, top in zip(lows[1:], reach, strict=False))
    for low, high in backward:
        before = bisect_left(lows, low)
        conflicts += bool(before) and any(h > high for _, h in forward[max(before - 1, 0) : before])
    return conflicts
