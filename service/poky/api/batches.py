"""/multi: many objects of a bucket in one transaction."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from poky.api.found import (
    SMALL_ANSWER,
    LargeAnswer,
    answer_bytes,
    show_objects,
    show_values,
    too_large,
)
from poky.api.items import OBJECTS, KeyItems, parse_key_items, parse_put_items, show_outcomes
from poky.api.request import (
    body_bytes,
    prefers,
    read_atomic,
    read_body,
    read_query,
    refuse_content_encoding,
    require_bucket,
    require_prefix,
    require_whole,
)
from poky.api.services import Services
from poky.http import Answer, Environ, Refused, json, refuse, text
from poky.store import StoreError

_PREFIX_OBJECTS = 1000  # in one transaction
_PREFIX_SECONDS = 4.0  # for one request: proxies wait ten
# Conditions in the head would hold for no item.
_IN_ITEMS = {
    "HTTP_IF_MATCH": "if_match",
    "HTTP_IF_NONE_MATCH": "if_none_match",
    "HTTP_IF_UNMODIFIED_SINCE": "modified_at",
    "HTTP_POKY_TTL": "ttl",
}


def get_many(services: Services, environ: Environ, bucket: str) -> Answer:
    """The values of a batch by key, or whole objects if the client accepts them."""
    read_query(environ)
    items = parse_key_items(_read_body(services, environ, bucket), services.config.max_batch_items)
    environ["poky.items"] = len(items.keys)
    objects = prefers(environ, OBJECTS, "application/json")
    found = services.store.get_many(bucket, items.keys)
    size = answer_bytes(items, found, objects=objects)
    if size > services.config.max_answer_bytes:
        raise too_large(size, services.config.max_answer_bytes)
    content_type = OBJECTS if objects else "application/json"
    if size > SMALL_ANSWER or any(each.value is None for each in found.values()):
        sizes = [each.size for each in found.values()]
        body = _read_large(services, environ, bucket, items, objects, sizes)
        return Answer(
            "200 OK", [("Content-Type", content_type), ("Cache-Control", "no-store")], body
        )
    return json((show_objects if objects else show_values)(items, found), content_type=content_type)


def _read_large(
    services: Services,
    environ: Environ,
    bucket: str,
    items: KeyItems,
    objects: bool,
    sizes: list[int],
) -> memoryview:
    """The same in pieces: no object but the last is in memory besides the answer."""
    memory = environ["poky.memory"]
    largest = max(sizes)
    answer = LargeAnswer(
        items,
        objects=objects,
        limit=services.config.max_answer_bytes,
        need=lambda size: memory.need(size + largest * services.store.COPY_FACTOR),
    )
    services.store.read_many(bucket, items.keys, answer.begin, answer.add, sum(sizes))
    body = answer.end()
    memory.lower_to(len(body))
    return body


def put_many(services: Services, environ: Environ, bucket: str) -> Answer:
    """Store a batch in one transaction, item by item or all or nothing."""
    atomic = read_atomic(environ)
    items = parse_put_items(
        _read_body(services, environ, bucket),
        services.config.max_batch_items,
        services.config.max_value_bytes,
        services.latest(),
    )
    environ["poky.items"] = len(items.keys)
    with services.caches.admit(), _gone_is_told(services, bucket, items.keys):
        outcomes = services.store.put_many(
            bucket,
            *items[:-2],
            atomic,
            content_encodings=items.content_encodings,
            expiries=items.expiries,
        )
        return _answer(services, environ, bucket, items.keys, outcomes, atomic)


def delete_many(services: Services, environ: Environ, bucket: str) -> Answer:
    """Delete a batch in one transaction, item by item or all or nothing."""
    atomic = read_atomic(environ)
    items = parse_key_items(_read_body(services, environ, bucket), services.config.max_batch_items)
    environ["poky.items"] = len(items.keys)
    with services.caches.admit(), _gone_is_told(services, bucket, items.keys):
        outcomes = services.store.delete_many(
            bucket,
            items.keys,
            items.if_match,
            items.if_none_match,
            items.modified_at,
            atomic,
        )
        return _answer(services, environ, bucket, items.keys, outcomes, atomic)


def _read_body(services: Services, environ: Environ, bucket: str) -> bytes:
    require_bucket(bucket)
    media_type = environ.get("CONTENT_TYPE", "").partition(";")[0]
    if media_type.strip().lower() != "application/json":
        raise Refused(text("Invalid Content-Type", 415))
    coding = environ.get("HTTP_CONTENT_ENCODING", "").strip().lower()
    if coding not in ("", "identity"):
        raise refuse_content_encoding(f"a batch in {coding[:40]!r} is not decoded", "identity")
    require_whole(environ)
    for name, field in _IN_ITEMS.items():
        if name in environ:
            header = name.removeprefix("HTTP_").replace("_", "-").title().replace("Ttl", "TTL")
            raise refuse(400, "bad_condition", f"Send {header} as {field} of the items.")
    if body_bytes(environ) > services.config.max_batch_bytes:
        raise refuse(
            413,
            "batch_too_large",
            f"A batch has at most {services.config.max_batch_bytes} bytes. Split it.",
        )
    return read_body(environ)


def _answer(
    services: Services, environ: Environ, bucket: str, keys: list[str], outcomes: Any, atomic: bool
) -> Answer:
    _tell_caches(services, bucket, keys, outcomes)
    rejected = sum(outcome.outcome == "rejected" for outcome in outcomes)
    environ["poky.outcome"] = f"{len(keys) - rejected}/{len(keys)}"
    return json(show_outcomes(keys, outcomes), status=412 if atomic and rejected else 200)


@contextmanager
def _gone_is_told(services: Services, bucket: str, keys: list[str]) -> Iterator[None]:
    """Before a client hears that the bucket is gone, caches hear it of these keys."""
    try:
        yield
    except StoreError as error:
        if error.code == "bucket_not_found":
            services.caches.purge(bucket, keys, [])
        raise


def _tell_caches(services: Services, bucket: str, keys: list[str], outcomes: Any) -> None:
    # An item that changed nothing tells of another change, which caches may not know yet.
    told = [
        key
        for key, outcome in zip(keys, outcomes, strict=True)
        if outcome.outbox_id is not None or outcome.outcome in ("rejected", "missing")
    ]
    if told:
        ids = [outcome.outbox_id for outcome in outcomes if outcome.outbox_id]
        services.caches.purge(bucket, told, ids)


def delete_prefix(services: Services, environ: Environ, bucket: str) -> Answer:
    """Delete the objects whose key begins with a prefix, a thousand in a transaction.

    After a few seconds it answers that more remain: the same request goes on. So it does if what
    comes later fails, which says nothing of what was deleted before.
    """
    require_bucket(bucket)
    query = read_query(environ, "prefix", "confirm")
    prefix = query.get("prefix")
    if prefix is None:
        raise refuse(400, "bad_query", "prefix says which keys are deleted; empty: all.")
    require_prefix(prefix, "prefix")
    if query.get("confirm") != (prefix or bucket):
        raise refuse(
            400,
            "not_confirmed",
            "Repeat the prefix as confirm, or the bucket's name for all keys: nothing was deleted.",
        )
    for name in _IN_ITEMS:
        if name in environ:
            raise refuse(400, "bad_condition", "A delete by prefix has no conditions.")
    deadline = time.monotonic() + _PREFIX_SECONDS
    deleted = 0
    after: str | None = ""
    while after is not None:
        try:
            count, after = _delete_page(services, bucket, prefix, after)
        except (Refused, StoreError) as error:
            if not deleted or getattr(error, "unknown", False):
                raise
            break
        deleted += count
        if time.monotonic() > deadline:  # not before something was done
            break
    environ["poky.outcome"] = f"deleted {deleted}"
    return json({"deleted": deleted, "more": after is not None})


def _delete_page(
    services: Services, bucket: str, prefix: str, after: str
) -> tuple[int, str | None]:
    """Delete a page of the prefix's keys: how many, and where the next one begins."""
    page = services.store.list_page(bucket, prefix, after, _PREFIX_OBJECTS)
    keys = [each.key for each in page.entries]
    if not keys:
        return 0, page.next
    none = [None] * len(keys)
    with services.caches.admit():
        outcomes = services.store.delete_many(bucket, keys, none, none, none, False)
        _tell_caches(services, bucket, keys, outcomes)
    return sum(outcome.outcome == "deleted" for outcome in outcomes), page.next
