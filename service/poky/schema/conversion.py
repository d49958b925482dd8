"""The conversion of a flat database into a partitioned one, while clients read and write.

Every bucket gets a partition that is not in use yet; triggers repeat every change there; a copy
brings in what was there before; then, in one short transaction, the partitions take over. The flat
table is the truth until that moment, so there is always a way back.

The whole state is in the database: after a crash, ``convert`` continues. In order:
poky._conversion (there is a conversion), the trigger mirror_object (changes are repeated), the
position in poky._conversion (what is copied). Needs room for a second copy of all objects.
"""

import time
from collections.abc import Callable
from functools import partial

from poky.schema.owner import OwnerConnection, Progress
from poky.schema.plan import SchemaError

# A batch locks its rows against writers: they should hardly notice.
_BATCH_SECONDS = 0.05
_BATCH_BYTES = 8 * 1024 * 1024
_FIRST_BATCH_ROWS = 100
_MOST_ROWS = 5000
_SNAPSHOT_PATIENCE_SECONDS = 600.0

Read = Callable[[str], str]


def convert(owner: OwnerConnection, read: Read, record: Callable[[], None]) -> None:
    """Convert a flat database; ``read`` gives SQL files, ``record`` notes it in the last step.

    To be called with every other migration kept out. Loses nothing when killed at any point:
    call it again.
    """
    if _given_up(owner):
        _drop_partitions(owner)
    if not _exists(owner, "poky._conversion"):
        owner.report(Progress("Preparing partitions"))
        owner.atomically(lambda: owner.run(read("conversion/begin.sql")))
    if not owner.value("SELECT EXISTS (SELECT FROM pg_trigger WHERE tgname = 'mirror_object')"):
        _create_partitions(owner)
        owner.atomically(lambda: owner.run(read("conversion/mirror.sql")))
    _copy(owner)
    _wait_for_snapshots(owner)
    owner.report(Progress("Changing over"))

    def swap() -> None:
        owner.run(read("conversion/swap.sql"))
        record()

    owner.atomically(swap)


def give_up(owner: OwnerConnection, read: Read) -> None:
    """Stop an unfinished conversion for good and remove what it made; the database stays flat."""
    if not _given_up(owner):
        owner.atomically(lambda: owner.run(read("conversion/give_up.sql")))
    _drop_partitions(owner)


def _exists(owner: OwnerConnection, table: str) -> bool:
    return bool(owner.value("SELECT to_regclass(%s) IS NOT NULL", table))


def _given_up(owner: OwnerConnection) -> bool:
    return _exists(owner, "poky._conversion") and bool(
        owner.value("SELECT given_up FROM poky._conversion")
    )


def _create_partitions(owner: OwnerConnection) -> None:
    """Give every bucket of before the conversion its partition; later ones have a trigger."""
    buckets = owner.run(
        "SELECT id FROM poky.bucket WHERE to_regclass('poky._o_' || id) IS NULL ORDER BY id"
    )
    for done, (bucket,) in enumerate(buckets):
        owner.report(Progress("Preparing partitions", done, len(buckets)))
        owner.atomically(partial(owner.run, "SELECT poky._create_leaf(%s, '_partitioned')", bucket))


def _copy(owner: OwnerConnection) -> None:
    """Copy what is older than the mirror, in key order, from where it was left."""
    owner.run("ANALYZE poky._object")
    total = int(
        owner.value(
            "SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = 'poky._object'::regclass"
        )
    )
    at_bucket, at_key, copied = owner.run("SELECT bucket_id, key, copied FROM poky._conversion")[0]
    rows = _FIRST_BATCH_ROWS
    for (bucket,) in owner.run("SELECT id FROM poky.bucket WHERE id >= %s ORDER BY id", at_bucket):
        key = at_key if bucket == at_bucket else ""
        while (batch := _next_batch(owner, bucket, key, rows)) is not None:
            began = time.monotonic()
            owner.atomically(partial(_copy_batch, owner, bucket, key, *batch))
            key, found = batch
            copied += found
            seconds = time.monotonic() - began
            rows = max(1, min(_MOST_ROWS, int(rows * min(2.0, _BATCH_SECONDS / seconds))))
            owner.report(Progress("Copying", copied, max(copied, total)))
        owner.run(f"ANALYZE poky._o_{bucket:d}")


def _next_batch(
    owner: OwnerConnection, bucket: int, after: str, most: int
) -> tuple[str, int] | None:
    """Give the last key of the next batch and its number of rows; None: there is none."""
    last, rows = owner.run(
        "SELECT max(key), count(*) FROM ("
        " SELECT key, size, sum(size) OVER (ORDER BY key) AS bytes FROM ("
        "  SELECT key, octet_length(value) AS size FROM poky._object"
        "  WHERE bucket_id = %s AND key > %s ORDER BY key LIMIT %s) AS page"
        ") AS page WHERE bytes - size < %s",
        bucket,
        after,
        most,
        _BATCH_BYTES,
    )[0]
    return (last, rows) if rows else None


def _copy_batch(owner: OwnerConnection, bucket: int, after: str, last: str, rows: int) -> None:
    # FOR SHARE gives each row as it is once its writer has committed, and keeps it so. What the
    # mirror has brought already is newer or the same: it stays.
    owner.run(
        f"INSERT INTO poky._o_{bucket:d} SELECT * FROM poky._object"  # noqa: S608 - a number
        " WHERE bucket_id = %s AND key > %s AND key <= %s"
        " ORDER BY key FOR SHARE ON CONFLICT DO NOTHING",
        bucket,
        after,
        last,
    )
    owner.run(
        "UPDATE poky._conversion SET bucket_id = %s, key = %s, copied = copied + %s",
        bucket,
        last,
        rows,
    )


def _wait_for_snapshots(owner: OwnerConnection) -> None:
    """Wait for the statements that began before the copy was complete.

    A statement that reads across the change-over sees the partitions as of its snapshot, so the
    copy has to be older than that (as with CREATE INDEX CONCURRENTLY).
    """
    active = (
        "SELECT l.virtualtransaction FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)"
        " WHERE l.locktype = 'virtualxid' AND a.datname = current_database()"
        " AND a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid()"
    )
    deadline = time.monotonic() + _SNAPSHOT_PATIENCE_SECONDS
    waiting = set(owner.run(active))
    while waiting:
        if time.monotonic() > deadline:
            raise SchemaError(
                "Everything is copied, but an older statement is still running: look into"
                " pg_stat_activity. Then run poky migrate --schema partitioned again; it goes on"
                " from here."
            )
        owner.report(Progress("Waiting for older statements to end"))
        time.sleep(0.02)
        waiting &= set(owner.run(active))


def _drop_partitions(owner: OwnerConnection) -> None:
    # One by one: all at once would need more locks than PostgreSQL has.
    for (leaf,) in owner.run(
        "SELECT inhrelid::regclass::text FROM pg_inherits"
        " WHERE inhparent = 'poky._partitioned'::regclass"
    ):
        owner.atomically(partial(owner.run, f"DROP TABLE {leaf}"))
    owner.atomically(lambda: owner.run("DROP TABLE poky._partitioned, poky._conversion"))
