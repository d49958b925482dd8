"""The answer of POST /multi: what was found, as JSON, and never larger than it may be."""

import binascii
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from typing import Any, Final

import msgspec

from poky.api import conditions
from poky.api.conditions import format_date, format_tag
from poky.api.expiry import show_expires
from poky.api.items import OBJECTS, KeyItems
from poky.api.strings import write_string
from poky.http import refuse
from poky.store import Object, is_utf8

#: Values of all items together up to which an answer is made in one piece.
SMALL_ANSWER: Final = 256 * 1024

_BASE64_PIECE: Final = 3 * 16384
_STEP: Final = 256 * 1024  # memory for the answer is reserved in steps


def answer_bytes(items: KeyItems, found: dict[str, Object], *, objects: bool) -> int:
    """How many bytes of values the answer will have: an object asked for twice counts twice."""
    sizes = [
        (key, item.size)
        for number, key in enumerate(items.keys)
        if (item := _if_matching(items, number, found.get(key)))
    ]
    return sum(size for _, size in sizes) if objects else sum(dict(sizes).values())


def too_large(size: int, limit: int) -> Exception:
    """The refusal of an answer with so many bytes of values."""
    return refuse(
        413,
        "answer_too_large",
        f"The values have {size} bytes together, and an answer has at most {limit}. Ask for fewer"
        " at a time, and for large ones with GET.",
    )


def show_values(items: KeyItems, found: dict[str, Object]) -> dict[str, str]:
    """The plain answer of a POST: value by key; 406 if one is no text."""
    answer = {}
    for number, key in enumerate(items.keys):
        item = _if_matching(items, number, found.get(key))
        if item:
            try:
                answer[key] = str(item.value, "utf-8")
            except UnicodeDecodeError:
                raise _no_text(key) from None
    return answer


def show_objects(items: KeyItems, found: dict[str, Object]) -> list[dict[str, Any]]:
    """The answer of a POST in the objects media type: one entry per item, by position."""
    answer: list[dict[str, Any]] = []
    for number, key in enumerate(items.keys):
        item = _if_matching(items, number, found.get(key))
        if not item:
            answer.append({"key": key, "result": "missing"})
            continue
        shown = _facts(item)
        try:
            shown["data"] = str(item.value, "utf-8")
        except UnicodeDecodeError:
            shown["data_base64"] = item.value
        answer.append(shown)
    return answer


class LargeAnswer:
    """An answer that is written object by object, as they come from the database.

    ``need(bytes)`` is told what it takes so far; ``limit`` is for the values, and twice as many
    bytes of JSON: more becomes of text that has to be escaped.
    """

    def __init__(
        self, items: KeyItems, *, objects: bool, limit: int, need: Callable[[int], None]
    ) -> None:
        self._items = items
        self._objects = objects
        self._limit = limit
        self._need = need
        self._times = Counter(items.keys)

    def begin(self) -> None:
        """Forget what was written."""
        self._out = BytesIO()
        self._room = 0
        self._at = 0  # the items up to here are written
        self._repeated: dict[str, Object] = {}
        self._keys: set[str] = set()
        self._write(b"[" if self._objects else b"{")

    def add(self, item: Object) -> None:
        """Write the items up to that of this object, and it."""
        keys = self._items.keys
        if self._times[item.key] > 1:
            self._repeated[item.key] = item
        while keys[self._at] != item.key:
            self._show(self._repeated.get(keys[self._at]))
        self._show(item)

    def end(self) -> memoryview:
        """The whole answer."""
        while self._at < len(self._items.keys):
            self._show(self._repeated.get(self._items.keys[self._at]))
        self._write(b"]" if self._objects else b"}")
        return self._out.getbuffer()

    def _show(self, found: Object | None) -> None:
        number, key = self._at, self._items.keys[self._at]
        self._at += 1
        item = _if_matching(self._items, number, found)
        if self._objects:
            self._write(b"," if number else b"")
            self._show_object(key, item)
        elif item and key not in self._keys:
            self._write(b"," if self._keys else b"")
            self._keys.add(key)
            self._write(msgspec.json.encode(key) + b":")
            try:
                write_string(item.value, self._write)
            except UnicodeDecodeError:
                raise _no_text(key) from None

    def _show_object(self, key: str, item: Object | None) -> None:
        if not item:
            self._write(msgspec.json.encode({"key": key, "result": "missing"}))
            return
        value = item.value
        self._write(msgspec.json.encode(_facts(item))[:-1])
        if is_utf8(value):
            self._write(b',"data":')
            write_string(value, self._write)
        else:
            self._write(b',"data_base64":"')
            for at in range(0, len(value), _BASE64_PIECE):
                piece = value[at : at + _BASE64_PIECE]
                self._write(binascii.b2a_base64(piece, newline=False))
            self._write(b'"')
        self._write(b"}")

    def _write(self, text: bytes) -> None:
        size = self._out.tell() + len(text)
        if size > self._room:
            if size > 2 * self._limit:
                raise too_large(size, self._limit)
            self._room = size + _STEP
            self._need(self._room + self._room // 8)  # as much more as BytesIO allocates
        self._out.write(text)


def _facts(item: Object) -> dict[str, Any]:
    return {
        "key": item.key,
        "etag": format_tag(item.revision, item.hash),
        "modified_at": format_date(item.modified_at),
        "content_type": item.content_type,
        **({"content_encoding": item.content_encoding} if item.content_encoding else {}),
        **show_expires(item.expires_at),
    }


def _no_text(key: str) -> Exception:
    return refuse(
        406, "value_not_text", f"The value of {key} is not UTF-8 text. Ask with Accept: {OBJECTS}."
    )


def _if_matching(items: KeyItems, number: int, item: Object | None) -> Object | None:
    """The object, if it is there and its item's conditions hold."""
    if not item:
        return None
    facts = (item.revision, item.hash, item.modified_at)
    modified_at = items.modified_at[number]
    if_match = items.if_match[number]
    if_none_match = items.if_none_match[number]
    if (
        (modified_at is not None and modified_at != item.modified_at)
        or (if_match is not None and not conditions.matches(if_match, *facts))
        or (if_none_match is not None and conditions.matches(if_none_match, *facts))
    ):
        return None
    return item
