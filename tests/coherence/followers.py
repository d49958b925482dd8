"""Followers of the bucket that a phase writes: each change once, each key's in their order.

Streams and long polls, at all instances, from the first change on, and one who begins when all is
over: they go on through moves and faults by their cursors. The oracle is what the logs of all
databases have together, and that has to have whatever was acknowledged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

import psycopg2

from poky.store import ShardedStore
from tests.coherence.history import NEVER, UNKNOWN, Write
from tests.coherence.load import name_of
from tests.coherence.stack import Stack
from tests.service import wait_until
from tests.test_followers import Change, Run, by_key, follow, stream

_LOGGED = """
    SELECT c.key, c.result, '"' || c.revision || '-' || c.hash || '"', c.revision
    FROM poky._change AS c WHERE c.bucket_id = %s
"""


@dataclass
class Told:
    """What followers were told; ``findings`` say what they should have been."""

    changes: int = 0  #: of the bucket
    followers: int = 0
    findings: list[str] = field(default_factory=list)
    logged: list[tuple[str, str, str | None, int]] = field(default_factory=list)

    def check_writes(self, writes: Sequence[Write]) -> None:
        """Whatever was acknowledged is in the logs, and a deletion follows what it deleted."""
        states = defaultdict(list)
        for key, result, _, revision in self.logged:
            states[key].append((revision, result))
        after = {
            (key, one): other[1]
            for key, of_key in states.items()
            for (one, _), other in zip(of_key, [*of_key[1:], (0, "")], strict=True)
        }
        for write in writes:
            if write.end == NEVER or write.number == UNKNOWN:
                continue
            place = name_of(write.key), write.number // 2
            if place not in after:
                self.findings.append(f"acknowledged, and not recorded: {place}")
            elif write.is_delete and after[place] not in ("delete", "expire"):
                self.findings.append(f"deleted, and not recorded: {place}")


@contextmanager
def following(stack: Stack, bucket: str) -> Iterator[Told]:
    """Followers for the length of a block, in which nobody writes any more at the end."""
    told = Told()
    with closing(ShardedStore(stack.server.dsn_owner, stack.owner_shards)) as owner:
        owner.keep_changes(bucket, 86_400)
        place = owner.place(bucket)
        assert place
    run = Run(stack.services, bucket)
    ways = (follow, follow, stream, stream)
    copies: list[list[Change]] = [[] for _ in ways]
    threads = [run.thread(way, n, copies[n]) for n, way in enumerate(ways)]
    try:
        yield told
    finally:
        client = stack.services[0].client()
        wait_until(lambda: client.put(f"/kv/{bucket}/end", "v").status == 200, 60)
        copies.append([])
        threads.append(run.thread(follow, len(ways), copies[-1]))
        for thread in threads:
            thread.join(120)
    told.logged = _logged(stack, place.id)
    told.changes, told.followers = len(told.logged), len(copies)
    told.findings += [f"a follower failed: {failure}" for failure in run.failures]
    expected = by_key([each[:3] for each in told.logged])
    for number, copy in enumerate(copies):
        found = by_key(copy)
        for key in sorted(expected.keys() | found.keys()):
            if found.get(key) != expected.get(key):
                told.findings.append(
                    f"follower {number} of {key}: {_difference(found.get(key, []), expected[key])}"
                    if key in expected
                    else f"follower {number}: {key} was never recorded"
                )


def _logged(stack: Stack, bucket_id: int) -> list[tuple[str, str, str | None, int]]:
    """What the logs of all databases have, in the order of revisions."""
    logged: list[tuple[str, str, str | None, int]] = []
    for dsn in (stack.server.dsn_owner, *stack.owner_shards.values()):
        with closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
            cursor.execute(_LOGGED, (bucket_id,))
            logged += cursor.fetchall()
    return sorted(logged, key=lambda each: each[3])


def _difference(found: Sequence[object], expected: Sequence[object]) -> str:
    at = next(
        (n for n, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other),
        min(len(found), len(expected)),
    )
    return f"{found[at : at + 2]} at {at} instead of {expected[at : at + 2]}"
