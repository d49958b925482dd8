"""Compares two buckets, or a bucket and a file: both in key order, one object of each at a time."""

from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import Final, NamedTuple

from poky.transfer.lines import BadLine, End, Exported, read_line, read_mark
from poky.transfer.out import rows
from poky.transfer.session import Session
from poky.transfer.streams import streamed

_LARGE: Final = 65536  # a value of that size is handed on by itself
_COMPARED: Final = ("value", "content_type", "content_encoding", "modified_at", "expires_at")


class Difference(NamedTuple):
    """A key that is not the same on both sides: missing, extra, or what differs."""

    key: str
    what: str


def compare(left: Iterator[Exported], right: Iterator[Exported]) -> Iterator[Difference]:
    """What ``right`` has otherwise than ``left``, by key."""
    ours, theirs = next(left, None), next(right, None)
    while ours is not None or theirs is not None:
        if theirs is None or (ours is not None and ours.key < theirs.key):
            assert ours is not None
            yield Difference(ours.key, "missing")
            ours = next(left, None)
        elif ours is None or theirs.key < ours.key:
            yield Difference(theirs.key, "extra")
            theirs = next(right, None)
        else:
            others = [
                name for name in _COMPARED if _differ(getattr(ours, name), getattr(theirs, name))
            ]
            if others:
                yield Difference(ours.key, ", ".join(others))
            ours, theirs = next(left, None), next(right, None)


def _differ(one: object, other: object) -> bool:
    return one != other


def exported_objects(file: BufferedReader, max_value_bytes: int) -> Iterator[Exported]:
    """The objects of a file, which has to be in key order; raises BadLine."""
    last = ""
    is_exported = is_whole = False
    for number, line in enumerate(file, start=1):
        try:
            if line.startswith((b'{"poky_export"', b'{"end"')):
                is_whole = isinstance(read_mark(line), End)
                is_exported = True
                continue
            if not line.strip():
                continue
            found = read_line(line, max_value_bytes)
            if found.key <= last:
                raise BadLine("the keys are not in order, each once, as poky export has them")
        except BadLine as error:
            raise BadLine(f"line {number}: {error}") from None
        last = found.key
        yield found
    if is_exported and not is_whole:
        raise BadLine("the file ends before its last line: it was cut off")


def stored_objects(session: Session, bucket: str) -> Iterator[Exported]:
    """The objects of a bucket as they are at one moment. Raises StoreError."""

    def read(take: Callable[[Exported], object]) -> None:
        session.begin_snapshot()
        rows(session, bucket, lambda found: take(found._replace(value=bytes(found.value))))

    return streamed(read, lambda found: len(found.value) > _LARGE)
