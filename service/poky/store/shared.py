"""Objects that requests at the same moment ask for, or change, in one statement."""

from collections.abc import Iterable, Sequence
from typing import Final

import psycopg2

from poky.store.errors import StoreError, is_undefined, translated
from poky.store.literals import LARGE, array, unless_empty
from poky.store.objects import Objects, attributes
from poky.store.results import Object, Put, Write
from poky.store.statements import EXECUTE


class Alone:
    """What stands for an object that has to be asked for alone."""

    def __repr__(self) -> str:
        return "ALONE"


ALONE: Final = Alone()
Found = Object | None | Alone


class Together(Exception):
    """The changes could not be made in one statement, and none was made: make each alone."""


class Shared(Objects):
    """One statement for the reads, and one for the writes, of several requests."""

    def get_each(self, wanted: Sequence[tuple[str, str]], *, is_quick: bool = False) -> list[Found]:
        """The objects by (bucket, key), by position: None where there is none.

        ALONE: the value is large, or the bucket is not there. Raises StoreError for all of them;
        soon, if a bucket is locked, when there are several, or ``is_quick``.
        """
        if len(wanted) == 1 and not is_quick:
            return [self.get_small(*wanted[0])]
        keys: dict[str, list[str]] = {}
        for bucket, key in wanted:
            keys.setdefault(bucket, []).append(key)
        found: dict[tuple[str, str], Found] = {}
        rows = None
        if len(keys) == 1 and not is_quick:
            own = self._call_own("share", bucket, (array(keys[bucket]),), is_write=False)
            rows = None if own is None else [(1, *row) for row in own]
        if rows is None:
            ends, count = [], 0
            for each in keys.values():
                count += len(each)
                ends.append(str(count))
            try:
                rows = self._read(
                    EXECUTE["get_each"],
                    (
                        array(list(keys)),
                        "{" + ",".join(ends) + "}",
                        array([key for each in keys.values() for key in each]),
                        self._function_numbers(keys),
                    ),
                )
            except StoreError as error:
                if error.__cause__ and is_undefined(error.__cause__):
                    return [ALONE] * len(wanted)  # a bucket was dropped: that of each tells which
                raise
        buckets = list(keys)
        for number, key, *facts, value, size in rows:
            bucket = buckets[number - 1]
            if key is None:
                found |= dict.fromkeys(((bucket, key) for key in keys[bucket]), ALONE)
            elif value is None:
                found[bucket, key] = ALONE
            else:
                found[bucket, key] = Object._make((key, *facts, value.cast("B"), size))
        return [found.get(each) for each in wanted]

    def _function_numbers(self, buckets: Iterable[str]) -> str:
        numbers = [self._number("share", bucket) for bucket in buckets]
        return "{" + ",".join("NULL" if each is None else str(each) for each in numbers) + "}"

    def get_small(self, bucket: str, key: str) -> Found:
        """The object, None when there is none, or ALONE: its value is large."""
        keys = array((key,))
        rows = self._call_own("get", bucket, (keys,), is_write=False)
        if rows is None:
            rows = self._read(EXECUTE["get"], (bucket, keys))
        if not rows:
            return None
        *facts, value = rows[0]
        if value is None:
            return ALONE
        return tuple.__new__(Object, (key, *facts, value.cast("B"), len(value)))

    def _change_one(self, write: Write) -> Put:
        bucket, key, value, _, modified_at, if_match, if_none_match, *_ = write
        if value is None:
            outcome, outbox_id = self.delete(bucket, key, if_match, if_none_match, modified_at)
            return Put(outcome, 0, "", 0, outbox_id)
        return self.put(*write)  # type: ignore[arg-type]

    def change_each(self, writes: Sequence[Write], lock_timeout: float | None = None) -> list[Put]:
        """Make changes, in the order of buckets and keys, in one transaction; one outcome each.

        ``no bucket`` is an outcome, too. ``outbox_id`` is 0 if nothing was changed, but there are
        caches. Raises Together when an object is locked for ``lock_timeout`` seconds, and when of
        several changes one may have failed all; StoreError holds for all of them.
        """
        if len(writes) == 1 and lock_timeout is None:
            return [self._change_one(writes[0])]
        is_large = len(writes) == 1 and writes[0].size > LARGE
        parameters = (
            "{" + ",".join("t" if each.value is None else "f" for each in writes) + "}",
            array([each.bucket for each in writes]),
            array([each.key for each in writes]),
            unless_empty([each.value for each in writes]),
            array([each.content_type for each in writes]),
            unless_empty([each.modified_at for each in writes]),
            unless_empty([each.if_match for each in writes]),
            unless_empty([each.if_none_match for each in writes]),
            array([None if each.value is None else each.value.hash for each in writes]),
            _array_of_json([attributes(each.content_encoding, each.expiry) for each in writes]),
            None if lock_timeout is None else int(lock_timeout * 1000),
        )
        try:
            if is_large:
                rows = self._write_large(EXECUTE["change_each"], parameters, writes[0].size)
            else:
                rows = self._write(EXECUTE["change_each"], parameters)
        except StoreError as error:
            cause = error.__cause__
            if error.unknown or not isinstance(cause, psycopg2.Error):
                raise
            if error.code == "policy_changed" and len(writes) > 1:
                raise Together from error
            if lock_timeout is not None and cause.pgcode == "55P03":
                raise Together from error
            if len(writes) == 1 or cause.pgcode in (None, "57014"):
                raise  # no connection; or the time of each is up
            raise Together from error
        except ValueError as error:
            raise translated(error, is_write=True) from error
        return [Put._make(row[1:]) for row in sorted(rows)]


def _array_of_json(texts: Sequence[str | None]) -> str | None:
    return array(texts) if any(texts) else None
