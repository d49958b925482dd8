"""The items of a batch: JSON in, columns for the store; outcomes in, JSON out.

All of a body is checked before anything happens. Raises Refused, naming the first bad item and
field; knows nothing of PostgreSQL or caches.
"""

import codecs
import json
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from poky.api import conditions
from poky.api.conditions import format_tag
from poky.api.expiry import show_expires
from poky.api.names import (
    check_content_encoding,
    check_content_type,
    check_key,
    check_ttl,
    default_content_type,
)
from poky.api.strings import read_string
from poky.http import refuse
from poky.store import Expiry, Outcome, Value

OBJECTS = "application/vnd.poky.objects+json"

Given = TypeVar("Given")
Parsed = TypeVar("Parsed")


class _KeyItem(msgspec.Struct, forbid_unknown_fields=True):
    key: str
    modified_at: str | UnsetType | None = UNSET
    if_match: str | UnsetType | None = UNSET
    if_none_match: str | UnsetType | None = UNSET


class _PutItem(_KeyItem, forbid_unknown_fields=True):
    data: msgspec.Raw | UnsetType = UNSET  # a str could be four times as large as its UTF-8
    data_base64: bytes | UnsetType | None = UNSET
    content_type: str | UnsetType | None = UNSET
    content_encoding: str | UnsetType | None = UNSET
    ttl: int | UnsetType | None = UNSET
    expires: str | UnsetType | None = UNSET  # as the answer has it
    etag: str | UnsetType | None = UNSET  # ignored: in the answer that a client may send back


# How JSON names the types that msgspec names in Python's words.
_KINDS = {
    "str": "a string",
    "bytes": "a string",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
}
_NAME_END = re.compile(rb'"[ \t\r\n]*:')
_ESCAPED_NAME_END = re.compile(rb'\\"[ \t\r\n]*:')


class _Allowance(threading.local):
    """How many items the current body may still have."""

    items = 0

    def take(self) -> None:
        self.items -= 1
        if self.items < 0:
            raise ValueError


_allowance = _Allowance()


class _CountedKeyItem(_KeyItem, forbid_unknown_fields=True):
    def __post_init__(self) -> None:
        _allowance.take()


class _CountedPutItem(_PutItem, forbid_unknown_fields=True):
    def __post_init__(self) -> None:
        _allowance.take()


# Each with a slower decoder, which stops at the first item too many.
_key_items = msgspec.json.Decoder(list[_KeyItem]), msgspec.json.Decoder(list[_CountedKeyItem])
_put_items = msgspec.json.Decoder(list[_PutItem]), msgspec.json.Decoder(list[_CountedPutItem])
_raw_items = msgspec.json.Decoder(list[msgspec.Raw])

# Large bodies are read one after another: a str takes up to four times the size of its UTF-8, and
# the decoder makes one of every field but data.
_LARGE = 1024 * 1024
_large = threading.Lock()


class KeyItems(NamedTuple):
    """The items of a POST or DELETE as columns, in the order of the body."""

    keys: list[str]
    modified_at: list[int | None]
    if_match: list[str | None]
    if_none_match: list[str | None]


class PutItems(NamedTuple):
    """The items of a PUT as columns, in the order of the body."""

    keys: list[str]
    values: list[Value]
    content_types: list[str]
    modified_at: list[int | None]
    if_match: list[str | None]
    if_none_match: list[str | None]
    content_encodings: list[str | None]
    expiries: list[Expiry | None]


def parse_key_items(body: bytes, max_items: int) -> KeyItems:
    """Read the body of a POST or DELETE; 400 or 413 as the contract says."""
    with _one_if_large(body):
        return KeyItems(*_common(_decode(_key_items, body, max_items)))


def parse_put_items(body: bytes, max_items: int, max_value_bytes: int, latest: int) -> PutItems:
    """Read the body of a PUT; no value above ``max_value_bytes``, no date after ``latest``."""
    with _one_if_large(body):
        return _parse_put_items(body, max_items, max_value_bytes, latest)


def _parse_put_items(body: bytes, max_items: int, max_value_bytes: int, latest: int) -> PutItems:
    items = _decode(_put_items, body, max_items)
    keys, modified_at, if_match, if_none_match = _common(items)
    values, content_types, content_encodings, expiries = [], [], [], []
    for number, item in enumerate(items):
        text = None if item.data is UNSET else _read_data(number, item.data)
        if (text is None) == (item.data_base64 is None or item.data_base64 is UNSET):
            raise _bad(number, "data", "give either data (text) or data_base64 (bytes)")
        value = text or item.data_base64 or b""
        if len(value) > max_value_bytes:
            raise refuse(
                413,
                "value_too_large",
                f"Item {number}: a value has at most {max_value_bytes} bytes.",
            )
        if (modified_at[number] or 0) > latest:
            raise _bad(number, "modified_at", "the date is too far in the future")
        values.append(Value(value))
        if item.content_type is None or item.content_type is UNSET:
            content_types.append(default_content_type(value))
        else:
            content_types.append(
                _checked(number, "content_type", item.content_type, check_content_type)
            )
        content_encodings.append(
            _checked(number, "content_encoding", item.content_encoding, check_content_encoding)
        )
        expiries.append(_read_expiry(number, item))
    return PutItems(
        keys,
        values,
        content_types,
        modified_at,
        if_match,
        if_none_match,
        content_encodings,
        expiries,
    )


def _read_expiry(number: int, item: _PutItem) -> Expiry | None:
    if item.ttl is UNSET and item.expires is UNSET:
        return None
    ttl = _checked(number, "ttl", item.ttl, check_ttl)
    expires_at = _checked(number, "expires", item.expires, conditions.parse_date)
    if ttl is None and expires_at is None:
        return None
    if ttl is not None and expires_at is not None:
        raise _bad(number, "ttl", "give either ttl or expires")
    return Expiry(ttl, expires_at)


