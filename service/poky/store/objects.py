"""Objects: one method per function of schema ``poky``, same verb, same order of arguments."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from poky.store.bucket_functions import BucketFunctions
from poky.store.errors import StoreError
from poky.store.literals import LARGE, Value, array, unless_empty
from poky.store.results import Delete, Expiry, Listed, Object, Outcome, Page, Put
from poky.store.rows import CopiedRows
from poky.store.statements import COPIED, COPY_FACTOR, COPY_OBJECTS, COPY_PART, EXECUTE

# How often a large object may have grown between being measured and being fetched.
_ATTEMPTS = 3
_ANY_SIZE = 2**31 - 1

Room = Callable[[int], None]
Select = Callable[[Object], tuple[int, int] | None]  # from where, and how many bytes

Outcomes = list[Outcome]


class Objects(BucketFunctions):
    """Single objects, batches and listings."""

    COPY_FACTOR = COPY_FACTOR

    def get(
        self,
        bucket: str,
        key: str,
        room: Room = lambda size: None,
        select: Select = lambda found: None,
    ) -> Object | None:
        """The object, or None when there is none.

        ``room(bytes)`` is called before a large value is fetched, with the memory that it takes.
        Before that ``select`` may say which part of the value is wanted: then it is that part only.
        """
        for _ in range(_ATTEMPTS):
            rows = self._call("get", "get", bucket, (array((key,)),), is_write=False)
            if not rows:
                return None
            *facts, value = rows[0]
            if value is not None:
                return Object._make((key, *facts, value.cast("B"), len(value)))
            # Large. Its size is asked for only now: a column more is 1 % of a small read.
            rows = self._read(EXECUTE["get_many"], (bucket, array((key,))))
            if not rows:
                return None
            found = Object._make(rows[0])
            part = select(found)
            if part is not None:
                _, length = part
                room(length * COPY_FACTOR)
                value = self.get_part(bucket, key, found.revision, *part) if length else b""
                if value is None:
                    continue
                return found._replace(value=value)
            size = found.size
            room(size * COPY_FACTOR)
            copied: list[Object] = []
            self._copy_objects(bucket, (key,), size, copied.clear, copied.append, size)
            if copied:
                return copied[0]
        raise StoreError(
            503, "The object changes too often. Try again shortly.", code="database_slow"
        )

    def get_part(
        self, bucket: str, key: str, revision: int, begin: int, length: int
    ) -> memoryview | None:
        """``length`` bytes of the value; None unless the object is there and has this revision."""
        parts: list[Any] = []
        rows = CopiedRows(("bytea",), lambda row: parts.append(*row), parts.clear)
        self._copy(COPY_PART, (bucket, key, revision, begin, length), rows, length)
        return parts[0]  # type: ignore[no-any-return]

    def put(
        self,
        bucket: str,
        key: str,
        value: bytes | Value,
        content_type: str,
        modified_at: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        content_encoding: str | None = None,
        expiry: Expiry | None = None,
    ) -> Put:
        """Store an object if its conditions hold and nothing newer than ``modified_at`` is there.

        A refusal for a condition is an answer (``rejected``), an unknown bucket a StoreError.
        """
        value = value if isinstance(value, Value) else Value(value)
        given = (
            key, value, content_type, modified_at, if_match, if_none_match, value.hash,
            attributes(content_encoding, expiry),
        )  # fmt: skip
        size = len(value.content)
        if size > LARGE:
            rows = self._write_large(EXECUTE["put"], (bucket, *given), size)
        elif if_match is None:
            rows = self._write(EXECUTE["put"], (bucket, *given))
        else:
            rows = self._call("update", "put", bucket, given, is_write=True)
        return Put._make(rows[0])

    def delete(
        self,
        bucket: str,
        key: str,
        if_match: str | None = None,
        if_none_match: str | None = None,
        unmodified_since: int | None = None,
    ) -> Delete:
        """Delete an object if its conditions hold."""
        given = key, if_match, if_none_match, unmodified_since
        rows = self._call("delete", "delete", bucket, given, is_write=True)
        return Delete._make(rows[0])

    def get_many(self, bucket: str, keys: Sequence[str]) -> dict[str, Object]:
        """Those of the objects that are there, by key; without values if those are large."""
        distinct = list(dict.fromkeys(keys))
        rows = self._read(EXECUTE["get_many"], (bucket, array(distinct)), len(distinct))
        found = map(Object._make, rows)
        return {
            each.key: each if each.value is None else each._replace(value=bytes(each.value))
            for each in found
        }

    def read_many(
        self,
        bucket: str,
        keys: Sequence[str],
        begin: Callable[[], None],
        each: Callable[[Object], None],
        expected: int = 0,
    ) -> None:
        """Call ``each`` with those of the objects that are there, in the order of distinct keys.

        One after another, of one snapshot; ``begin`` is called before, and before another try.
        ``expected``: how many bytes their values have together, for which there is time.
        """
        self._copy_objects(bucket, list(dict.fromkeys(keys)), _ANY_SIZE, begin, each, expected)

    def _copy_objects(
        self,
        bucket: str,
        keys: Sequence[str],
        size: int,
        begin: Callable[[], None],
        each: Callable[[Object], None],
        expected: int,
    ) -> None:
        rows = CopiedRows(
            COPIED.values(), lambda row: each(Object._make((*row, len(row[-1])))), begin
        )
        given = (array(keys), bucket, array(keys), size)
        self._copy(COPY_OBJECTS, given, rows, expected, len(keys))

    def put_many(
        self,
        bucket: str,
        keys: Sequence[str],
        values: Sequence[bytes | Value],
        content_types: Sequence[str],
        modified_at: Sequence[int | None],
        if_match: Sequence[str | None],
        if_none_match: Sequence[str | None],
        atomic: bool,
        content_encodings: Sequence[str | None] = (),
        expiries: Sequence[Expiry | None] = (),
    ) -> Outcomes:
        """Store objects in one transaction; one outcome per item, by position.

        ``atomic``: if any is rejected nothing is written, and no outcome has a revision.
        """
        given = [value if isinstance(value, Value) else Value(value) for value in values]
        columns = (content_encodings or [None] * len(keys), expiries or [None] * len(keys))
        size = sum(len(value.content) for value in given)
        parameters = (
            bucket,
            array(keys),
            given,
            array(content_types),
            unless_empty(modified_at),
            unless_empty(if_match),
            unless_empty(if_none_match),
            atomic,
            array([value.hash for value in given]),
            array(list(map(attributes, *columns))),
        )
        if size > LARGE:
            rows = self._write_large(EXECUTE["put_many"], parameters, size, len(given))
        else:
            rows = self._write(EXECUTE["put_many"], parameters, len(given))
        return sorted(map(Outcome._make, rows))

    def delete_many(
        self,
        bucket: str,
        keys: Sequence[str],
        if_match: Sequence[str | None],
        if_none_match: Sequence[str | None],
        unmodified_since: Sequence[int | None],
        atomic: bool,
    ) -> Outcomes:
        """Delete objects in one transaction; one outcome per item, by position."""
        rows = self._write(
            EXECUTE["delete_many"],
            (
                bucket,
                array(keys),
                unless_empty(if_match),
                unless_empty(if_none_match),
                unless_empty(unmodified_since),
                atomic,
            ),
            len(keys),
        )
        return sorted(map(Outcome._make, rows))

    def list_page(
        self,
        bucket: str,
        prefix: str = "",
        after: str = "",
        limit: int = 100,
        by_level: bool = False,
    ) -> Page:
        """Up to ``limit`` objects by key, from just after ``after``.

        ``by_level``: keys with a slash beyond ``prefix`` are one entry up to that slash.
        """
        rows = self._read(EXECUTE["list_page"], (bucket, prefix, after, limit + 1, by_level))
        entries = [Listed._make(row) for row in rows]
        if entries and entries[-1].key is None:
            return Page(entries[:-1], entries[-1].next)
        more = len(entries) > limit
        return Page(entries[:limit], entries[limit - 1].key if more else None)


def attributes(content_encoding: str | None, expiry: Expiry | None = None) -> str | None:
    """What an object has besides its value and content type, as poky.put takes it; None: nothing.

    One JSON object, so that the functions' signatures need not change with each attribute.
    """
    if content_encoding is None and expiry is None:
        return None
    given = {"content_encoding": content_encoding, **(expiry._asdict() if expiry else {})}
    return json.dumps({name: each for name, each in given.items() if each is not None})
