"""The checker sees what is wrong in hand-made histories, and nothing in right ones."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from tests.coherence.checker import Verdict, check, zone_conflicts
from tests.coherence.history import (
    ABSENT,
    NEVER,
    PRESENT,
    UNKNOWN,
    History,
    Read,
    Recorder,
    Told,
    Write,
)
from tests.coherence.tokens import NEVER as VALID
from tests.coherence.tokens import Pass, Passes
from tests.conftest import Database

N1, N2 = 1, 2
T = 10**9  # a ttl


def put(number: int, start: int, end: int = NEVER) -> Write:
    return Write(1, start, end, number, 0)


def delete(number: int, start: int, end: int = NEVER) -> Write:
    return Write(1, start, end, number, 1)


def expiring(number: int, start: int, end: int) -> Write:
    return Write(1, start, end, number, 0, T)


def read(number: int, start: int, end: int, path: int = N1) -> Read:
    return Read(1, path, start, end, number)


def told(number: int, start: int, end: int) -> Told:
    return Told(1, start, end, number)


def checked(*operations: Write | Read | Told) -> Verdict:
    verdict = check(
        History(
            [each for each in operations if isinstance(each, Write)],
            [each for each in operations if isinstance(each, Read)],
            [each for each in operations if isinstance(each, Told)],
        )
    )
    assert verdict.ok == (not verdict.findings)
    return verdict


def found(*operations: Write | Read) -> tuple[int, int, int]:
    """What the checker counts: stale, inversions, registers without an order."""
    verdict = checked(*operations)
    return verdict.stale, verdict.inversions, verdict.unordered


RIGHT = {
    "nothing was written": [read(ABSENT, 1, 2)],
    "a write is read after it": [put(2, 1, 2), read(2, 3, 4)],
    "a write is read before it is acknowledged": [put(2, 1, 9), read(2, 3, 4), read(2, 5, 6)],
    "a write is not yet read before it is acknowledged": [
        put(2, 1, 2),
        put(4, 3, 9),
        read(2, 4, 5),
        read(4, 6, 7),
    ],
    "a read that overlaps the acknowledgement may be old": [
        put(2, 1, 2),
        put(4, 3, 6),
        read(2, 5, 7),
    ],
    "reads that overlap may come in any order": [
        put(2, 1, 2),
        put(4, 3, 9),
        read(4, 4, 8),
        read(2, 5, 7),
    ],
    "a write without an answer takes effect late": [
        put(2, 1),
        put(4, 3, 4),
        read(4, 5, 6),
        read(6, 7, 8),  # its number was never told to its writer
        read(6, 9, 10),
    ],
    "a write without an answer takes no effect": [put(2, 1, 2), put(4, 3), read(2, 5, 6)],
    "a delete": [put(2, 1, 2), delete(3, 3, 4), read(ABSENT, 5, 6), put(4, 7, 8), read(4, 9, 10)],
    "a delete that is not acknowledged yet": [
        put(2, 1, 2),
        delete(3, 3, 9),
        read(2, 4, 5),
        read(ABSENT, 6, 7),
    ],
    "a delete without an answer": [put(2, 1, 2), delete(3, 3), read(ABSENT, 5, 6)],
    "the second of two deletes": [
        put(2, 1, 2),
        delete(3, 3, 4),
        put(4, 5, 6),
        delete(5, 7, 20),
        read(ABSENT, 8, 10),  # the second: the first was over
        read(ABSENT, 11, 12),
    ],
    "a long read that saw neither of two deletes' ends": [
        put(2, 1, 2),
        delete(3, 3, 4),
        put(4, 5, 6),
        delete(5, 7, 8),
        read(4, 6, 7),
        read(ABSENT, 3, 9),
    ],
    "two nodes disagree while a write is not acknowledged": [
        put(2, 1, 2),
        put(4, 3, 9),
        read(4, 4, 5, N2),
        read(2, 6, 7, N1),
    ],
    "an object that expires": [
        expiring(2, 1, 2),
        read(2, T, T + 1),
        read(ABSENT, T + 2, T + 3),
        read(ABSENT, 2 * T, 2 * T + 1),
        put(4, 3 * T, 3 * T + 1),
        read(4, 3 * T + 2, 3 * T + 3),
    ],
    "one that is written again before": [
        expiring(2, 1, 2),
        put(4, 3, 4),
        read(4, 2 * T, 2 * T + 1),
    ],
    "one that is written again at about that time": [
        expiring(2, 1, 2),
        put(4, T, T + 5),
        read(2, T + 1, T + 2),
        read(ABSENT, T + 3, T + 4),
        read(4, T + 6, T + 7),
    ],
    "one that is deleted without an answer": [
        expiring(2, 1, 2),
        delete(3, 5),
        read(2, 6, 7),
        read(ABSENT, 8, 9),
        read(ABSENT, 2 * T, 2 * T + 1),
    ],
}

STALE = {
    "the older write": [put(2, 1, 2), put(4, 3, 4), read(2, 5, 6)],
    "nothing, although it was written": [put(2, 1, 2), read(ABSENT, 3, 4)],
    "what was deleted": [put(2, 1, 2), delete(3, 3, 4), read(2, 5, 6)],
    "nothing, after it was written again": [
        put(2, 1, 2),
        delete(3, 3, 4),
        put(4, 5, 6),
        read(ABSENT, 7, 8),
    ],
    "what has expired": [expiring(2, 1, 2), read(2, 2 * T, 2 * T + 1)],
    "what has expired, though its delete has no answer": [
        expiring(2, 1, 2),
        delete(3, 5),
        read(2, 2 * T, 2 * T + 1),
    ],
    "on the other node": [put(2, 1, 2), put(4, 3, 4), read(4, 5, 6, N1), read(2, 7, 8, N2)],
}

INVERTED = {
    "back to the older write before the acknowledgement": [
        put(2, 1, 2),
        put(4, 3, 9),
        read(4, 4, 5),
        read(2, 6, 7),
    ],
    "back from a write that was never acknowledged": [
        put(2, 1, 2),
        put(4, 3),
        read(4, 4, 5),
        read(2, 6, 7),
    ],
    "back to what a delete took away": [
        put(2, 1, 2),
        delete(3, 3, 9),
        read(ABSENT, 4, 5),
        read(2, 6, 7),
    ],
    "back to what has expired": [
        expiring(2, 1, 2),
        read(ABSENT, T + 2, T + 3),
        read(2, T + 4, T + 5),
    ],
    "back to nothing": [put(2, 1, 9), read(2, 2, 3), read(ABSENT, 4, 5)],
}


@pytest.mark.parametrize("operations", RIGHT.values(), ids=RIGHT)
def test_right(operations: list[Write | Read]) -> None:
    assert found(*operations) == (0, 0, 0)


@pytest.mark.parametrize("operations", STALE.values(), ids=STALE)
def test_stale(operations: list[Write | Read]) -> None:
    stale, _, unordered = found(*operations)
    assert (stale, unordered) == (1, 1)


@pytest.mark.parametrize("operations", INVERTED.values(), ids=INVERTED)
def test_inverted(operations: list[Write | Read]) -> None:
    assert found(*operations) == (0, 1, 1)


REVEALED = {
    "what is older than the tag that was refused": [
        put(2, 1, 2),
        put(4, 3, 20),
        told(3, 5, 6),
        read(2, 7, 8),
    ],
    "an object that was missing": [
        put(2, 1, 2),
        delete(3, 3, 20),
        told(ABSENT, 5, 6),
        read(2, 7, 8),
    ],
    "nothing, although there was an object": [
        put(2, 1, 2),
        delete(3, 3, 4),
        put(4, 5, 20),
        told(PRESENT, 6, 7),
        read(ABSENT, 8, 9),
    ],
    "what two refusals tell together": [
        put(2, 1, 2),
        delete(3, 3, 20),
        put(4, 6, 20),
        told(ABSENT, 4, 5),
        told(PRESENT, 7, 8),
        read(ABSENT, 9, 10),
    ],
    "through another node": [
        put(2, 1, 2),
        put(4, 3, 20),
        read(4, 4, 5, N1),
        told(3, 5, 6),
        read(2, 7, 8, N2),
    ],
    "later than an older refusal": [
        put(2, 1, 2),
        put(4, 3, 20),
        told(3, 5, 6),
        told(1, 5, 7),
        read(2, 8, 9),
    ],
}

NOT_REVEALED = {
    "a read that began before the refusal ended": [
        put(2, 1, 2),
        put(4, 3, 20),
        told(3, 5, 7),
        read(2, 6, 8),
    ],
    "the newer one": [put(2, 1, 2), put(4, 3, 20), told(3, 5, 6), read(4, 7, 8)],
    "what was put after it was missing": [
        put(2, 1, 2),
        delete(3, 3, 4),
        told(ABSENT, 5, 6),
        put(4, 6, 20),
        read(4, 7, 8),
    ],
    "nothing, as told": [put(2, 1, 2), delete(3, 3, 20), told(ABSENT, 4, 5), read(ABSENT, 6, 7)],
    "nothing, for there was another delete": [
        put(2, 1, 2),
        delete(3, 3, 4),
        put(4, 5, 6),
        told(PRESENT, 6, 7),
        delete(5, 7, 20),
        read(ABSENT, 8, 9),
    ],
    "an object that was there": [put(2, 1, 2), told(PRESENT, 3, 4), read(2, 5, 6)],
    "nothing was ever written": [told(ABSENT, 1, 2), read(ABSENT, 3, 4)],
    "missing, and then written without an answer": [
        told(ABSENT, 1, 2),
        put(UNKNOWN, 3),
        read(2, 4, 5),
    ],
}


@pytest.mark.parametrize("operations", REVEALED.values(), ids=REVEALED)
def test_revealed_and_then_old(operations: list[Write | Read | Told]) -> None:
    verdict = checked(*operations)
    assert (verdict.stale, verdict.revealed, verdict.inversions) == (0, 1, 0)


@pytest.mark.parametrize("operations", NOT_REVEALED.values(), ids=NOT_REVEALED)
def test_not_revealed(operations: list[Write | Read | Told]) -> None:
    assert checked(*operations).ok


def test_zones_find_what_no_order_of_numbers_allows() -> None:
    """Two writers at once: a reader sees one, the other, and the first again."""
    writes = [put(2, 1, 9), put(4, 1, 9)]
    assert not zone_conflicts(writes, [read(2, 2, 3), read(4, 4, 5)])
    assert not zone_conflicts(writes, [read(4, 2, 3), read(2, 4, 5)])  # numbers are not its order
    assert zone_conflicts(writes, [read(2, 2, 3), read(4, 4, 5), read(2, 6, 7)])


def test_zones_find_a_read_before_its_write() -> None:
    assert zone_conflicts([put(2, 5, 6)], [read(2, 1, 2)])


def test_zones_find_a_write_hidden_within_another_value() -> None:
    writes = [put(2, 1, 2), put(4, 4, 5)]
    assert zone_conflicts(writes, [read(2, 2, 3), read(2, 6, 7)])


def test_what_expires_too_early_has_no_order() -> None:
    assert found(expiring(2, 1, 2), read(ABSENT, 5, 6)) == (0, 0, 1)


def test_the_greater_number_is_the_later_write() -> None:
    """Zones would allow it: two writes at once, and the one with the smaller number still runs."""
    assert found(put(4, 1, 2), put(2, 1, 9), read(2, 3, 4)) == (1, 0, 0)


def test_numbers_that_were_never_told_are_left_out() -> None:
    assert found(put(2, 1, 2), put(UNKNOWN, 3), read(2, 4, 5)) == (0, 0, 0)


def test_keys_are_checked_apart() -> None:
    other = Write(2, 1, 2, 8, 0)
    assert found(other, put(2, 3, 4), read(2, 5, 6)) == (0, 0, 0)


def test_the_lateness_is_told() -> None:
    verdict = check(History([put(2, 1, 2), put(4, 3, 4)], [read(2, 4_000_004, 5_000_000)]))
    assert verdict.worst_ms == pytest.approx(4.0)


def test_recorded_is_what_is_checked(tmp_path: Path) -> None:
    recorder = Recorder()
    recorder.writes.extend(put(2, 1, 2))
    recorder.writes.extend(delete(3, 3))
    recorder.reads.extend(read(2, 4, 5))
    recorder.told.extend(told(PRESENT, 6, 7))
    recorder.save(tmp_path, "one")
    history = History()
    history.add(tmp_path)
    assert history.writes == [put(2, 1, 2), delete(3, 3)]
    assert history.reads == [read(2, 4, 5)]
    assert history.told == [told(PRESENT, 6, 7)]


def public(passes: list[Pass]) -> list[Pass]:
    return [each for each in passes if each.token is None]


def test_a_pass_is_known_as_long_as_it_is_valid(database: Database, bucket: str) -> None:
    """A public bucket whose pass was forgotten would be published and ended by another one.

    Once published again, the passes of before say nothing, whether or not they are in use still.
    """
    made: list[Pass] = []
    with closing(Passes(database.dsn_owner, "known", 2, 0.5)) as passes:
        for _ in range(150):
            passes.turn(bucket, bucket)
            made += [each for each in passes.current if each not in made]
            valid = [each for each in made if each.ending == VALID and not each.is_void]
            assert set(valid) <= set(passes.current)
            assert all(each.is_void for each in public(made)[:-1])
            assert len(passes.current) <= 12
