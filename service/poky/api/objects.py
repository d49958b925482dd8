"""/kv: one object, and the keys of a bucket."""

import re
import time
from collections.abc import Collection
from typing import Any

from poky.api import conditions
from poky.api.conditions import format_date, format_tag
from poky.api.expiry import EXPIRES, require_knowing_cache, show_expires, show_expiry
from poky.api.later import later
from poky.api.names import default_content_type, is_active
from poky.api.ranges import NOTHING, Part, read_range, show_range
from poky.api.request import (
    body_bytes,
    cacheability,
    is_modified_since,
    is_unchanged,
    read_body,
    read_content_encoding,
    read_content_type,
    read_query,
    read_tag_conditions,
    read_tags,
    read_ttl,
    read_unmodified_since,
    require_bucket,
    require_names,
    require_prefix,
    require_whole,
)
from poky.api.services import Services
from poky.http import Answer, Environ, Later, bare, json, refuse
from poky.sharing import Read, Writing
from poky.store import Alone, Object, Put, StoreError, Value, Write


def get_object(services: Services, environ: Environ, bucket: str, key: str) -> Answer | Later:
    """Answer with the object, 304 or 412 by its conditions, or 404."""
    require_names(bucket, key)
    if_match = read_tags(environ, "HTTP_IF_MATCH", conditions.parse_if_match)
    if if_match is None:  # the name that the original's cache sent
        if_match = read_tags(environ, "HTTP_X_IF_MATCH", conditions.parse_if_match)
    if_none_match = read_tags(environ, "HTTP_IF_NONE_MATCH", conditions.parse_if_none_match)
    origins = services.config.cors_origins
    if environ["poky.alone"]:
        found = services.reads.at_once(bucket, key)
        if not isinstance(found, Alone):
            return _show_object(environ, found, if_match, if_none_match, origins)
    room, policy = environ["poky.memory"].need, services.store.held_policy()
    since = time.monotonic()

    def select(found: Object) -> Part | None:
        status, part = _decide(environ, found, if_match, if_none_match)
        return None if status == 200 else part

    return later(
        environ,
        lambda done: services.reads.add(Read(bucket, key, room, policy, since, done, select)),
        lambda found: _show_object(environ, found, if_match, if_none_match, origins),
    )


def _decide(
    environ: Environ, found: Object, if_match: str | None, if_none_match: str | None
) -> tuple[int, Part]:
    """The status by conditions and Range, and which bytes of the value are sent."""
    facts = found.revision, found.hash, found.modified_at
    if if_match is None:
        is_true = not is_modified_since(environ, found.modified_at)
    else:
        is_true = conditions.matches(if_match, *facts)
    if not is_true:
        return 412, NOTHING
    if if_none_match is None:
        unchanged = is_unchanged(environ, found.unchanged_since)
    else:
        unchanged = conditions.matches(if_none_match, *facts)
    if unchanged:
        return 304, NOTHING
    if "HTTP_RANGE" in environ:
        part = read_range(environ, found.size, format_tag(found.revision, found.hash))
        if part is not None:
            return (206 if part.length else 416), part
    return 200, NOTHING


def _show_object(
    environ: Environ,
    found: Object | None,
    if_match: str | None,
    if_none_match: str | None,
    origins: Collection[str],
) -> Answer:
    if found is None:
        return bare(412 if if_match == "*" else 404)
    if found.expires_at is not None:
        require_knowing_cache(environ)
    status, part = _decide(environ, found, if_match, if_none_match)
    if status == 412:
        return bare(412)
    headers = [
        ("ETag", format_tag(found.revision, found.hash)),
        ("Last-Modified", format_date(found.modified_at)),
        ("Cache-Control", cacheability(environ)),
        ("Accept-Ranges", "bytes"),
        *show_expiry(found),
    ]
    if status == 304:
        return Answer("304 Not Modified", headers)
    if found.content_encoding is not None:
        headers.append(("Content-Encoding", found.content_encoding))
    headers += [
        ("Content-Type", found.content_type),
        ("X-Content-Type-Options", "nosniff"),
        # Where pages of some origins may read a value, any may show it: this field has no list.
        ("Cross-Origin-Resource-Policy", "cross-origin" if origins else "same-origin"),
    ]
    if is_active(found.content_type):
        headers.append(("Content-Security-Policy", "default-src 'none'; sandbox"))
    if status == 200:
        return Answer("200 OK", headers, found.value)
    headers.append(("Content-Range", show_range(part, found.size)))
    if status == 416:
        return Answer("416 Range Not Satisfiable", headers)
    value = found.value
    if len(value) == found.size:  # a small one, or all of a large one
        value = value[part.begin : part.begin + part.length]
    return Answer("206 Partial Content", headers, value)


