"""The HTTP contract: one table of routes, a handler for each, refusals as problem details.

A handler reads, asks the store, answers. Knows nothing of psycopg2, sockets or processes; what is
answered here is docs/http-api.md, word for word.
"""

import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import bottle  # type: ignore[import-untyped]

from poky.api import batches, conditions, openapi
from poky.api.conditions import format_date, format_tag
from poky.api.names import check_bucket, check_content_type, check_key, default_content_type
from poky.config import Config
from poky.health import Health
from poky.http.answers import Answer, Refused, bare, json, problem, refuse, text
from poky.store import Store, StoreError

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]

BAD_UNMODIFIED_SINCE = "Error in If-Unmodified-Since format. Use RFC 1123 date format."


class Purger(Protocol):
    """The caches, as the contract needs them: asked before a change, told after it."""

    def admit(self) -> AbstractContextManager[None]:
        """Enter before a change; raises StoreError 503 when too many wait for caches already."""

    def purge(self, bucket: str, keys: Sequence[str], outbox_ids: Sequence[int]) -> None:
        """Return when no cache can give an older value of these keys any more."""

    def forget_bucket(self, outbox_id: int) -> None:
        """Return when no cache can give any value of the dropped bucket any more."""


class Route(NamedTuple):
    """One row of the contract."""

    methods: tuple[str, ...]
    path: str
    handler: str
    does: str
    statuses: str


ROUTES = (
    Route(("GET", "HEAD"), "/kv/<bucket>/<key>", "get_object", "the object", "200 304 400 404 412"),
    Route(
        ("PUT", "POST"),
        "/kv/<bucket>/<key>",
        "put_object",
        "store the body",
        "200 400 404 411 412 413",
    ),
    Route(("DELETE",), "/kv/<bucket>/<key>", "delete_object", "delete it", "200 400 404 412"),
    Route(
        ("GET", "HEAD"),
        "/kv/<bucket>",
        "list_objects",
        "list keys: ?prefix= &after= &limit=",
        "200 400 404",
    ),
    Route(("POST",), "/multi/<bucket>", "get_many", "read a batch", "200 400 404 406 411 413 415"),
    Route(
        ("PUT",),
        "/multi/<bucket>",
        "put_many",
        "store a batch: ?atomic=true",
        "200 400 404 411 412 413 415",
    ),
    Route(
        ("DELETE",),
        "/multi/<bucket>",
        "delete_many",
        "delete a batch: ?atomic=true",
        "200 400 404 411 412 413 415",
    ),
    Route(("GET", "HEAD"), "/buckets", "get_buckets", "all buckets", "200"),
    Route(("GET", "HEAD"), "/status", "get_status", "ok, or ?verbose as JSON", "200"),
    Route(("GET", "HEAD"), "/help", "get_help", "this text", "200"),
    Route(("GET", "HEAD"), "/openapi.json", "get_openapi", "this as OpenAPI 3.1", "200"),
)

ADMIN_ROUTES = (
    Route(("GET", "HEAD"), "/buckets", "get_buckets", "all buckets", "200"),
    Route(("PUT",), "/buckets/<bucket>", "ensure_bucket", "create a bucket", "200 400"),
    Route(
        ("DELETE",),
        "/buckets/<bucket>",
        "drop_bucket",
        "drop a bucket: ?keys=drop if it has any",
        "200 400 404 409",
    ),
    Route(("GET", "HEAD"), "/metrics", "get_metrics", "metrics for Prometheus", "200"),
    Route(("GET", "HEAD"), "/status", "get_status", "ok, or ?verbose as JSON", "200"),
    Route(("GET", "HEAD"), "/help", "get_help", "this text", "200"),
)


class Application(bottle.Bottle):  # type: ignore[misc]
    """Bottle's router without its globals: handlers take the environ and return an Answer.

    Half of stock Bottle's time goes into binding a request and casting a response per request.
    """

    def wsgi(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes | memoryview]:
        """Answer a request; only a defect of ours gets past this as an exception."""
        try:
            route, names = self.router.match(environ)
            environ["poky.route"] = route.rule
            answer = route.callback(environ, **names)
        except Refused as refused:
            answer = refused.answer
        except StoreError as error:
            answer = _show_store_error(error, environ)
        except bottle.HTTPError as error:
            answer = _show_routing_error(error, environ)
        start_response(answer.status, answer.headers)
        return [answer.body]

    __call__ = wsgi


