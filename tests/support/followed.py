"""A bucket that is followed in several databases, and what its followers should have seen."""

from __future__ import annotations

from collections import Counter
from contextlib import closing

from poky.store import Changed, ShardedStore
from tests.conftest import Database


def record(database: Database, bucket: str, seconds: int | None = 86400) -> None:
    """Have the changes of a bucket recorded, and kept so long."""
    shards = {n: each.dsn_owner for n, each in enumerate(database.others, start=1)}
    with closing(ShardedStore(database.dsn_owner, shards)) as admin:
        admin.keep_changes(bucket, seconds)


def all_after(store: ShardedStore, bucket: str, cursor: str, limit: int = 100) -> list[Changed]:
    """Page by page to the end of now."""
    found: list[Changed] = []
    for _ in range(10_000):
        page = store.changes(bucket, cursor, "", limit)
        found += page.changes
        cursor = page.next
        if page.is_last:
            return found
    raise AssertionError("there is no end")


def shown(changes: list[Changed]) -> list[tuple[str, str, int]]:
    return [(each.key, each.result, each.revision) for each in changes]


def recorded(database: Database, bucket_id: int) -> Counter[tuple[str, int]]:
    """What the logs of all databases have of a bucket."""
    found: Counter[tuple[str, int]] = Counter()
    for each in (database, *database.others):
        with closing(each.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT key, revision FROM poky._change WHERE bucket_id = %s", (bucket_id,)
            )
            found.update(cursor.fetchall())
    return found


def identity(store: ShardedStore, bucket: str) -> int:
    place = store.place(bucket)
    assert place is not None
    return place.id


def faults(followed: list[tuple[str, int]], logged: Counter[tuple[str, int]]) -> list[str]:
    """What a follower missed, saw twice, or in a wrong order; it saw (key, revision)."""
    seen = Counter(followed)
    wrong = [f"missed: {each}" for each in logged if each not in seen]
    wrong += [f"twice: {each}" for each, count in seen.items() if count > 1]
    wrong += [f"not recorded: {each}" for each in seen if each not in logged]
    last: dict[str, int] = {}
    for key, revision in followed:
        if revision < last.get(key, 0):
            wrong.append(f"order: {key} {revision} after {last[key]}")
        last[key] = revision
    return wrong
