"""Values and arrays as literals that cost PostgreSQL little to parse."""

import binascii
import codecs
import hashlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final, Protocol, Self

PIECE: Final = 3 * 16384  # bytes that are converted at a time; base 64 wants a multiple of three
#: Above this, psycopg2's own two copies of a literal are worth avoiding.
LARGE: Final = 65536


class Encoded(Protocol):
    """A connection, as far as a literal minds it."""

    takes_text: bool  #: whether UTF-8 arrives as it is sent


class Value:
    """A value as a literal, as short as may be: the server scans it byte by byte.

    psycopg2's Binary has two characters for every byte. Text needs little more than one, and no
    literal more than four thirds and a little. Composing a statement empties the object: its
    content is released then, not when the last reference is gone.
    """

    __slots__ = ("_connection", "content", "hash")

    def __init__(self, content: bytes) -> None:
        self.content = content
        # What poky.put would compute itself, at a higher cost.
        self.hash = hashlib.sha256(content).hexdigest()[:8]

    def __conform__(self, protocol: object) -> Self:
        return self

    def prepare(self, connection: Encoded) -> None:
        self._connection = connection

    def getquoted(self) -> bytes:
        """The literal by itself, as psycopg2 asks for it."""
        buffer = BytesIO()
        self.write(buffer, takes_text=self._connection.takes_text)
        return buffer.getvalue()

    def write(self, buffer: BytesIO, *, takes_text: bool) -> None:
        """Text in bytea's escape format, where only the backslash has a meaning; or base 64.

        In pieces: besides value and literal there is never a second copy of either.
        """
        value = self.content
        pieces = (value[at : at + PIECE] for at in range(0, len(value), PIECE))
        if self._is_short_as_text() and (takes_text or value.isascii()):
            # Doubled backslashes and quotes: safe whatever standard_conforming_strings says.
            buffer.write(b"'")
            for piece in pieces:
                buffer.write(piece.replace(b"\\", b"\\\\").replace(b"'", b"''"))
            buffer.write(b"'::bytea")
        else:
            buffer.write(b"decode('")
            for piece in pieces:
                buffer.write(binascii.b2a_base64(piece, newline=False))
            buffer.write(b"','base64')")

    def _is_short_as_text(self) -> bool:
        value = self.content
        return value.count(b"\\") + value.count(b"'") <= len(value) // 3 and is_text(value)


def compose(statement: str, parameters: Sequence[Any], *, takes_text: bool) -> bytes:
    """A statement with its parameters in place of each %s; its values are forgotten.

    psycopg2 would make two more copies of all literals, and keep the values until it is done.
    """
    buffer = BytesIO()
    first, *texts = statement.split("%s")
    buffer.write(first.encode())
    for parameter, text in zip(parameters, texts, strict=True):
        _write(buffer, parameter, takes_text)
        buffer.write(text.encode())
    return buffer.getvalue()


def _write(buffer: BytesIO, parameter: Any, takes_text: bool) -> None:
    if isinstance(parameter, Value):
        parameter.write(buffer, takes_text=takes_text)
        parameter.content = b""
    elif isinstance(parameter, list):
        for number, each in enumerate(parameter):
            buffer.write(b"," if number else b"ARRAY[")
            _write(buffer, each, takes_text)
        buffer.write(b"]")
    elif isinstance(parameter, str):
        if "\0" in parameter:
            raise ValueError("a text has a NUL")
        # Without a backslash, E'' and '' are the same.
        quoted = parameter.replace("\\", "\\\\").replace("'", "''")
        buffer.write(f"E'{quoted}'".encode())
    elif parameter is None:
        buffer.write(b"NULL")
    else:
        assert isinstance(parameter, int)  # or bool
        buffer.write(str(parameter).encode())


def is_text(value: bytes) -> bool:
    """Whether PostgreSQL takes this for text: UTF-8 without NUL."""
    return b"\0" not in value and is_utf8(value)


def is_utf8(value: bytes | memoryview) -> bool:
    """Whether this is UTF-8; takes little memory, however large the value."""
    if isinstance(value, bytes) and value.isascii():
        return True
    view = memoryview(value)
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(view), PIECE):
            decoder.decode(view[at : at + PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


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
