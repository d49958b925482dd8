"""The form of an exported bucket: JSON lines. The first says of what, the last that it is whole.

A line in between is an object, in the fields that batches have; times are whole seconds since 1970.
"""

import hashlib
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from poky.api.names import (
    check_content_encoding,
    check_content_type,
    check_key,
    default_content_type,
)

FORMAT: Final = 1
_LAST_SECOND: Final = 253402300799  # of the year 9999
_TEXT: Final = "text/plain; charset=utf-8"


class BadLine(Exception):
    """A line that is not as it should be; the message says what to change."""


class Exported(NamedTuple):
    """An object with all that is kept of it; a row of poky.export."""

    key: str
    value: Any  #: bytes
    content_type: str
    content_encoding: str | None
    hash: str
    revision: int | None = None
    modified_at: int | None = None
    created_at: int | None = None
    written_at: int | None = None
    expires_at: int | None = None


class Head(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The first line."""

    poky_export: int = FORMAT
    bucket: str
    release: str
    exported_at: int


class End(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The last line: the file is whole. ``cursor``: of the bucket's changes from then on."""

    end: bool = True
    objects: int
    cursor: str | None = None


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    key: str
    data: str | None = None
    data_base64: bytes | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    etag: str | None = None
    revision: int | None = None
    modified_at: int | None = None
    created_at: int | None = None
    written_at: int | None = None
    expires_at: int | None = None


_encoder = msgspec.json.Encoder()
_read_line = msgspec.json.Decoder(_Line).decode
_read_head = msgspec.json.Decoder(Head).decode
_read_end = msgspec.json.Decoder(End).decode


def write_line(found: Exported) -> bytes:
    """An object as a line, its end included; bytes that are no UTF-8 as base 64."""
    key, value, content_type, content_encoding, hash, revision, *times = found
    text = base64 = None
    try:
        text = str(value, "utf-8")
    except UnicodeDecodeError:
        base64 = bytes(value)
    line = _Line(
        key, text, base64, content_type, content_encoding, f'"{revision}-{hash}"', revision, *times
    )
    return _encoder.encode(line) + b"\n"


def write_mark(mark: Head | End) -> bytes:
    """The first or last line."""
    return _encoder.encode(mark) + b"\n"


def read_mark(line: bytes) -> Head | End | None:
    """The first or last line of a file, None for an object's; raises BadLine."""
    try:
        if line.startswith(b'{"poky_export"'):
            head = _read_head(line)
            if head.poky_export != FORMAT:
                raise BadLine(
                    f"the file has form {head.poky_export}, and this release reads {FORMAT}"
                )
            return head
        return _read_end(line) if line.startswith(b'{"end"') else None
    except msgspec.MsgspecError as error:
        raise BadLine(str(error)) from None


def read_line(line: bytes, max_value_bytes: int) -> Exported:
    """The object of a line; raises BadLine."""
    try:
        read = _read_line(line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadLine(str(error)) from None
    try:
        check_key(read.key)
        if read.data is not None and read.data_base64 is None:
            value = read.data.encode()
        elif read.data_base64 is not None and read.data is None:
            value = read.data_base64
        else:
            raise ValueError("give either data (text) or data_base64 (bytes)")
        if len(value) > max_value_bytes:
            raise ValueError(f"a value has at most {max_value_bytes} bytes")
        coding = read.content_encoding
        return Exported(
            read.key,
            value,
            default_content_type(value)
            if read.content_type is None
            else _content_type(read.content_type),
            None if coding is None else _content_encoding(coding),
            hash_of(value),
            read.revision,
            _second(read.modified_at),
            _second(read.created_at),
            _second(read.written_at),
            _second(read.expires_at),
        )
    except ValueError as error:  # also: a text that has no UTF-8
        raise BadLine(str(error)) from None


def hash_of(value: bytes) -> str:
    """The first 8 hex digits of the value's SHA-256: with the revision, the entity tag."""
    return hashlib.sha256(value).hexdigest()[:8]


_content_type = lru_cache(maxsize=256)(check_content_type)
_content_encoding = lru_cache(maxsize=64)(check_content_encoding)


def _second(at: int | None) -> int | None:
    if at is not None and not 0 <= at <= _LAST_SECOND:
        raise ValueError("times are whole seconds since 1970")
    return at
