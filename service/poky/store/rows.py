"""Rows as COPY sends them in its binary format: a value once, as it is, and no row but the last."""

import struct
from collections.abc import Callable, Iterable
from typing import Any

_HEADER = b"PGCOPY\n\xff\r\n\0"
_HEADER_BYTES = len(_HEADER) + 8  # flags, and the length of an unused extension
_BIGINT = struct.Struct("!q")
_COUNT = struct.Struct("!h")
_LENGTH = struct.Struct("!i")


class CopiedRows:
    """What psycopg2 writes a COPY's messages to: calls ``begin``, then ``each`` with every row.

    ``columns``: the type of each, bigint, text or bytea (a memoryview).
    """

    def __init__(
        self,
        columns: Iterable[str],
        each: Callable[[tuple[Any, ...]], None],
        begin: Callable[[], None],
    ) -> None:
        self.largest = 0  #: bytes of the largest message
        self._columns = tuple(columns)
        self._each = each
        self._begin = begin
        self._begun = False

    def clear(self) -> None:
        """Begin anew: the statement is about to be sent, perhaps once more after a failure."""
        self._begun = False
        self._begin()

    def write(self, message: bytes) -> int:
        """Take one message: a row, the first one behind the header; or the end."""
        self.largest = max(self.largest, len(message))
        at = 0
        if not self._begun:
            if not message.startswith(_HEADER):
                raise ValueError("this is not the binary format of COPY")
            self._begun, at = True, _HEADER_BYTES
        while at < len(message):
            (count,) = _COUNT.unpack_from(message, at)
            at += _COUNT.size
            if count < 0:
                break
            row, at = self._row(message, at)
            self._each(tuple(row))
        return len(message)

    def _row(self, message: bytes, at: int) -> tuple[list[Any], int]:
        row: list[Any] = []
        for column in self._columns:
            (length,) = _LENGTH.unpack_from(message, at)
            at += _LENGTH.size
            if length < 0:
                row.append(None)
                continue
            field = memoryview(message)[at : at + length]
            at += length
            if column == "bigint":
                row.append(_BIGINT.unpack(field)[0])
            else:
                row.append(field if column == "bytea" else str(field, "utf-8"))
        return row, at
