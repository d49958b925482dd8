"""Takes over a database of the original Poky (2013), while it is still written to.

Its table ``poky`` (bucket, key, data, created_at, modified_at) is flat, or the parent of one table
per bucket. Its modified_at is the client's and may stand still while the data changes: so the
transaction that wrote a row (xmin) tells what changed, which works on PostgreSQL 9.2 as well.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from poky.api.names import check_bucket, check_key
from poky.store import StoreError
from poky.store.rows import CopiedRows
from poky.transfer.lines import Exported, hash_of
from poky.transfer.load import Loader
from poky.transfer.session import Session
from poky.transfer.streams import streamed

CONTENT_TYPE: Final = "text/plain; charset=utf-8"

_SECOND: Final = "floor(extract(epoch FROM {}))::bigint"
_COLUMNS: Final = ("text", "text", "bytea", "bigint", "bigint")
_ROWS: Final = (
    "COPY (SELECT p.bucket::text, p.key::text, p.data,"  # noqa: S608 - names of our own
    f" {_SECOND.format('p.created_at')}, {_SECOND.format('p.modified_at')}"
    " FROM poky AS p WHERE {}) TO STDOUT (FORMAT binary)"
)
_KEYS: Final = (
    "COPY (SELECT p.key::text FROM poky AS p WHERE p.bucket = %s"
    ' ORDER BY p.key COLLATE "C") TO STDOUT (FORMAT binary)'
)


class Pass(NamedTuple):
    """What one look at the original brought."""

    rows: int  #: that were read
    changed: int  #: objects that were not so here before
    seconds: float


class Original:
    """A database of the original: a context of `Session`, read only."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._seen: int | None = None  # all transactions before this one were over
        session.begin_snapshot()
        try:
            session.run("SELECT bucket, key, data, created_at, modified_at FROM poky LIMIT 0")
        except StoreError as error:
            raise StoreError(
                404,
                "There is no table poky with bucket, key, data, created_at and modified_at that may"
                " be read.",
                code="schema_missing",
            ) from error

    def buckets(self) -> list[str]:
        """The names of all buckets that have rows, but for names that are none here."""
        self._session.begin_snapshot()
        rows = self._session.run("SELECT DISTINCT bucket::text FROM poky ORDER BY 1")
        return [name for (name,) in rows if _is_bucket(name)]

    def estimated_rows(self) -> int:
        """PostgreSQL's estimate, of the table and its children."""
        found = self._session.run(
            "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class AS c"
            " WHERE c.oid = 'poky'::regclass OR c.oid IN ("
            "SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = 'poky'::regclass)"
        )
        return int(found[0][0])

    def follow(
        self,
        loader: Loader,
        wrong: Callable[[str, str], object],
        report: Callable[[int], object] = lambda count: None,
    ) -> Pass:
        """Store all rows, later those that were written since the last call.

        ``wrong(bucket/key, why)`` hears of rows that cannot be stored. Raises StoreError.
        """
        began = time.monotonic()
        before = sum(loader.stored)
        count = 0

        def each(row: tuple[Any, ...]) -> None:
            nonlocal count
            count += 1
            if count % 1000 == 0:
                report(count)
            bucket, key, data, created_at, modified_at = row
            try:
                name = check_bucket(bucket)
                found = _object(key, data, created_at, modified_at)
            except ValueError as error:
                wrong(f"{bucket}/{key}", str(error))
            else:
                loader.add(name, found)

        session = self._session
        session.begin_snapshot()
        seen = int(session.run("SELECT txid_snapshot_xmin(txid_current_snapshot())")[0][0])
        condition = "true"
        if self._seen is not None:
            condition = f"age(p.xmin) <= age('{self._seen % 2**32}'::xid)"
        copied = CopiedRows(_COLUMNS, each, lambda: None)
        copied.clear()
        session.copy(_ROWS.format(condition), copied)
        session.end()
        loader.finish()
        self._seen = seen
        report(count)
        return Pass(count, sum(loader.stored) - before, time.monotonic() - began)

    def keys(self, bucket: str) -> Iterator[str]:
        """The keys of a bucket, in byte order. Raises StoreError."""

        def read(take: Callable[[str], object]) -> None:
            def each(row: tuple[str, ...]) -> None:
                take(row[0])

            copied = CopiedRows(("text",), each, lambda: None)
            copied.clear()
            self._session.begin_snapshot()
            self._session.copy(_KEYS, copied, (bucket,))

        return streamed(read)


def _object(key: str, data: Any, created_at: int | None, modified_at: int | None) -> Exported:
    check_key(key)
    if data is None:
        raise ValueError("there is no data")
    value = bytes(data)
    return Exported(
        key,
        value,
        CONTENT_TYPE,
        None,
        hash_of(value),
        modified_at=None if modified_at is None else max(modified_at, 0),
        created_at=None if created_at is None else max(created_at, 0),
    )


def _is_bucket(name: str) -> bool:
    try:
        return bool(check_bucket(name))
    except ValueError:
        return False
