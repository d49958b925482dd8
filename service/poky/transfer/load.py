"""Stores objects in bulk: COPY into a temporary table, and one statement that merges it.

A chunk is a transaction: it is stored whole or not at all, and storing it again changes nothing.
The next chunk is made while PostgreSQL stores the one before.
"""

import struct
import threading
from io import BytesIO
from typing import Final, Literal, NamedTuple

from poky.transfer.lines import Exported
from poky.transfer.session import Session

OnConflict = Literal["keep", "replace", "newer"]

_CHUNK_ROWS: Final = 20_000
_CHUNK_BYTES: Final = 8 * 1024 * 1024
_STAGED: Final = """
CREATE TEMPORARY TABLE IF NOT EXISTS staged (
    key text COLLATE "C" NOT NULL, value bytea NOT NULL, content_type text COLLATE "C" NOT NULL,
    content_encoding text COLLATE "C", hash text COLLATE "C" NOT NULL, modified_at bigint,
    created_at bigint, expires_at bigint
) ON COMMIT DELETE ROWS
"""
_COPY: Final = "COPY pg_temp.staged FROM STDIN (FORMAT binary)"
_MERGE: Final = (
    "SELECT inserted, updated, outbox_id, changed FROM poky.import_staged(%s, %s, %s, %s)"
)
_MOST_NAMED: Final = 10_000  # keys
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COLUMNS: Final = struct.pack("!h", 8)
_NULL: Final = struct.pack("!i", -1)
_length = struct.Struct("!i").pack
_bigint = struct.Struct("!iq").pack


class Stored(NamedTuple):
    """What came of objects: the rest was there already, or is to be kept."""

    inserted: int = 0
    updated: int = 0


class Told:
    """What caches have to hear of: single keys by bucket, or everything once they are too many."""

    def __init__(self) -> None:
        self.is_everything = False
        self.keys: dict[str, list[str]] = {}
        self._count = 0

    def add(self, bucket: str, keys: list[str] | None) -> None:
        """Add keys that were changed; None: too many."""
        self._count += _MOST_NAMED + 1 if keys is None else len(keys)
        if self._count > _MOST_NAMED:
            self.is_everything = True
            self.keys.clear()
        elif keys:
            self.keys.setdefault(bucket, []).extend(keys)


class _Chunk:
    """Rows for one bucket, as COPY wants them."""

    def __init__(self, bucket: str, *, dated: bool) -> None:
        self.bucket = bucket
        self.dated = dated
        self.keys: set[str] = set()
        self.size = 0
        self.mark = 0
        self._parts: list[bytes] = [_HEADER]

    def add(self, found: Exported) -> None:
        self.keys.add(found.key)
        parts = [_COLUMNS]
        for field in (
            found.key,
            found.value,
            found.content_type,
            found.content_encoding,
            found.hash,
        ):
            if field is None:
                parts.append(_NULL)
            else:
                content = field.encode() if isinstance(field, str) else field
                parts += (_length(len(content)), content)
        for at in (found.modified_at, found.created_at, found.expires_at):
            parts.append(_NULL if at is None else _bigint(8, at))
        self._parts += parts
        self.size += len(found.value) + 200

    def take(self) -> BytesIO:
        """The bytes for COPY; the chunk forgets them."""
        made, self._parts = b"".join([*self._parts, b"\xff\xff"]), []
        return BytesIO(made)


class Loader:
    """Stores objects in one session's transactions.

    ``mark`` of `add` is any number, such as a line's: `done` is the last that is surely stored.
    After a StoreError nothing beyond it is counted, though it may be stored.
    """

    def __init__(self, session: Session, on_conflict: OnConflict) -> None:
        self.stored = Stored()
        self.done = 0
        self.outbox_ids: dict[str, int] = {}  #: by bucket: to be confirmed once caches have heard
        self.told = Told()  #: what they have to hear of
        self._session = session
        self._on_conflict = on_conflict
        self._chunks: dict[str, _Chunk] = {}
        self._sizes = 0
        self._rows = 0
        self._mark = 0
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        session.run(_STAGED)
        session.commit()

    def add(self, bucket: str, found: Exported, mark: int = 0) -> None:
        """Store an object, soon; raises StoreError for one that was to be stored before."""
        dated = found.modified_at is not None
        chunk = self._chunks.get(bucket)
        if chunk is not None and (found.key in chunk.keys or chunk.dated != dated):
            self.flush()  # one statement cannot store a key twice
            chunk = None
        if chunk is None:
            chunk = self._chunks[bucket] = _Chunk(bucket, dated=dated)
        before = chunk.size
        chunk.add(found)
        self._sizes += chunk.size - before
        self._rows += 1
        self._mark = mark
        if self._rows >= _CHUNK_ROWS or self._sizes >= _CHUNK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Have all that was added stored, beside what the caller does next."""
        self._wait()
        chunks, self._chunks = list(self._chunks.values()), {}
        self._sizes = self._rows = 0
        if chunks:
            self._thread = threading.Thread(
                target=self._store, args=(chunks, self._mark), name="poky-import", daemon=True
            )
            self._thread.start()

    def finish(self) -> None:
        """Return once all is stored. Raises StoreError."""
        self.flush()
        self._wait()

    def settle(self) -> None:
        """Wait for what is being stored, whatever comes of it: then ``told`` is complete."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _wait(self) -> None:
        self.settle()
        if self._error is not None:
            raise self._error

    def _store(self, chunks: list[_Chunk], mark: int) -> None:
        try:
            for chunk in chunks:
                self._store_one(chunk)
            self.done = mark
        except BaseException as error:  # it is the caller's to see
            self.told.add("", None)  # it may have been stored all the same
            self._error = error

    def _store_one(self, chunk: _Chunk) -> None:
        session = self._session
        session.copy(_COPY, chunk.take())
        given = (chunk.bucket, self._on_conflict, chunk.dated, self.outbox_ids.get(chunk.bucket))
        inserted, updated, outbox_id, changed = session.run(_MERGE, given)[0]
        session.commit()
        self.stored = Stored(self.stored.inserted + inserted, self.stored.updated + updated)
        if outbox_id is not None:
            self.outbox_ids[chunk.bucket] = outbox_id
            self.told.add(chunk.bucket, changed)
