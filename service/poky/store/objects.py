"""Objects: one method per function of schema ``poky``, same verb, same order of arguments."""

from collections.abc import Sequence
from typing import Any

import psycopg2

from poky.store.errors import may_retry, translated
from poky.store.literals import Value, array, hash_of, unless_empty
from poky.store.pool import Pool, Rows
from poky.store.results import Delete, Found, Listed, Object, Outcome, Put
from poky.store.statements import BUCKET_FUNCTION_PLACES

# Each bucket function costs PostgreSQL memory in every connection; buckets beyond these numbers
# share the functions for all, at a higher cost per request.
_MOST_BUCKET_FUNCTIONS = {"get": 1000, "put": 100, "delete": 100}
# With more buckets their plans evict each other from the CPU's caches, and a put without If-Match
# is faster by the one plan that poky.put has for all buckets.
_FEW_BUCKETS = 10

# Named here: within the class, "list" is the verb.
Outcomes = list[Outcome]
ListedObjects = list[Listed]


class Objects(Pool):
    """Single objects, batches and listings."""

    def get(self, bucket: str, key: str) -> Object | None:
        """The object, or None when there is none."""
        rows = self._call_bucket_function("get", bucket, (key,), is_write=False)
        if rows is None:
            rows = self._read("EXECUTE poky_get(%s, %s)", (bucket, key))
        if not rows:
            return None
        *facts, value = rows[0]
        return Object._make((*facts, value.cast("B")))

    def reader(self, bucket: str) -> str | None:
        """The name of this bucket's own poky.get; empty: it has none; None: there is no bucket."""
        return self._name("SELECT poky.reader(%s)", (bucket,))

    def writer(self, bucket: str, verb: str) -> str | None:
        """The name of this bucket's own poky.put or poky.delete; as reader."""
        return self._name("SELECT poky.writer(%s, %s)", (bucket, verb))

    def _name(self, statement: str, parameters: Sequence[str]) -> str | None:
        try:
            rows = self._execute_once(statement, parameters, is_write=False, check_alive=True)
        except (psycopg2.Error, ValueError):
            return ""  # poky.get or poky.put, called next, reports what is wrong
        name: str | None = rows[0][0]
        return name

    def _call_bucket_function(
        self, verb: str, bucket: str, parameters: Sequence[Any], *, is_write: bool
    ) -> Rows | None:
        """Rows of the bucket's own function; None: fall back to the one for all buckets."""
        names = self._bucket_functions[verb]
        name = names.get(bucket)
        if name is None:
            if len(names) >= _MOST_BUCKET_FUNCTIONS[verb]:
                return None
            name = self.writer(bucket, verb) if is_write else self.reader(bucket)
            if name is None:
                return None
            names[bucket] = name
        if not name:
            return None
        try:
            statement = f"EXECUTE poky_{name}{BUCKET_FUNCTION_PLACES[verb]}"
            return self._execute_once(
                statement,
                parameters,
                is_write=is_write,
                check_alive=is_write,
                bucket_function=name,
            )
        except (psycopg2.Error, ValueError) as error:
            names.pop(bucket, None)
            code = getattr(error, "pgcode", None)
            if code == "57014" or (is_write and not may_retry(error, is_write=True)):
                raise translated(error, is_write=is_write) from error
            return None

    def put(
        self,
        bucket: str,
        key: str,
        value: bytes,
        content_type: str,
        modified_at: int | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
    ) -> Put:
        """Store an object if its conditions hold and nothing newer than ``modified_at`` is there.

        A refusal for a condition is an answer (``rejected``), an unknown bucket a StoreError.
        """
        given = (
            key, Value(value), content_type, modified_at, if_match, if_none_match, hash_of(value)
        )  # fmt: skip
        rows = None
        if if_match is not None or len(self._bucket_functions["put"]) <= _FEW_BUCKETS:
            rows = self._call_bucket_function("put", bucket, given, is_write=True)
        if rows is None:
            rows = self._write("EXECUTE poky_put(%s, %s, %s, %s, %s, %s, %s, %s)", (bucket, *given))
        return Put(*rows[0])

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
        rows = self._call_bucket_function("delete", bucket, given, is_write=True)
        if rows is None:
            rows = self._write("EXECUTE poky_delete(%s, %s, %s, %s, %s)", (bucket, *given))
        return Delete(*rows[0])

    def get_many(self, bucket: str, keys: Sequence[str]) -> dict[str, Found]:
        """Those of the objects that are there, by key."""
        rows = self._read("EXECUTE poky_get_many(%s, %s)", (bucket, array(keys)))
        return {key: Found._make((key, *facts, bytes(value))) for key, *facts, value in rows}

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
    ) -> Outcomes:
        """Store objects in one transaction; one outcome per item, by position.

        ``atomic``: if any is rejected nothing is written, and no outcome has a revision.
        """
        rows = self._write(
            "EXECUTE poky_put_many(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
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
            ),
        )
        return sorted(Outcome(*row) for row in rows)

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
            "EXECUTE poky_delete_many(%s, %s, %s, %s, %s, %s)",
            (
                bucket,
                array(keys),
                unless_empty(if_match),
                unless_empty(if_none_match),
                unless_empty(unmodified_since),
                atomic,
            ),
        )
        return sorted(Outcome(*row) for row in rows)

    def list(
        self, bucket: str, prefix: str = "", after: str = "", limit: int = 100
    ) -> ListedObjects:
        """Up to ``limit`` objects by key, from just after ``after``."""
        rows = self._read("EXECUTE poky_list(%s, %s, %s, %s)", (bucket, prefix, after, limit))
        return [Listed(*row) for row in rows]