class Api:
    """The contract over a store, its caches and a configuration."""

    def __init__(
        self,
        store: Store,
        caches: Purger,
        config: Config,
        health: Health,
        inflight: Callable[[], int],
        metrics: Callable[[], bytes],
    ) -> None:
        self._store = store
        self._caches = caches
        self._config = config
        self._health = health
        self._inflight = inflight
        self._metrics = metrics

    def app(self) -> Application:
        """The WSGI application that clients and caches reach."""
        return self._application(ROUTES)

    def admin_app(self) -> Application:
        """The WSGI application of the admin listener."""
        return self._application(ADMIN_ROUTES)

    def _application(self, routes: Sequence[Route]) -> Application:
        application = Application(autojson=False)
        for route in routes:
            handler = getattr(self, route.handler)
            if route.handler == "get_help":
                handler = partial(handler, routes)
            for method in route.methods:
                application.route(route.path, method=method, callback=handler)
        return application

    # /kv/{bucket}/{key}

    def get_object(self, environ: Environ, bucket: str, key: str) -> Answer:
        """The object, 304 or 412 as its conditions have it, or 404."""
        _check_names(bucket, key)
        if_match = _parsed(environ, "HTTP_IF_MATCH", conditions.parse_if_match)
        if if_match is None:  # the original's cache sent it by this name
            if_match = _parsed(environ, "HTTP_X_IF_MATCH", conditions.parse_if_match)
        if_none_match = _parsed(environ, "HTTP_IF_NONE_MATCH", conditions.parse_if_none_match)
        found = self._store.get(bucket, key)
        if found is None:
            return bare(412 if if_match == "*" else 404)
        facts = found.revision, found.hash, found.modified_at
        if if_match is not None and not conditions.matches(if_match, *facts):
            return bare(412)
        headers = [
            ("ETag", format_tag(found.revision, found.hash)),
            ("Last-Modified", format_date(found.modified_at)),
            ("Cache-Control", _cacheability(environ)),
        ]
        if if_none_match is None:
            unchanged = _unchanged_since(environ, found.unchanged_since)
        else:
            unchanged = conditions.matches(if_none_match, *facts)
        if unchanged:
            return Answer("304 Not Modified", headers)
        headers += [
            ("Content-Type", found.content_type),
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", "default-src 'none'; sandbox"),
        ]
        return Answer("200 OK", headers, found.value)

    def put_object(self, environ: Environ, bucket: str, key: str) -> Answer:
        """Store the body; the form post of curl is a body like any other (seed)."""
        _check_names(bucket, key)
        if_match, if_none_match = _tag_conditions(environ)
        modified_at = _unmodified_since(environ)
        if modified_at is not None and modified_at > self._latest():
            raise refuse(
                400,
                "If-Unmodified-Since is too far in the future: at most "
                f"{self._config.max_future_seconds} seconds are allowed.",
            )
        value = environ["wsgi.input"].read()
        if len(value) > self._config.max_value_bytes:
            raise refuse(413, f"A value has at most {self._config.max_value_bytes} bytes.")
        content_type = _content_type(environ, value)
        with self._caches.admit():
            put = self._store.put(
                bucket, key, value, content_type, modified_at, if_match, if_none_match
            )
            environ["poky.outcome"] = put.outcome
            if put.outcome == "rejected":
                return bare(412)
            if put.outbox_id is not None:
                self._caches.purge(bucket, (key,), (put.outbox_id,))
        return Answer(
            "200 OK",
            [
                ("ETag", format_tag(put.revision, put.hash)),
                ("Last-Modified", format_date(put.modified_at)),
                ("Cache-Control", "no-store"),
            ],
        )

    def delete_object(self, environ: Environ, bucket: str, key: str) -> Answer:
        """Delete the object; 404 if there was none."""
        _check_names(bucket, key)
        if_match, if_none_match = _tag_conditions(environ)
        unmodified_since = _unmodified_since(environ)
        with self._caches.admit():
            deleted = self._store.delete(bucket, key, if_match, if_none_match, unmodified_since)
            environ["poky.outcome"] = deleted.outcome
            if deleted.outbox_id is not None:
                self._caches.purge(bucket, (key,), (deleted.outbox_id,))
        return bare({"deleted": 200, "missing": 404, "rejected": 412}[deleted.outcome])

    def list_objects(self, environ: Environ, bucket: str) -> Answer:
        """A page of keys in order; ``next`` is the ``after`` of the following page."""
        _check_bucket(bucket)
        query = _query(environ, "prefix", "after", "limit")
        for name in ("prefix", "after"):
            if query.get(name):
                _check_key(query[name], name, partial=name == "prefix")
        if not re.fullmatch("[0-9]{1,4}", limit_text := query.get("limit", "100")) or not (
            1 <= (limit := int(limit_text)) <= 1000
        ):
            raise refuse(400, "limit is a whole number from 1 to 1000.")
        found = self._store.list(bucket, query.get("prefix", ""), query.get("after", ""), limit + 1)
        page = found[:limit]
        keys = [
            {
                "key": each.key,
                "size": each.size,
                "etag": format_tag(each.revision, each.hash),
                "modified_at": format_date(each.modified_at),
                "content_type": each.content_type,
            }
            for each in page
        ]
        return json({"keys": keys, "next": page[-1].key if len(found) > limit else None})

    # /multi/{bucket}

    def get_many(self, environ: Environ, bucket: str) -> Answer:
        """The values of a batch by key, or whole objects if the client accepts them."""
        wanted = batches.parse_wanted(self._batch_body(environ, bucket), self._max_items)
        _query(environ)
        found = self._store.get_many(bucket, wanted.keys)
        if batches.OBJECTS in environ.get("HTTP_ACCEPT", ""):
            return json(batches.show_objects(wanted, found), content_type=batches.OBJECTS)
        return json(batches.show_values(wanted, found))

    def put_many(self, environ: Environ, bucket: str) -> Answer:
        """Store a batch in one transaction, item by item or all or nothing."""
        given = batches.parse_given(
            self._batch_body(environ, bucket),
            self._max_items,
            self._config.max_value_bytes,
            self._latest(),
        )
        atomic = _atomic(environ)
        with self._caches.admit():
            outcomes = self._store.put_many(bucket, *given, atomic)
            return self._batch_answer(environ, bucket, given.keys, outcomes, atomic)

    def delete_many(self, environ: Environ, bucket: str) -> Answer:
        """Delete a batch in one transaction, item by item or all or nothing."""
        wanted = batches.parse_wanted(self._batch_body(environ, bucket), self._max_items)
        atomic = _atomic(environ)
        with self._caches.admit():
            outcomes = self._store.delete_many(
                bucket,
                wanted.keys,
                wanted.if_match,
                wanted.if_none_match,
                wanted.modified_at,
                atomic,
            )
            return self._batch_answer(environ, bucket, wanted.keys, outcomes, atomic)

    def _batch_body(self, environ: Environ, bucket: str) -> bytes:
        _check_bucket(bucket)
        media_type = environ.get("CONTENT_TYPE", "").partition(";")[0]
        if media_type.strip().lower() != "application/json":
            raise Refused(text("Invalid Content-Type", 415))
        body: bytes = environ["wsgi.input"].read()
        if len(body) > self._config.max_batch_bytes:
            raise refuse(
                413, f"A batch has at most {self._config.max_batch_bytes} bytes. Split it."
            )
        return body

    def _batch_answer(
        self, environ: Environ, bucket: str, keys: list[str], outcomes: Any, atomic: bool
    ) -> Answer:
        changed = [
            (key, outcome.outbox_id)
            for key, outcome in zip(keys, outcomes, strict=True)
            if outcome.outbox_id is not None
        ]
        if changed:
            self._caches.purge(bucket, *zip(*changed, strict=True))
        rejected = sum(outcome.outcome == "rejected" for outcome in outcomes)
        environ["poky.outcome"] = f"{len(keys) - rejected}/{len(keys)}"
        return json(
            batches.show_outcomes(keys, outcomes), status=412 if atomic and rejected else 200
        )

    # Buckets.

    def get_buckets(self, environ: Environ) -> Answer:
        """All buckets, with PostgreSQL's estimates."""
        _query(environ)
        buckets = [
            {
                "name": each.name,
                "schema": each.kind,
                "estimated_rows": each.estimated_rows,
                "bytes": each.bytes,
            }
            for each in self._store.buckets()
        ]
        return json({"buckets": buckets})

    def ensure_bucket(self, environ: Environ, bucket: str) -> Answer:
        """Create a bucket; 200 also if it is there."""
        _check_bucket(bucket)
        created = self._store.ensure_bucket(bucket)
        environ["poky.outcome"] = "created" if created else "exists"
        return bare(200)

    def drop_bucket(self, environ: Environ, bucket: str) -> Answer:
        """Drop a bucket; 409 if it has keys and the query does not say keys=drop."""
        _check_bucket(bucket)
        keys = _query(environ, "keys").get("keys")
        if keys not in (None, "drop"):
            raise refuse(400, "keys, if given, is drop: the bucket is dropped with its keys.")
        outbox_id = self._store.drop_bucket(bucket, keys=keys == "drop")
        if outbox_id is not None:
            self._caches.forget_bucket(outbox_id)
        return bare(200)

    # The rest.

    def get_status(self, environ: Environ) -> Answer:
        """Whether this process can serve: for probes as text, for people as JSON."""
        state = self._health.check()
        status = 200 if state.ok else 503
        if "verbose" not in _query(environ, "verbose") and "application/json" not in environ.get(
            "HTTP_ACCEPT", ""
        ):
            return text("ok" if state.ok else f"database {state.database}", status)
        return json(
            {
                "release": self._config.release,
                "database": state.database,
                "schema": state.schema,
                "inflight": max(self._inflight() - 1, 0),
                "instance": self._config.instance,
            },
            status,
        )

    def get_help(self, routes: Sequence[Route], environ: Environ) -> Answer:
        """The routes of this listener and their statuses as a table."""
        return text(show_help(routes))

    def get_openapi(self, environ: Environ) -> Answer:
        """The contract as OpenAPI 3.1."""
        return json(openapi.document(self._config))

    def get_metrics(self, environ: Environ) -> Answer:
        """Metrics in Prometheus' text format."""
        return Answer(
            "200 OK",
            [("Content-Type", "text/plain; version=0.0.4; charset=utf-8")],
            self._metrics(),
        )

    @property
    def _max_items(self) -> int:
        return self._config.max_batch_items

    def _latest(self) -> int:
        """The latest date that a write may carry: one dated 9999 would lock its key."""
        return int(time.time()) + self._config.max_future_seconds


