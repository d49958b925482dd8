"""The functions of single buckets: which of them this process calls, and what if one is missing.

A bucket's own function does the same as the function for all buckets, faster: PostgreSQL keeps its
plan (decision 0010). PostgreSQL makes and drops them; here is only the cache of their numbers.
"""

import logging
import time
from collections.abc import Sequence
from typing import Any

import psycopg2

from poky.store.errors import first_line, is_undefined
from poky.store.pool import Pool, Rows
from poky.store.statements import BUCKET_EXECUTE, EXECUTE

log = logging.getLogger("poky.store")

# Kept plans cost memory in every connection, about 100 kB a function. So a process uses these
# functions of the first so many buckets, and the functions for all buckets for any others.
_MOST = {"get": 1000, "share": 1000, "update": 100, "delete": 100}
# When a bucket's function fails as undefined: how long until its number is asked for again.
_PAUSE_SECONDS = 1.0
_FLAT = 0
_MOST_STATEMENTS = 4000  # of buckets that are kept at a time


class BucketFunctions(Pool):
    """Calls the bucket's own function, or the one for all buckets."""

    def __init__(self, dsn: str, **limits: Any) -> None:
        super().__init__(dsn, **limits)
        self._is_flat = False
        self._numbers: dict[str, int] = {}
        self._own: dict[tuple[str, str], tuple[str, tuple[str, int]]] = {}  # by verb and bucket
        self._used: dict[str, set[int]] = {verb: set() for verb in BUCKET_EXECUTE}
        self._paused: dict[str, float] = {}  # until when, by bucket

    def function_number(self, bucket: str) -> int | None:
        """The number in the names of the bucket's own functions; 0: flat; None: no such bucket."""
        number: int | None = self._read("SELECT poky.function_number(%s)", (bucket,))[0][0]
        return number

    def _call(
        self, verb: str, function: str, bucket: str, parameters: Sequence[Any], *, is_write: bool
    ) -> Rows:
        """Rows of the bucket's ``verb``, else of the ``function`` for all buckets."""
        rows = self._call_own(verb, bucket, parameters, is_write=is_write)
        if rows is None:
            rows = self._execute(EXECUTE[function], (bucket, *parameters), is_write=is_write)
        return rows

    def _call_own(
        self, verb: str, bucket: str, parameters: Sequence[Any], *, is_write: bool
    ) -> Rows | None:
        """Rows of the bucket's ``verb``; None: it has none, or this process may not use it."""
        own = self._own.get((verb, bucket)) or self._find_own(verb, bucket)
        if own is not None:
            statement, function = own
            try:
                return self._execute(
                    statement, (bucket, *parameters), is_write=is_write, bucket_function=function
                )
            except psycopg2.Error as error:
                if not is_undefined(error):
                    raise
                # Dropped, or not made yet: it did nothing.
                log.info("bucket %s: %s_%d: %s", bucket, *function, first_line(error))
                self._forget(bucket, function[1])
        return None

    def _find_own(self, verb: str, bucket: str) -> tuple[str, tuple[str, int]] | None:
        """The statement that calls the bucket's ``verb``, and what it calls."""
        number = self._number(verb, bucket)
        if number is None:
            return None
        if len(self._own) >= _MOST_STATEMENTS:
            self._own.clear()
        own = self._own[verb, bucket] = BUCKET_EXECUTE[verb] % number, (verb, number)
        return own

    def _number(self, verb: str, bucket: str) -> int | None:
        """The number of the function to call; None: call the one for all buckets."""
        if self._is_flat:
            return _FLAT
        number = self._numbers.get(bucket)
        if number is None:
            if self._paused and self._paused.get(bucket, 0) > time.monotonic():
                return None
            number = self.function_number(bucket)
            if number is None:
                return None
            self._paused.pop(bucket, None)
            if number == _FLAT:
                self._is_flat = True
                return number
            self._numbers[bucket] = number
        used = self._used[verb]
        if number not in used:
            if len(used) >= _MOST[verb]:
                return None
            used.add(number)
        return number

    def _forget(self, bucket: str, number: int) -> None:
        self._own.clear()
        self._is_flat = False
        self._numbers.pop(bucket, None)
        for used in self._used.values():
            used.discard(number)
        if len(self._paused) > 1000:
            self._paused.clear()
        self._paused[bucket] = time.monotonic() + _PAUSE_SECONDS
