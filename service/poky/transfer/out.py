"""Streams a bucket: pages of one snapshot, in key order, in memory that does not grow."""

import time
from collections.abc import Callable
from typing import IO, Final

from poky.store import StoreError
from poky.store.rows import CopiedRows
from poky.transfer.lines import End, Exported, Head, write_line, write_mark
from poky.transfer.session import Session

_PAGE: Final = 10_000
_COLUMNS: Final = {
    "key": "text",
    "value": "bytea",
    "content_type": "text",
    "content_encoding": "text",
    "hash": "text",
    "revision": "bigint",
    "modified_at": "bigint",
    "created_at": "bigint",
    "written_at": "bigint",
    "expires_at": "bigint",
}
_EXPORT: Final = (
    f"COPY (SELECT {', '.join(_COLUMNS)} FROM poky.export(%s, %s, %s)) TO STDOUT (FORMAT binary)"  # noqa: S608 - names of our own
)

# Without an object: what comes after this snapshot, which is the transaction's.
_CURSOR: Final = "SELECT next FROM poky.changes(%s, '', '', 1) WHERE key IS NULL"


def rows(session: Session, bucket: str, each: Callable[[Exported], object]) -> None:
    """Call ``each`` with all objects of a bucket as the session's snapshot has them."""
    page = 0
    last = ""

    def take(row: tuple[object, ...]) -> None:
        nonlocal page, last
        found = Exported._make(row)
        page += 1
        last = found.key
        each(found)

    while True:
        page = 0
        copied = CopiedRows(_COLUMNS.values(), take, lambda: None)
        copied.clear()
        session.copy(_EXPORT, copied, (bucket, last, _PAGE))
        if page < _PAGE:
            return


def export(
    session: Session,
    bucket: str,
    file: IO[bytes],
    release: str,
    report: Callable[[int], object] = lambda count: None,
) -> End:
    """Write a bucket as it is at one moment; the last line, which tells how many objects.

    ``report(count)`` is called now and then. Raises StoreError.
    """
    count = 0

    def each(found: Exported) -> None:
        nonlocal count
        file.write(write_line(found))
        count += 1
        if count % 1000 == 0:
            report(count)

    session.begin_snapshot()
    cursor = _cursor(session, bucket)
    file.write(write_mark(Head(bucket=bucket, release=release, exported_at=int(time.time()))))
    rows(session, bucket, each)
    report(count)
    end = End(objects=count, cursor=cursor)
    file.write(write_mark(end))
    return end


def _cursor(session: Session, bucket: str) -> str | None:
    """The cursor of the bucket's changes after this snapshot; None if they are not recorded."""
    session.run("SAVEPOINT before")
    try:
        cursor: str = session.run(_CURSOR, (bucket,))[0][0]
    except StoreError as error:
        if error.code != "changes_off":
            raise
        session.run("ROLLBACK TO before")
        return None
    return cursor