def show_outcomes(keys: Sequence[str], outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The answer of a PUT or DELETE: one entry per item, by position."""
    answer = []
    for key, outcome in zip(keys, outcomes, strict=True):
        shown: dict[str, Any] = {"key": key, "result": outcome.outcome}
        if outcome.revision is not None:
            shown["etag"] = format_tag(outcome.revision, outcome.hash or "")
            shown |= show_expires(outcome.expires_at)
        answer.append(shown)
    return answer


def _one_if_large(body: bytes) -> AbstractContextManager[object]:
    return _large if len(body) > _LARGE else nullcontext()


def _decode(decoders: tuple[Any, Any], body: bytes, max_items: int) -> Any:
    # An item has a brace. So may values: then the slower decoder counts.
    decoder = decoders[body.count(b"{") > max_items]
    _allowance.items = max_items
    try:
        items = decoder.decode(body)
    except msgspec.ValidationError as error:
        if _allowance.items < 0:
            raise refuse(
                413, "batch_too_large", f"A batch has at most {max_items} items. Split it."
            ) from None
        raise refuse(400, "bad_item", _explained(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise refuse(400, "bad_json", _why_not_json(body, error)) from None
    _refuse_repeated(items, body)
    return items


def _read_data(number: int, literal: msgspec.Raw) -> bytes | None:
    view = memoryview(literal)
    if len(view) == 4 and bytes(view) == b"null":
        return None
    try:
        return read_string(view)
    except msgspec.ValidationError as error:
        raise refuse(400, "bad_item", _explained(f"{error} - at `$[{number}].data`")) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        why = _why_not_json(bytes(view), error, f"item {number}, field data: ")
        raise refuse(400, "bad_json", why) from None


def _why_not_json(body: bytes, error: Exception, where: str = "") -> str:
    """What is wrong with a body that is no JSON, as a sentence of its own."""
    if body.startswith(codecs.BOM_UTF8):
        why = "send it without the byte order mark"
    elif body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:4]:
        why = "it looks like UTF-16 or UTF-32"
    elif len(body) <= _LARGE and _has_lone_surrogate(body):
        why = "an escape \\ud800 to \\udfff without its other half; bytes go into data_base64"
    elif isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        why = f"the byte 0x{byte:02x} is not UTF-8; bytes go into data_base64"
    else:
        why = str(error)
    return f"The body is not JSON in UTF-8: {where}{why}."


def _has_lone_surrogate(body: bytes) -> bool:
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        pass
    return False


def _refuse_repeated(items: Sequence[_KeyItem], body: bytes) -> None:
    """Refuse a field that an item has twice: the decoder keeps the last and drops the others.

    In valid JSON a quote before a colon ends a name, unless it is escaped within a string.
    """
    names = _count(_NAME_END, body) - _count(_ESCAPED_NAME_END, body)
    fields = sum(_present(item) for item in items)
    if names == fields:
        return
    for number, item in enumerate(_raw_items.decode(body)):  # no more than one at a time
        seen = set()
        for name, _ in json.loads(bytes(item), object_pairs_hook=list):
            if name in seen:
                raise _bad(number, name, "give it once")
            seen.add(name)


def _count(pattern: re.Pattern[bytes], body: bytes) -> int:
    return sum(1 for _ in pattern.finditer(body))


def _present(item: _KeyItem) -> int:
    values = msgspec.structs.astuple(item)
    return len(values) - values.count(UNSET)


def _explained(message: str) -> str:
    """Say msgspec's «Expected `str`, got `int` - at `$[3].key`» the way people count."""
    what, _, path = message.partition(" - at ")
    at = re.match(r"`\$\[(\d+)\](?:\.([a-z_0-9]+))?", path)
    what = re.sub("Expected `int(?: [|] null)?`", "Expected a whole number", what)
    what = what.replace("number, got `float`", "number, without point or exponent")
    what = re.sub("`([a-z]+)(?: [|] null)?`", lambda kind: _KINDS.get(kind[1], kind[1]), what)
    if "base64" in what:
        what = "not base64: send A-Z a-z 0-9 + / padded with =, without line breaks"
    elif at and at[2] == "data" and what.startswith("Expected"):
        what += ": put it in quotes, or send data_base64"
    where = f"Item {at[1]}" + (f", field {at[2]}" if at[2] else "") if at else "The body"
    return f"{where}: {what[:1].lower()}{what[1:]}."


def _common(items: Sequence[_KeyItem]) -> tuple[Any, Any, Any, Any]:
    columns: tuple[Any, Any, Any, Any] = ([], [], [], [])
    for number, item in enumerate(items):
        columns[0].append(_checked(number, "key", item.key, check_key))
        columns[1].append(_checked(number, "modified_at", item.modified_at, conditions.parse_date))
        columns[2].append(_checked(number, "if_match", item.if_match, conditions.parse_if_match))
        columns[3].append(
            _checked(number, "if_none_match", item.if_none_match, conditions.parse_if_none_match)
        )
    return columns


def _checked(
    number: int, field: str, text: Given | UnsetType | None, parse: Callable[[Given], Parsed]
) -> Any:
    if text is None or text is UNSET:
        return None
    try:
        return parse(text)
    except ValueError as error:
        raise _bad(number, field, str(error)) from None


def _bad(number: int, field: str, why: str) -> Exception:
    return refuse(400, "bad_item", f"Item {number}, field {field}: {why}.")
