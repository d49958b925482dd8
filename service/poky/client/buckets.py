"""A bucket as a client sees it: objects, batches, lists, changes."""

import base64
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime, parsedate_to_datetime
from itertools import islice
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlencode

import urllib3

from poky.client.wire import Answer, Error, OutcomeUnknown, Wire, refused

_Item = TypeVar("_Item")

BATCH: Final = 500  # items of one request, unless it is to be atomic
_OBJECTS: Final = "application/vnd.poky.objects+json"
_QUIET_SECONDS: Final = 45.0  # a stream has a comment every 15


@dataclass(frozen=True)
class Object:
    """An object; ``modified_at`` is the clock of the client that wrote it."""

    key: str
    value: bytes
    etag: str
    modified_at: datetime
    content_type: str
    content_encoding: str | None = None


@dataclass(frozen=True)
class Listed:
    """An object in a list: everything but its value."""

    key: str
    size: int
    etag: str
    modified_at: datetime
    content_type: str


@dataclass(frozen=True)
class Result:
    """What an item of a batch came to: inserted, updated, deleted, missing or rejected."""

    key: str
    result: str
    etag: str | None


@dataclass(frozen=True)
class Change:
    """A change: put, delete or expire. Only a put has a tag and a date.

    ``cursor``: what to resume with after this change.
    """

    key: str
    result: str
    etag: str | None
    modified_at: datetime | None
    cursor: str


