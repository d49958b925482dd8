"""A bucket's page and an object's: keys by prefix, metadata, and the value, never executed."""

import re
from base64 import b64encode
from html import escape
from urllib.parse import urlencode

import msgspec

from poky.api.conditions import format_date, format_tag
from poky.api.page.layout import page, size_of, table
from poky.api.page.shards import named
from poky.api.request import read_query, require_bucket, require_key, require_prefix
from poky.api.services import Services
from poky.config import url_of
from poky.http import Answer, Environ, refuse
from poky.store import Listed, Object, ShardedStore

_PAGE = 100
_MOST_SHOWN = 262_144
_MOST_HEX = 512
# Those that a browser shows without running anything; SVG is not one of them.
_PICTURES = ("image/png", "image/jpeg", "image/gif", "image/webp", "image/avif")


class _TooLarge(Exception):
    pass


def get_bucket_page(services: Services, environ: Environ) -> Answer:
    """A page of a bucket's keys."""
    query = _query(services, environ, "bucket", "prefix", "after")
    bucket = query["bucket"]
    prefix, after = query.get("prefix", ""), query.get("after", "")
    for name, text in (("prefix", prefix), ("after", after)):
        require_prefix(text, name)
    found = services.house.list_page(bucket, prefix, after, _PAGE, by_level=True)
    rows = [_row(bucket, each) for each in found.entries]
    more = ""
    if found.next is not None:
        link = _link(bucket=bucket, prefix=prefix, after=found.next)
        more = f'<p><a href="/browse?{link}">Next {_PAGE} keys</a></p>'
    search = (
        '<form action="/browse"><input type="hidden" name="bucket"'
        f' value="{escape(bucket)}"><label>Keys that begin with'
        f' <input name="prefix" value="{escape(prefix)}"></label> <button>Show</button></form>'
    )
    columns = ("key", "size", "modified", "content type")
    made = table("Keys", columns, rows, "No such keys.", "size")
    return page(f"{bucket}: Poky", _head(bucket), f"{_place(services, bucket)}{search}{made}{more}")


def _place(services: Services, bucket: str) -> str:
    """On which of several databases it is; empty where there is one."""
    if not isinstance(services.house, ShardedStore):
        return ""
    return f"<p>It is on {named(services.house.find_shard(bucket))}.</p>"


def _row(bucket: str, each: Listed) -> tuple[str, ...]:
    if each.revision is None:  # keys that begin so
        link = _link(bucket=bucket, prefix=each.key)
        return (f'<a href="/browse?{link}">{escape(each.key)}</a>', "", "", "")
    link = _link(bucket=bucket, key=each.key)
    return (
        f'<a href="/browse/object?{link}">{escape(each.key)}</a>',
        size_of(each.size),
        format_date(each.modified_at),
        escape(each.content_type),
    )


def get_object_page(services: Services, environ: Environ) -> Answer:
    """An object: what is known of it, and its value as far as it can be shown."""
    query = _query(services, environ, "bucket", "key")
    bucket, key = query["bucket"], query.get("key", "")
    require_key(key)

    def room(size: int) -> None:
        if size > 4 * _MOST_SHOWN:
            raise _TooLarge

    try:
        found = services.house.get(bucket, key, room)
    except _TooLarge:
        found = None
        value = "<p>It is too large to be shown here.</p>"
    else:
        if found is None:
            raise refuse(404, "object_not_found", "There is no such object (any more).")
        value = _value(found)
    facts = _facts(found) if found else ""
    curl = f"curl {url_of(services.config.listen, services.config.port)}/kv/{bucket}/{key}"
    body = f"{facts}<h2>Value</h2>{value}<pre>{escape(curl)}</pre>"
    return page(f"{key}: Poky", _head(bucket, key), body)


def _query(services: Services, environ: Environ, *names: str) -> dict[str, str]:
    if services.config.admin_objects != "on":
        raise refuse(
            403,
            "objects_hidden",
            "Keys and values are not shown here: the operator allows it by POKY_ADMIN_OBJECTS=on.",
        )
    query = read_query(environ, *names)
    query.setdefault("bucket", "")
    require_bucket(query["bucket"])
    return query


def _head(bucket: str, key: str = "") -> str:
    trail = '<a href="/">Poky</a>'
    if key:
        trail += f' <a href="/browse?{_link(bucket=bucket)}">{escape(bucket)}</a>'
    name = f"{key}" if key else f"Bucket {bucket}"
    return f'<nav aria-label="Where this is">{trail}</nav><h1>{escape(name)}</h1>'


def _link(**names: str) -> str:
    return escape(urlencode({name: text for name, text in names.items() if text}))


def _facts(found: Object) -> str:
    rows = [
        ("size", size_of(found.size)),
        ("content type", escape(found.content_type)),
        ("content encoding", escape(found.content_encoding or "none")),
        ("modified", format_date(found.modified_at)),
        ("expires", format_date(found.expires_at) if found.expires_at else "never"),
        ("revision", f"{found.revision:,}"),
        ("ETag", escape(format_tag(found.revision, found.hash))),
    ]
    return table("Object", ("what", "is"), rows, "")


def _value(found: Object) -> str:
    content = bytes(found.value)
    media_type = found.content_type.partition(";")[0].strip().lower()
    if len(content) > _MOST_SHOWN:
        return "<p>It is too large to be shown here.</p>"
    if not content:
        return "<p>It is empty.</p>"
    if found.content_encoding is None:
        if media_type in _PICTURES:
            data = b64encode(content).decode()
            return f'<p><img alt="The value" src="data:{media_type};base64,{data}"></p>'
        if (text := _text(content)) is not None:
            return f"<pre>{escape(_pretty(text, media_type))}</pre>"
    return f"<pre>{escape(_hexadecimal(content))}</pre>"


def _text(content: bytes) -> str | None:
    """The value as text; None if it is none."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    return None if re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", text) else text


def _pretty(text: str, media_type: str) -> str:
    """JSON with indents, every number and string as it was written."""
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            return msgspec.json.format(text, indent=2)
        except msgspec.DecodeError:
            pass
    return text


def _hexadecimal(content: bytes) -> str:
    lines = []
    for start in range(0, min(len(content), _MOST_HEX), 16):
        part = content[start : start + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        lines.append(f"{start:06x}  {part.hex(' '):47}  {text}")
    if len(content) > _MOST_HEX:
        lines.append(f"… {len(content):,} bytes in all")
    return "\n".join(lines)
