"""The changes of buckets: recorded by the database, read by cursor."""

from collections.abc import Mapping, Sequence
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


_COLUMNS = "key, result, revision, hash, modified_at, xid, next, policy"


class Changes(Pool):
    """Follow buckets."""

    def changes(
        self, bucket: str, after: str = "", prefix: str = "", limit: int = 100
    ) -> ChangesPage:
        """Up to ``limit`` changes after a cursor: "" begins now, "0" with the oldest kept.

        A page may be empty before the end is reached: follow ``next``. StoreError 404 where nothing
        is recorded, 410 for a cursor that is too old, 400 for what is none.
        """
        rows = self._read(
            f"SELECT {_COLUMNS} FROM poky.changes(%s, %s, %s, %s)",  # noqa: S608 - columns of ours
            (bucket, after, prefix, limit),
            limit,
        )
        return _page(rows)

    def former_changes(
        self, stay: Mapping[str, Any], after: str, prefix: str, limit: int
    ) -> ChangesPage:
        """As ``changes``, of a stay of the bucket that has ended here (``ChangesElsewhere``).

        It is never the last page: the next stay follows.
        """
        rows = self._read(
            f"SELECT {_COLUMNS} FROM poky.former_changes(%s, %s, %s, %s, %s, %s)",  # noqa: S608
            (stay["id"], stay["stay"], stay["next"], after, prefix, limit),
            limit,
        )
        return _page(rows)

    def keep_changes(self, bucket: str, seconds: int | None) -> bool:
        """Record a bucket's changes and keep them so long; None: do not. Whether that is new."""
        return bool(self._write_freely("SELECT poky.keep_changes(%s, %s)", (bucket, seconds))[0][0])

    def renew_changes(self) -> int:
        """Make the partitions of the next days, drop those kept no longer; how many."""
        return int(self._write_freely("SELECT poky.renew_changes()", ())[0][0])

    def cursor(self) -> str:
        """The cursor of this moment: what is committed later comes after it."""
        return str(self._read_freely("SELECT poky.cursor()", ())[0][0])


def _page(found: Sequence[Any]) -> ChangesPage:
    rows = list(found)
    _, result, *_, following, policy = rows.pop()
    changes = [Changed(*row[:7]) for row in rows]
    return ChangesPage(changes, following, result == "last", policy)
