"""JSON strings as bytes of UTF-8, in pieces: as a str, a large one could be four times its size."""

import re
from collections.abc import Callable
from io import BytesIO
from typing import Final

import msgspec

PIECE: Final = 65536

_decoder = msgspec.json.Decoder(str)
# Up to 256 units none of which may be cut: an escape, a pair of surrogates, or a run of the rest.
_UNITS = re.compile(
    rb"(?:[^\\]{1,512}+|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4}|\\u.{4}|\\.){1,256}+",
    re.DOTALL,
)


def read_string(literal: bytes | memoryview) -> bytes:
    """The text of a JSON string, its quotes included; msgspec's errors if it is none."""
    if len(literal) <= PIECE or bytes(literal[:1]) != b'"':
        return _decoder.decode(literal).encode()
    text = BytesIO()
    at, end = 1, len(literal) - 1
    view = memoryview(literal)
    while at < end:
        units = _UNITS.match(view, at, end)
        stop = units.end() if units else end
        while stop < end and 0x80 <= view[stop] < 0xC0:  # within a character
            stop += 1
        text.write(_decoder.decode(b'"%b"' % bytes(view[at:stop])).encode())
        at = stop
    return text.getvalue()


def write_string(value: bytes | memoryview, write: Callable[[bytes], object]) -> None:
    """Write UTF-8 as a JSON string; UnicodeDecodeError, possibly halfway, if it is none."""
    view = memoryview(value)
    write(b'"')
    at = 0
    while at < len(view):
        stop = min(at + PIECE, len(view))
        while stop < len(view) and 0x80 <= view[stop] < 0xC0 and stop - at < PIECE + 4:
            stop += 1
        write(msgspec.json.encode(str(view[at:stop], "utf-8"))[1:-1])
        at = stop
    write(b'"')
