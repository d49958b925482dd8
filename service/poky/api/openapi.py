"""The contract as an OpenAPI 3.1 document.

Paths, methods, summaries and statuses come from the table of routes; here are the shapes of bodies,
headers and parameters. Tests check the service against the document.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from poky import __version__
from poky.api import admin, batches, buckets, changes, lease, objects, welcome
from poky.api.codes import CODES
from poky.api.items import OBJECTS
from poky.api.names import BUCKET, KEY, KEY_LENGTH, MOST_TTL
from poky.api.routes import Route
from poky.config import Config

Json = dict[str, Any]


class _Details(NamedTuple):
    """What the route of a handler does not say."""

    responses: Json
    parameters: Sequence[Json] = ()
    body: Json | None = None


def document(config: Config, routes: Sequence[Route]) -> Json:
    """The document for a service with these limits and routes."""
    details = _details(config)
    paths: Json = {}
    for route in routes:
        path = paths.setdefault(re.sub("<(.*?)>", r"{\1}", route.path), {})
        if names := re.findall("<(.*?)>", route.path):
            path["parameters"] = [_NAMES[name] for name in names]
        for method in route.methods:
            operation = _operation(route, method, details.get(route.handler, _Details({})))
            path[method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Poky",
            "version": __version__,
            "summary": "Buckets of objects over HTTP, in PostgreSQL.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": _PROBLEM},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "tokenAsPassword": {"type": "http", "scheme": "basic"},
            },
        },
        # Without tokens (POKY_ACCESS=open), or for a public bucket, none is needed.
        "security": [{}, {"token": []}, {"tokenAsPassword": []}],
    }


def _operation(route: Route, method: str, details: _Details) -> Json:
    verb, _, noun = route.handler.__name__.partition("_")
    if method != route.methods[0]:
        verb = method.lower()
    summary = route.summary or route.does.partition(":")[0]
    operation: Json = {
        "operationId": verb + noun.title().replace("_", ""),
        "summary": f"{summary[:1].upper()}{summary[1:]}.",
    }
    if details.parameters:
        operation["parameters"] = details.parameters
    if details.body:
        operation["requestBody"] = details.body
    statuses = {*route.statuses.split(), *details.responses}
    if route.right != "none":  # it asks the database
        statuses |= {"400", "401", "403", "404", "503"}
    if "<key>" in route.path:  # every byte of it escaped
        statuses |= {"414"}
    responses = {status: details.responses.get(status) or _ANY[status] for status in statuses}
    if method == "HEAD":  # the same statuses and header fields, no content
        responses = {
            status: {name: value for name, value in response.items() if name != "content"}
            for status, response in responses.items()
        }
    operation["responses"] = dict(sorted(responses.items()))
    return operation


# Parts of a document.


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _name(name: str, schema: Json, description: str = "") -> Json:
    described = {"description": description} if description else {}
    return {"name": name, "in": "path", "required": True, "schema": schema, **described}


def _empty(description: str, headers: Json | None = None) -> Json:
    return {"description": description, **({"headers": headers} if headers else {})}


def _text(description: str) -> Json:
    return {"description": description, "content": {"text/plain": {"schema": _STRING}}}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _problem(description: str, *, or_text: bool = False) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    content: Json = {"application/problem+json": {"schema": schema}}
    if or_text:
        content["text/plain"] = {"schema": _STRING}
    return {"description": description, "content": content}


def _object(names: str, more: Json | None = None, **properties: Json) -> Json:
    """The schema of an object; ``names`` are required, ``more`` has further keywords."""
    return {
        "type": "object",
        "required": names.split(),
        **(more or {}),
        "properties": properties,
    }


def _array(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


_STRING: Json = {"type": "string"}
_INTEGER: Json = {"type": "integer"}
_TEXT_OR_NULL: Json = {"type": ["string", "null"]}
_LIMIT: Json = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
_CURSOR: Json = {"type": "string", "pattern": "^[0-9._-]*$"}
_TAG: Json = {"type": "string", "examples": ['"17-2cf24dba"']}
_DATE: Json = {"type": "string", "examples": ["Tue, 04 Jun 2013 03:01:31 GMT"]}
# A part of all dates and tags, from which programs can make some.
_DATE_FORM = (
    "(Mon|Tue|Wed|Thu|Fri|Sat|Sun), (0[1-9]|1[0-9]|2[0-8]) "
    "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) (19[7-9]|20[0-2])[0-9] "
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9] GMT"
)
_TAG_FORM = '(W/)?"[!#-~]*"'
_HTTP_DATE: Json = {"type": "string", "pattern": f"^{_DATE_FORM}$"}
_TAG_LIST: Json = {"type": "string", "pattern": rf"^(\*|{_TAG_FORM}( *, *{_TAG_FORM})*)$"}
_TAG_OR_DATE = f'({_TAG_FORM}|"{_DATE_FORM}")'
_TAGS_AND_DATES: Json = {
    "type": "string",
    "pattern": rf"^(\*|{_DATE_FORM}|{_TAG_OR_DATE}( *, *{_TAG_OR_DATE})*)$",
}
_PROBLEM = _object(
    "type title status code detail",
    {"description": "RFC 9457."},
    type=_STRING,
    title=_STRING,
    status=_INTEGER,
    code={"enum": sorted(CODES)},
    detail=_STRING,
)
_DOTS: Json = {"enum": [".", ".."]}
_KEY: Json = {"type": "string", "pattern": f"^{KEY.pattern}$", "maxLength": KEY_LENGTH}
_NAMES = {
    "bucket": _name("bucket", {"type": "string", "pattern": f"^{BUCKET.pattern}$", "not": _DOTS}),
    "key": _name(
        "key",
        _KEY,
        # Parameters of a path that have slashes are not for OpenAPI 3.1 to tell.
        "Slashes belong to the key: send them as they are, never as %2F, which is 400. A generated"
        " client that escapes them serves keys without any.",
    ),
}
_VALIDATORS: Json = {
    "ETag": {"schema": _TAG, "description": "Strong: the revision and a hash."},
    "Last-Modified": {"schema": _DATE, "description": "The client's clock."},
    "Poky-Expires": {"schema": _DATE, "description": "From then on it is missing; else never."},
}
_CONTENT_RANGE: Json = {
    "Content-Range": {"schema": _STRING, "description": "bytes first-last/size, or bytes */size."}
}
_WRITE_HEADERS = (
    _header("If-Match", _TAGS_AND_DATES, "Tags, quoted dates, or *: compare and set."),
    _header("If-None-Match", _TAG_LIST, "Tags, or *: create only."),
    _header("If-Unmodified-Since", _HTTP_DATE, "An HTTP-date."),
)
_TTL: Json = {"type": "integer", "minimum": 0, "maximum": MOST_TTL}
_MISSING = _empty("No such object (empty body), or no such bucket (a problem).")

# What a status means where a handler's details say nothing else.
_ANY = {
    "200": _empty("Done."),
    "400": _problem("Bad input."),
    "401": {
        **_problem("With tokens: no valid token."),
        "headers": {"WWW-Authenticate": {"schema": _STRING, "description": "Bearer."}},
    },
    "403": _problem("With tokens: the token does not grant this."),
    "404": _problem("No such bucket."),
    "409": _problem("The bucket has keys."),
    "411": _problem("Transfer-Encoding: send Content-Length instead."),
    "413": _problem("Too large."),
    "414": _problem("The request line is too long."),
    "415": _problem("Invalid Content-Type, or a content coding not known here.", or_text=True),
    "503": _problem("The database is away or busy; see Retry-After."),
}


# The details of handlers.


def _details(config: Config) -> dict[Any, _Details]:
    atomic = _query("atomic", {"enum": ["true", "false"]}, "All or nothing: any rejected is 412.")
    return {
        lease.get_lease: _Details({"403": _empty("No lease.")}),
        objects.get_object: _Details(
            {
                "200": {
                    "description": "The value, byte for byte, with its content type.",
                    "headers": _VALIDATORS,
                    "content": {"*/*": {}},
                },
                "206": {
                    "description": "The part that Range asks for.",
                    "headers": {**_VALIDATORS, **_CONTENT_RANGE},
                    "content": {"*/*": {}},
                },
                "304": _empty("The client's copy is current.", _VALIDATORS),
                "404": _MISSING,
                "412": _empty("If-Match is false."),
                "416": _empty("The value has none of these bytes.", _CONTENT_RANGE),
            },
            parameters=[
                _header("Range", _STRING, "bytes=first-last, bytes=first- or bytes=-length."),
                _header("If-Range", _STRING, "A tag: else the whole."),
                _header("If-Match", _TAGS_AND_DATES, "Tags, quoted dates, or *."),
                _header("If-None-Match", _TAG_LIST, "Tags, or *."),
                _header("If-Modified-Since", _STRING, "304 only when that is certain."),
            ],
        ),
        objects.put_object: _Details(
            {
                "200": _empty("Stored.", _VALIDATORS),
                "400": _problem("Bad input.", or_text=True),
                "412": _empty("A condition is false: nothing changed."),
            },
            parameters=[
                *_WRITE_HEADERS,
                _header("Poky-TTL", _TTL, "Seconds until it expires; 0: never."),
            ],
            body={"content": {"*/*": {}}},
        ),
        objects.delete_object: _Details(
            {
                "200": _empty("It was there and is deleted."),
                "400": _problem("Bad input.", or_text=True),
                "404": _MISSING,
                "412": _empty("A condition is false."),
            },
            parameters=_WRITE_HEADERS,
        ),
        objects.list_objects: _Details(
            {"200": _json("The page.", _PAGE)},
            parameters=[
                _query("prefix", _STRING, "Only keys that start with it."),
                _query("after", _STRING, "The next of the page before."),
                _query("delimiter", {"enum": ["/"]}, "Show keys up to the next slash only."),
                _query("limit", _LIMIT, "How many at most."),
            ],
        ),
        changes.get_changes: _Details(
            {
                "200": {
                    "description": "The page, or a stream of server-sent events, each a change.",
                    "content": {
                        "application/json": {"schema": _CHANGES},
                        "text/event-stream": {"schema": _STRING},
                    },
                },
                "404": _problem("No such bucket, or its changes are not recorded."),
                "410": _problem("The changes after the cursor are not kept any more."),
            },
            parameters=[
                _query("after", _CURSOR, "The next of the page before; 0: the oldest kept."),
                _query("prefix", _STRING, "Only of keys that start with it."),
                _query("limit", _LIMIT, "How many at most."),
                _query(
                    "wait",
                    {"type": "number", "minimum": 0, "maximum": changes.MOST_WAIT, "default": 0},
                    "How many seconds to wait for a change if there is none.",
                ),
                _header("Last-Event-ID", _CURSOR, "Of a stream: after which event to go on."),
            ],
        ),
        batches.get_many: _Details(
            {
                "200": {
                    "description": "Those that are there.",
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "additionalProperties": _STRING}
                        },
                        OBJECTS: {"schema": _array(_OBJECT)},
                    },
                },
                "406": _problem("A value is not text: ask for the objects media type."),
            },
            body=_batch(config, _KEY_ITEM),
        ),
        batches.put_many: _Details(
            _outcomes("inserted", "updated", "rejected"), [atomic], _batch(config, _PUT_ITEM)
        ),
        batches.delete_many: _Details(
            _outcomes("deleted", "missing", "rejected"), [atomic], _batch(config, _KEY_ITEM)
        ),
        batches.delete_prefix: _Details(
            {
                "200": _json(
                    "How many; more: send it again.",
                    _object("deleted more", deleted=_INTEGER, more={"type": "boolean"}),
                )
            },
            parameters=[
                _query("prefix", _STRING, "Keys that begin with it; empty: all."),
                _query("confirm", _STRING, "The prefix again; for all keys the bucket's name."),
            ],
        ),
        buckets.get_buckets: _Details({"200": _json("By name.", _BUCKETS)}),
        admin.get_status: _Details(
            {
                "200": {"description": "It can.", "content": _STATUS},
                "400": _problem("Bad input."),
                "503": {
                    "description": "It cannot: the database is away.",
                    "content": _STATUS,
                },
            },
            parameters=[_query("verbose", _STRING, "Answer as JSON.")],
        ),
        welcome.get_welcome: _Details(
            {
                "200": {
                    "description": "The page, or text.",
                    "content": {
                        "text/html": {"schema": _STRING},
                        "text/plain": {"schema": _STRING},
                    },
                }
            }
        ),
        admin.get_help: _Details({"200": _text("The table.")}),
        admin.get_openapi: _Details({"200": _json("The document.", {"type": "object"})}),
        admin.get_metrics: _Details({"200": _text("The metrics.")}),
    }


def _batch(config: Config, item: Json) -> Json:
    schema = _array(item, maxItems=config.max_batch_items)
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _outcomes(*results: str) -> Json:
    """The answers to a batch that changes objects."""
    item = _object(
        "key result", key=_STRING, result={"enum": list(results)}, etag=_TAG, expires=_DATE
    )
    return {
        "200": _json("One outcome per item, by position.", _array(item)),
        "412": _json("Atomic, and some were rejected: nothing changed.", _array(item)),
    }


_PAGE = _object(
    "keys next",
    keys=_array(
        _object(
            "key size etag modified_at content_type",
            key=_STRING,
            size=_INTEGER,
            etag=_TAG,
            modified_at=_DATE,
            content_type=_STRING,
            content_encoding=_STRING,
            expires=_DATE,
        )
    ),
    next=_TEXT_OR_NULL,
    prefixes=_array(_STRING, description="With a delimiter: what further keys begin with."),
)
_CHANGES = _object(
    "changes next",
    changes=_array(
        _object(
            "key result",
            key=_STRING,
            result={"enum": ["put", "delete", "expire"]},
            etag=_TAG,
            modified_at=_DATE,
        )
    ),
    next=_STRING,
)
_OBJECT = _object(
    "key",
    key=_STRING,
    result={"const": "missing"},
    etag=_TAG,
    modified_at=_DATE,
    content_type=_STRING,
    content_encoding=_STRING,
    expires=_DATE,
    data=_STRING,
    data_base64={"type": "string", "contentEncoding": "base64"},
)
_KEY_ITEM = _object(
    "key",
    {"additionalProperties": False},
    key=_KEY,
    modified_at=_TEXT_OR_NULL,
    if_match=_TEXT_OR_NULL,
    if_none_match=_TEXT_OR_NULL,
)
_PUT_ITEM: Json = {
    **_KEY_ITEM,
    "properties": {
        **_KEY_ITEM["properties"],
        "data": _TEXT_OR_NULL,
        "data_base64": {**_TEXT_OR_NULL, "contentEncoding": "base64"},
        "content_type": _TEXT_OR_NULL,
        "content_encoding": _TEXT_OR_NULL,
        "ttl": {**_TTL, "type": ["integer", "null"]},
        "expires": {**_TEXT_OR_NULL, "description": "An HTTP-date, in place of ttl."},
        "etag": {**_TEXT_OR_NULL, "description": "Ignored."},
    },
}
_BUCKETS = _object(
    "buckets",
    buckets=_array(
        _object(
            "name schema estimated_rows bytes ttl",
            name=_STRING,
            schema={"enum": ["partitioned", "flat"]},
            estimated_rows=_INTEGER,
            bytes=_INTEGER,
            ttl={"type": ["integer", "null"]},
        )
    ),
)
_STATUS: Json = {
    "text/plain": {"schema": _STRING},
    "application/json": {
        "schema": _object(
            "release database schema server inflight instance background",
            release=_STRING,
            database={"enum": ["ok", "unavailable"]},
            schema={"enum": ["ok", "missing", "outdated", "newer", "unknown"]},
            server=_TEXT_OR_NULL,
            inflight={"type": "integer", "minimum": 0},
            instance=_STRING,
            background={
                "type": "array",
                "items": _object(
                    "name scope period_seconds runs errors ended_at last_error",
                    name=_STRING,
                    scope={"enum": ["instance", "fleet"]},
                    period_seconds={"type": "number", "exclusiveMinimum": 0},
                    runs={"type": "integer", "minimum": 0},
                    errors={"type": "integer", "minimum": 0},
                    ended_at={"type": ["integer", "null"]},
                    last_error={"type": ["string", "null"]},
                ),
            },
        )
    },
}