def show_help(routes: Sequence[Route]) -> str:
    """The table of routes and statuses, for people."""
    rows = [
        (
            " ".join(route.methods),
            re.sub("<(.*?)>", r"{\1}", route.path),
            route.does,
            route.statuses,
        )
        for route in routes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + "  "
        + row[3]
        for row in rows
    ]
    return "\n".join(
        [
            "Poky: buckets of objects over HTTP.",
            "",
            *lines,
            "",
            "Any of them: 400 bad input, 404 no such path or bucket, 405 wrong method,",
            "503 the database is away or busy: try again after Retry-After seconds.",
            "Conditions: If-Match, If-None-Match, If-Unmodified-Since (the object's new date).",
            "",
        ]
    )


def _check_bucket(bucket: str) -> None:
    try:
        check_bucket(bucket)
    except ValueError as error:
        raise refuse(400, f"Choose another bucket: {error}.") from None


def _check_key(key: str, what: str = "key", *, partial: bool = False) -> None:
    try:
        check_key(key + "-" if partial else key)
    except ValueError as error:
        raise refuse(400, f"Choose another {what}: {error}.") from None


def _check_names(bucket: str, key: str) -> None:
    _check_bucket(bucket)
    _check_key(key)


def _parsed(environ: Environ, name: str, parse: Callable[[str], str]) -> str | None:
    """A condition as the store takes it; one that cannot be read is refused, never ignored."""
    value = environ.get(name)
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError:
        header = name.removeprefix("HTTP_").replace("_", "-").title()
        raise refuse(
            400,
            f'{header} cannot be read: send *, or entity tags or an HTTP-date in "quotes".',
        ) from None