class Cache:
    """The objects that were read last, ``most`` of them, by bucket and key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._objects: OrderedDict[tuple[str, str], Object] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, bucket: str, key: str) -> Object | None:
        """The object as it was read; it may have changed since."""
        with self._lock:
            found = self._objects.get((bucket, key))
            if found is not None:
                self._objects.move_to_end((bucket, key))
            return found

    def keep(self, bucket: str, found: Object) -> None:
        """Keep an object in place of the one that was used least."""
        with self._lock:
            self._objects[bucket, found.key] = found
            while len(self._objects) > self._most:
                self._objects.popitem(last=False)


class Bucket:
    """The objects of one bucket."""

    def __init__(self, wire: Wire, name: str, cache: Cache) -> None:
        self.name = name
        self._wire = wire
        self._cache = cache
        self._quoted = quote(name, safe="")

    # -- single objects

    def get(self, key: str) -> Object | None:
        """The object, or None."""
        kept = self._cache.get(self.name, key)
        headers = {"If-None-Match": kept.etag} if kept else {}
        answer = self._wire.read("GET", self._path(key), headers=headers)
        if answer.status == 304 and kept is not None:
            return kept
        if answer.status == 404 and not answer.body:
            return None
        _expect(answer, 200)
        found = Object(
            key,
            answer.body,
            answer.headers["ETag"],
            parsedate_to_datetime(answer.headers["Last-Modified"]),
            answer.headers.get("Content-Type", ""),
            answer.headers.get("Content-Encoding"),
        )
        self._cache.keep(self.name, found)
        return found

    def head(self, key: str) -> Listed | None:
        """What is known of an object besides its value, or None."""
        answer = self._wire.read("HEAD", self._path(key))
        if answer.status == 404:
            return None
        _expect(answer, 200)
        return Listed(
            key,
            int(answer.headers["Content-Length"]),
            answer.headers["ETag"],
            parsedate_to_datetime(answer.headers["Last-Modified"]),
            answer.headers.get("Content-Type", ""),
        )

    def read(self, key: str, begin: int, end: int, etag: str) -> bytes:
        """Bytes of the value that has this tag, from ``begin`` to before ``end``.

        ConditionFailed if there is another by now.
        """
        headers = {"Range": f"bytes={begin}-{end - 1}", "If-Match": etag}
        if begin >= end:
            return b""
        answer = self._wire.read("GET", self._path(key), headers=headers)
        if answer.status == 416:
            return b""
        if answer.status == 200:
            return answer.body[begin:end]
        _expect(answer, 206)
        return answer.body

    def put(
        self,
        key: str,
        value: bytes | str,
        *,
        content_type: str | None = None,
        if_match: str | None = None,
        if_none_match: str | None = None,
        modified_at: datetime | None = None,
        ttl: int | None = None,
    ) -> str:
        """Store a value; the new tag. ConditionFailed, or OutcomeUnknown if it is in doubt.

        ``if_match``: a tag (compare and set); ``if_none_match="*"``: create only. With either, a
        put in doubt is repeated, and found out if it was done the first time.
        """
        body = value.encode() if isinstance(value, str) else value
        conditions = _conditions(if_match, if_none_match)
        headers = {**conditions, "Content-Type": content_type or _content_type(value)}
        if modified_at is not None:
            headers["If-Unmodified-Since"] = format_datetime(modified_at, usegmt=True)
        if ttl is not None:
            headers["Poky-TTL"] = str(ttl)
        answer = self._wire.write(
            "PUT", self._path(key), headers=headers, body=body, is_conditional=bool(conditions)
        )
        if answer.status == 412 and answer.was_in_doubt:
            # The first try may have made the condition false itself.
            found = self.get(key)
            if found is not None and found.value == body and found.etag != if_match:
                return found.etag
            raise _in_doubt()
        _expect(answer, 200)
        return answer.headers["ETag"]

    def delete(self, key: str, *, if_match: str | None = None) -> bool:
        """Delete an object; whether it was there. ConditionFailed, OutcomeUnknown."""
        conditions = _conditions(if_match, None)
        answer = self._wire.write(
            "DELETE", self._path(key), headers=conditions, is_conditional=bool(conditions)
        )
        if answer.status == 404 and not answer.body:
            return answer.was_in_doubt
        if answer.status == 412 and answer.was_in_doubt:
            if self.get(key) is None:
                return True
            raise _in_doubt()
        _expect(answer, 200)
        return True

    # -- batches

    def get_many(self, keys: Iterable[str]) -> dict[str, Object]:
        """Those of the objects that are there."""
        found: dict[str, Object] = {}
        for batch in _batches(keys):
            answer = self._wire.read(
                "POST",
                f"/multi/{self._quoted}",
                headers={"Content-Type": "application/json", "Accept": _OBJECTS},
                body=json.dumps([{"key": key} for key in batch]).encode(),
            )
            _expect(answer, 200)
            found |= {each["key"]: _object(each) for each in answer.json() if "etag" in each}
        return found

    def put_many(self, values: Mapping[str, bytes | str], *, atomic: bool = False) -> list[Result]:
        """Store values; one result each. ``atomic``: all or nothing, or ConditionFailed."""
        items = [
            {
                "key": key,
                "content_type": _content_type(value),
                **(
                    {"data": value}
                    if isinstance(value, str)
                    else {"data_base64": base64.b64encode(value).decode()}
                ),
            }
            for key, value in values.items()
        ]
        return self._change_many("PUT", items, atomic=atomic)

    def delete_many(self, keys: Iterable[str], *, atomic: bool = False) -> list[Result]:
        """Delete objects; one result each. ``atomic`` as in `put_many`."""
        return self._change_many("DELETE", [{"key": key} for key in keys], atomic=atomic)

    def _change_many(
        self, method: str, items: list[dict[str, Any]], *, atomic: bool
    ) -> list[Result]:
        results: list[Result] = []
        for batch in [items] if atomic else _batches(items):
            answer = self._wire.write(
                method,
                f"/multi/{self._quoted}{'?atomic=true' if atomic else ''}",
                headers={"Content-Type": "application/json"},
                body=json.dumps(batch).encode(),
                is_conditional=False,
            )
            _expect(answer, 200)
            results += [
                Result(each["key"], each["result"], each.get("etag")) for each in answer.json()
            ]
        return results

    # -- lists and changes

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """All objects whose key begins so, in byte order; a page is asked for when it is needed."""
        after: str | None = ""
        while after is not None:
            query = urlencode({"prefix": prefix, "after": after, "limit": 1000})
            answer = self._wire.read("GET", f"/kv/{self._quoted}?{query}")
            _expect(answer, 200)
            page = answer.json()
            yield from map(_listed, page["keys"])
            after = page["next"]

    def level(self, prefix: str = "") -> Iterator[Listed | str]:
        """As of a folder: objects whose key has no slash beyond the prefix, in byte order.

        For all others that begin alike, once that beginning, up to and including the slash.
        """
        after: str | None = ""
        while after is not None:
            query = urlencode({"prefix": prefix, "after": after, "limit": 1000, "delimiter": "/"})
            answer = self._wire.read("GET", f"/kv/{self._quoted}?{query}")
            _expect(answer, 200)
            page = answer.json()
            entries: list[Listed | str] = [*map(_listed, page["keys"]), *page["prefixes"]]
            yield from sorted(entries, key=lambda each: each if isinstance(each, str) else each.key)
            after = page["next"]

    def cursor(self) -> str:
        """Where changes are now: read the bucket after this, then follow from here."""
        return str(self._changes("", "")["next"])

    def changes(self, after: str = "0", prefix: str = "") -> Iterator[Change]:
        """The changes from a cursor up to now; "0": from the oldest that is kept.

        Within a page of a thousand each has the cursor before the page: to resume there is to see
        some of them again.
        """
        while True:
            page = self._changes(after, prefix)
            if not page["changes"]:
                return
            for number, each in enumerate(page["changes"], 1):
                is_last = number == len(page["changes"])
                yield _change(each, page["next"] if is_last else after)
            after = page["next"]

    def follow(self, after: str = "", prefix: str = "") -> Iterator[Change]:
        """The changes from a cursor on, for ever, as they come; "": from now on.

        Goes on by itself after every failure that passes. Error for good: 410 when what follows is
        not kept any more, 404 when the bucket records no changes, 401 and 403.
        """
        after = after or self.cursor()
        pause = 0.1
        while True:
            try:
                for event in self._events(after, prefix):
                    after = event.get("id", after)
                    pause = 0.1
                    if "data" in event:
                        yield _change(json.loads(event["data"]), after)
            except (urllib3.exceptions.HTTPError, OSError):
                pass
            except Error as error:
                if error.status not in (429, 500, 502, 503, 504):
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _changes(self, after: str, prefix: str) -> Any:
        query = {"after": after, "prefix": prefix, "limit": 1000}
        answer = self._wire.read("GET", f"/changes/{self._quoted}?{urlencode(query)}")
        _expect(answer, 200)
        return answer.json()

    def _events(self, after: str, prefix: str) -> Iterator[dict[str, str]]:
        """The fields of server-sent events, until the stream ends."""
        response = self._wire.stream(
            f"/changes/{self._quoted}?{urlencode({'prefix': prefix})}",
            {"Accept": "text/event-stream", "Last-Event-ID": after},
            _QUIET_SECONDS,
        )
        try:
            rest = b""
            for piece in response.stream(65536):
                *events, rest = (rest + piece).split(b"\n\n")
                for event in events:
                    lines = [line.partition(": ") for line in event.decode().split("\n")]
                    yield {name: value for name, _, value in lines if name}
        finally:
            response.close()

    def _path(self, key: str) -> str:
        return f"/kv/{self._quoted}/{quote(key, safe='/~:@=+,')}"


def _expect(answer: Answer, status: int) -> None:
    if answer.status != status:
        raise refused(answer.status, answer.body)


def _in_doubt() -> OutcomeUnknown:
    return OutcomeUnknown(
        412, "outcome_unknown", "It was made, and then changed by another; or another was first."
    )


def _conditions(if_match: str | None, if_none_match: str | None) -> dict[str, str]:
    given = {"If-Match": if_match, "If-None-Match": if_none_match}
    return {name: value for name, value in given.items() if value is not None}


def _content_type(value: bytes | str) -> str:
    return "text/plain; charset=utf-8" if isinstance(value, str) else "application/octet-stream"


def _batches(items: "Iterable[_Item]") -> "Iterator[list[_Item]]":
    left = iter(items)
    while batch := list(islice(left, BATCH)):
        yield batch


def _object(each: Mapping[str, Any]) -> Object:
    coded = each.get("data_base64")
    return Object(
        each["key"],
        each["data"].encode() if coded is None else base64.b64decode(coded),
        each["etag"],
        parsedate_to_datetime(each["modified_at"]),
        each["content_type"],
        each.get("content_encoding"),
    )


def _listed(each: Mapping[str, Any]) -> Listed:
    return Listed(
        each["key"],
        each["size"],
        each["etag"],
        parsedate_to_datetime(each["modified_at"]),
        each["content_type"],
    )


def _change(each: Mapping[str, Any], cursor: str) -> Change:
    modified_at = each.get("modified_at")
    return Change(
        each["key"],
        each["result"],
        each.get("etag"),
        None if modified_at is None else parsedate_to_datetime(modified_at),
        cursor,
    )
