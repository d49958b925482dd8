"""Values and arrays as literals that cost PostgreSQL little to parse."""

import binascii
import hashlib
from collections.abc import Sequence
from typing import Any, Protocol, Self


class Encoded(Protocol):
    """A connection, as far as a literal minds it."""

    takes_text: bool  #: whether UTF-8 arrives as it is sent


class Value:
    """A value as a literal, as short as may be: the server scans it byte by byte.

    psycopg2's Binary has two characters for every byte. Text needs little more than one.
    """

    __slots__ = ("_connection", "_value")

    def __init__(self, value: bytes) -> None:
        self._value = value

    def __conform__(self, protocol: object) -> Self:
        return self

    def prepare(self, connection: Encoded) -> None:
        self._connection = connection

    def getquoted(self) -> bytes:
        """Text in bytea's escape format, where only the backslash has a meaning; or base 64."""
        value = self._value
        if _is_text(value) and (self._connection.takes_text or value.isascii()):
            # Doubled backslashes and quotes: safe whatever standard_conforming_strings says.
            return b"'%b'::bytea" % value.replace(b"\\", b"\\\\").replace(b"'", b"''")
        return b"decode('%b','base64')" % binascii.b2a_base64(value, newline=False)


def _is_text(value: bytes) -> bool:
    """Whether PostgreSQL takes this for text: UTF-8 without NUL."""
    if b"\0" in value:
        return False
    try:
        return value.isascii() or bool(value.decode())
    except UnicodeDecodeError:
        return False


def hash_of(value: bytes) -> str:
    """What poky.put would compute itself, at a higher cost."""
    return hashlib.sha256(value).hexdigest()[:8]


def array(texts: Sequence[str | None]) -> str:
    """An array as one text: one literal for PostgreSQL to parse, not one for each element."""
    return "{" + ",".join(map(_element, texts)) + "}"


def _element(text: str | None) -> str:
    if text is None:
        return "NULL"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def unless_empty(items: Sequence[Any]) -> list[Any] | None:
    """None, which is as good and cheaper, where no item has any."""
    return None if items.count(None) == len(items) else list(items)