def _tag_conditions(environ: Environ) -> tuple[str | None, str | None]:
    return (
        _parsed(environ, "HTTP_IF_MATCH", conditions.parse_if_match),
        _parsed(environ, "HTTP_IF_NONE_MATCH", conditions.parse_if_none_match),
    )


def _unmodified_since(environ: Environ) -> int | None:
    value = environ.get("HTTP_IF_UNMODIFIED_SINCE")
    if value is None:
        return None
    try:
        return conditions.parse_date(value)
    except ValueError:
        raise Refused(text(BAD_UNMODIFIED_SINCE, 400)) from None


def _unchanged_since(environ: Environ, unchanged_since: int) -> bool:
    """Whether If-Modified-Since certainly allows 304.

    A date that cannot be read, or is still to come, is ignored (RFC 9110 13.1.3).
    """
    value = environ.get("HTTP_IF_MODIFIED_SINCE")
    if value is None:
        return False
    try:
        since = conditions.parse_date(value)
    except ValueError:
        return False
    # Not <=: within one second there may have been a write after the client's copy was made.
    return unchanged_since < since <= time.time()


def _cacheability(environ: Environ) -> str:
    """Only the one canonical spelling of an object's URL may be kept: a purge knows no other."""
    canonical = environ["REQUEST_URI"] == environ["PATH_INFO"]
    return "no-cache" if canonical else "no-store"


