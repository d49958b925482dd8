"""Range: which bytes of a value a GET asks for (RFC 9110 14.2). Knows nothing of objects.

By the rules of poky.vcl, so that the service and a cache answer alike: one plain range of bytes, or
the whole value. What else Range says may be ignored, and is.
"""

import re
from typing import NamedTuple

from poky.http import Environ

_RANGE = re.compile("bytes=([0-9]{0,99})-([0-9]{0,99})", re.IGNORECASE)


class Part(NamedTuple):
    """Bytes of a value: from where, and how many; 0 for a range that has none of them."""

    begin: int
    length: int


NOTHING = Part(0, 0)


def read_range(environ: Environ, size: int, tag: str) -> Part | None:
    """The part of a value of this size and entity tag that is asked for; None: the whole."""
    match = _RANGE.fullmatch(environ["HTTP_RANGE"])
    if not match or environ["REQUEST_METHOD"] != "GET" or not size:
        return None
    if environ.get("HTTP_IF_RANGE", tag) != tag:  # a date could be that of two values
        return None
    first, last = (int(digits) if digits else None for digits in match.groups())
    if first is None:
        if last is None:
            return None
        length = min(last, size)
        return Part(size - length, length)
    if last is not None and last < first:
        return None
    if first >= size:
        return NOTHING
    return Part(first, min(size if last is None else last + 1, size) - first)


def show_range(part: Part, size: int) -> str:
    """Content-Range: of an answer with this part, or of the refusal of one that has no bytes."""
    if not part.length:
        return f"bytes */{size}"
    return f"bytes {part.begin}-{part.begin + part.length - 1}/{size}"
