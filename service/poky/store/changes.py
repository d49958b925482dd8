"""The changes of buckets: recorded by the database, read by cursor."""

from typing import Any, NamedTuple

from poky.store.pool import Pool


class Changed(NamedTuple):
    """A change of an object: put, delete or expire; only a put has a hash and a date."""

    key: str
    result: str
    revision: int
    hash: str | None
    modified_at: int | None
    xid: int  #: the transaction, for cursors
    next: str  #: the cursor of what comes after it


class ChangesPage(NamedTuple):
    """Changes in order, the cursor of what comes next, and the policy when this was read."""

    changes: list[Changed]
    next: str
    is_last: bool  #: whether there was no more at that moment
    policy: str


class Changes(Pool):
    """Follow buckets."""

    def changes(
        self, bucket: str, after: str = "", prefix: str = "", limit: int = 100
    ) -> ChangesPage:
        """Up to ``limit`` changes after a cursor: "" begins now, "0" with the oldest kept.

        A page may be empty before the end is reached: follow ``next``. StoreError 404 where nothing
        is recorded, 410 for a cursor that is too old, 400 for what is none.
        """
        rows: list[Any] = list(
            self._read(
                "SELECT key, result, revision, hash, modified_at, xid, next, policy"
                " FROM poky.changes(%s, %s, %s, %s)",
                (bucket, after, prefix, limit),
                limit,
            )
        )
        _, result, *_, following, policy = rows.pop()
        changes = [Changed(*row[:7]) for row in rows]
        return ChangesPage(changes, following, result == "last", policy)

    def keep_changes(self, bucket: str, seconds: int | None) -> bool:
        """Record a bucket's changes and keep them so long; None: do not. Whether that is new."""
        return bool(self._write_freely("SELECT poky.keep_changes(%s, %s)", (bucket, seconds))[0][0])

    def renew_changes(self) -> int:
        """Make the partitions of the next days, drop those kept no longer; how many."""
        return int(self._write_freely("SELECT poky.renew_changes()", ())[0][0])

    def cursor(self) -> str:
        """The cursor of this moment: what is committed later comes after it."""
        return str(self._read_freely("SELECT poky.cursor()", ())[0][0])