def put_object(services: Services, environ: Environ, bucket: str, key: str) -> Later:
    """Store the body; a form post is stored as it is, not parsed."""
    require_names(bucket, key)
    read_query(environ)
    require_whole(environ)
    if_match, if_none_match = read_tag_conditions(environ)
    modified_at = read_unmodified_since(environ)
    if modified_at is not None and modified_at > services.latest():
        raise refuse(
            400,
            "date_in_future",
            "If-Unmodified-Since is too far in the future: at most "
            f"{services.config.max_future_seconds} seconds are allowed.",
        )
    if body_bytes(environ) > services.config.max_value_bytes:
        raise refuse(
            413, "value_too_large", f"A value has at most {services.config.max_value_bytes} bytes."
        )
    content_encoding = read_content_encoding(environ)
    expiry = read_ttl(environ)
    given_type = read_content_type(environ)
    content = read_body(environ)
    content_type = given_type or default_content_type(content)
    value = Value(content)
    del content  # so that the store can forget it in time
    services.caches.admit()
    policy = services.store.held_policy()
    write = Write(
        bucket, key, value, content_type, modified_at, if_match, if_none_match, content_encoding,
        expiry,
    )  # fmt: skip
    return later(
        environ,
        lambda done: services.writes.add(Writing(write, policy, done)),
        lambda put: _show_put(environ, bucket, put),
    )


def _show_put(environ: Environ, bucket: str, put: Put) -> Answer:
    _note_outcome(environ, bucket, put)
    if put.outcome == "rejected":
        return bare(412)
    return Answer(
        "200 OK",
        [
            ("ETag", format_tag(put.revision, put.hash)),
            ("Last-Modified", format_date(put.modified_at)),
            ("Cache-Control", "no-store"),
            *([] if put.expires_at is None else [(EXPIRES, format_date(put.expires_at))]),
        ],
    )


def _note_outcome(environ: Environ, bucket: str, put: Put) -> None:
    if put.outcome == "no bucket":
        raise StoreError(404, f"There is no bucket named {bucket}.", code="bucket_not_found")
    environ["poky.outcome"] = put.outcome


def delete_object(services: Services, environ: Environ, bucket: str, key: str) -> Later:
    """Delete the object; 404 if there was none."""
    require_names(bucket, key)
    read_query(environ)
    if_match, if_none_match = read_tag_conditions(environ)
    unmodified_since = read_unmodified_since(environ)
    services.caches.admit()
    policy = services.store.held_policy()
    write = Write(bucket, key, None, "", unmodified_since, if_match, if_none_match)
    return later(
        environ,
        lambda done: services.writes.add(Writing(write, policy, done)),
        lambda put: _show_delete(environ, bucket, put),
    )


def _show_delete(environ: Environ, bucket: str, put: Put) -> Answer:
    _note_outcome(environ, bucket, put)
    return bare({"deleted": 200, "missing": 404, "rejected": 412}[put.outcome])


def list_objects(services: Services, environ: Environ, bucket: str) -> Answer:
    """A page of keys in order; ``next`` is the ``after`` of the following page.

    With a delimiter, keys that go on beyond the next one after the prefix are shown as one prefix.
    """
    require_bucket(bucket)
    query = read_query(environ, "prefix", "after", "limit", "delimiter")
    for name in ("prefix", "after"):
        require_prefix(query.get(name, ""), name)
    if query.get("delimiter", "/") != "/":
        raise refuse(400, "bad_query", "delimiter, if given, is /.")
    if not re.fullmatch("[0-9]{1,4}", limit_text := query.get("limit", "100")) or not (
        1 <= (limit := int(limit_text)) <= 1000
    ):
        raise refuse(400, "bad_query", "limit is a whole number from 1 to 1000.")
    by_level = "delimiter" in query
    page = services.store.list_page(
        bucket, query.get("prefix", ""), query.get("after", ""), limit, by_level
    )
    keys = [
        {
            "key": each.key,
            "size": each.size,
            "etag": format_tag(each.revision, each.hash),
            "modified_at": format_date(each.modified_at),
            "content_type": each.content_type,
            **({"content_encoding": each.content_encoding} if each.content_encoding else {}),
            **show_expires(each.expires_at),
        }
        for each in page.entries
        if each.revision is not None
    ]
    answer: dict[str, Any] = {"keys": keys, "next": page.next}
    if by_level:
        answer["prefixes"] = [each.key for each in page.entries if each.revision is None]
    return json(answer)