def _content_type(environ: Environ, value: bytes) -> str:
    given: str = environ.get("CONTENT_TYPE", "").strip()
    if not given or given.lower().startswith("application/x-www-form-urlencoded"):
        return default_content_type(value)
    try:
        return check_content_type(given)
    except ValueError as error:
        raise refuse(400, f"Send another Content-Type: {error}.") from None


def _query(environ: Environ, *known: str) -> dict[str, str]:
    """The query's parameters; an unknown or repeated one is refused, for it would be ignored."""
    if not environ["QUERY_STRING"]:
        return {}
    try:
        pairs = parse_qsl(
            # A plus is a plus (RFC 3986), and a character of keys: no form is sent here.
            environ["QUERY_STRING"].replace("+", "%2B"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=16,
        )
    except ValueError:
        raise refuse(400, "The query cannot be read: send name=value pairs in UTF-8.") from None
    query = dict(pairs)
    unknown = sorted(set(query) - set(known))
    if unknown or len(query) < len(pairs):
        allowed = ", ".join(known) or "none"
        raise refuse(400, f"The query has a parameter too many; known here, once each: {allowed}.")
    return query


def _atomic(environ: Environ) -> bool:
    value = _query(environ, "atomic").get("atomic", "false")
    if value not in ("true", "false"):
        raise refuse(400, "atomic is true or false.")
    return value == "true"


def _show_store_error(error: StoreError, environ: Environ) -> Answer:
    detail = error.detail
    if error.status == 404:
        detail += " Create it with PUT /buckets/{bucket} on the admin listener, or: "
        detail += "poky bucket create NAME."
    elif error.status == 409:
        detail += " Add ?keys=drop to drop it with its keys."
    headers = []
    if error.unknown:
        environ["poky.outcome"] = "unknown"
        headers.append(("Poky-Outcome", "unknown"))
    return problem(error.status, detail, headers)


def _show_routing_error(error: Any, environ: Environ) -> Answer:
    if error.status_code == 405:
        allow = error.headers.get("Allow", "")
        methods = sorted({*allow.split(","), *(["HEAD"] if "GET" in allow else [])})
        allowed = ", ".join(methods)
        return problem(405, f"Use one of these methods here: {allowed}.", [("Allow", allowed)])
    return problem(404, "There is nothing at this path. GET /help lists what there is.")
