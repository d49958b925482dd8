"""Objects: one method per function of schema ``poky``, same verb, same order of arguments."""

import json
from collections.abc import Sequence

from poky.store.bucket_functions import BucketFunctions
from poky.store.literals import Value, array, hash_of, unless_empty
from poky.store.results import Delete, Found, Listed, Object, Outcome, Put
from poky.store.statements import EXECUTE

# Named here: within the class, "list" is the verb.
Outcomes = list[Outcome]
ListedObjects = list[Listed]


class Objects(BucketFunctions):
    """Single objects, batches and listings."""

    def get(self, bucket: str, key: str) -> Object | None:
        """The object, or None when there is none."""
        rows = self._call("get", "get_many", bucket, (array((key,)),), is_write=False)
        if not rows:
            return None
        *facts, value = rows[0]
        return Object._make((*facts, value.cast("B")))

    def put(
        self,
        bucket: str,
        key: str,
        value: bytes,
        content_type: str,
        modified_at: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        content_encoding: str | None = None,
    ) -> Put:
        """Store an object if its conditions hold and nothing newer than ``modified_at`` is there.

        A refusal for a condition is an answer (``rejected``), an unknown bucket a StoreError.
        """
        given = (
            key, Value(value), content_type, modified_at, if_match, if_none_match, hash_of(value),
            _attributes(content_encoding),
        )  # fmt: skip
        if if_match is None:
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

    def get_many(self, bucket: str, keys: Sequence[str]) -> dict[str, Found]:
        """Those of the objects that are there, by key."""
        rows = self._read(EXECUTE["get_many"], (bucket, array(keys)))
        found = map(Found._make, rows)
        return {each.key: each._replace(value=bytes(each.value)) for each in found}

    def put_many(
        self,
        bucket: str,
        keys: Sequence[str],
        values: Sequence[bytes],
        content_types: Sequence[str],
        modified_at: Sequence[int | None],
        if_match: Sequence[str | None],
        if_none_match: Sequence[str | None],
        atomic: bool,
        content_encodings: Sequence[str | None] = (),
    ) -> Outcomes:
        """Store objects in one transaction; one outcome per item, by position.

        ``atomic``: if any is rejected nothing is written, and no outcome has a revision.
        """
        rows = self._write(
            EXECUTE["put_many"],
            (
                bucket,
                array(keys),
                [Value(value) for value in values],
                array(content_types),
                unless_empty(modified_at),
                unless_empty(if_match),
                unless_empty(if_none_match),
                atomic,
                array([hash_of(value) for value in values]),
                array([_attributes(each) for each in content_encodings]),
            ),
        )
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
        )
        return sorted(map(Outcome._make, rows))

    def list(
        self, bucket: str, prefix: str = "", after: str = "", limit: int = 100
    ) -> ListedObjects:
        """Up to ``limit`` objects by key, from just after ``after``."""
        rows = self._read(EXECUTE["list"], (bucket, prefix, after, limit))
        return [Listed._make(row) for row in rows]


def _attributes(content_encoding: str | None) -> str | None:
    """What an object has besides its value and content type, as poky.put takes it; None: nothing.

    One JSON object, so that the functions' signatures need not change with each attribute.
    """
    return None if content_encoding is None else json.dumps({"content_encoding": content_encoding})
