"""The contract as an OpenAPI 3.1 document.

Tests check the service against it, and it against the table of routes.
"""

from typing import Any

from poky import __version__
from poky.config import Config

Json = dict[str, Any]

_TAGS = {"type": "string", "examples": ['"17-2cf24dba"']}
_DATE = {"type": "string", "examples": ["Tue, 04 Jun 2013 03:01:31 GMT"]}
_TAG_LIST = {
    "type": "string",
    "pattern": r'^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$',
}
_HTTP_DATE = {
    "type": "string",
    "pattern": "^(Mon|Tue|Wed|Thu|Fri|Sat|Sun), (0[1-9]|1[0-9]|2[0-8]) "
    "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) (19[7-9]|20[0-2])[0-9] "
    "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9] GMT$",
}
_CONDITIONS = {
    "if_match": {"type": ["string", "null"]},
    "if_none_match": {"type": ["string", "null"]},
}


def document(config: Config) -> Json:
    """The document for a service with these limits."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Poky",
            "version": __version__,
            "summary": "Buckets of objects over HTTP, in PostgreSQL.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": {
            "/kv/{bucket}/{key}": {
                "parameters": [_bucket(), _key()],
                "get": _get_object("getObject"),
                "head": _bodiless(_get_object("headObject")),
                "put": _put_object("putObject"),
                "post": _put_object("postObject"),
                "delete": {
                    "operationId": "deleteObject",
                    "summary": "Delete the object.",
                    "parameters": _write_headers(),
                    "responses": _responses(
                        {
                            "200": _empty("It was there and is deleted."),
                            "412": _empty("A condition is false."),
                        },
                        missing=True,
                        plain_400=True,
                    ),
                },
            },
            "/kv/{bucket}": {
                "parameters": [_bucket()],
                "get": _list_objects("listObjects"),
                "head": _bodiless(_list_objects("headObjects")),
            },
            "/multi/{bucket}": {
                "parameters": [_bucket()],
                "post": _get_many(config),
                "put": _change_many(config, "putMany", "Store a batch.", _given(), "inserted"),
                "delete": _change_many(
                    config, "deleteMany", "Delete a batch.", _wanted(), "deleted"
                ),
            },
            "/buckets": {
                "get": _get_buckets("getBuckets"),
                "head": _bodiless(_get_buckets("headBuckets")),
            },
            "/status": {
                "get": _get_status("getStatus"),
                "head": _bodiless(_get_status("headStatus")),
            },
            "/help": {
                "get": _get_help("getHelp"),
                "head": _bodiless(_get_help("headHelp")),
            },
            "/openapi.json": {
                "get": _get_openapi("getOpenapi"),
                "head": _bodiless(_get_openapi("headOpenapi")),
            },
        },
        "components": {
            "schemas": {
                "Problem": {
                    "description": "RFC 9457.",
                    "type": "object",
                    "required": ["type", "title", "status", "detail"],
                    "properties": {
                        "type": {"type": "string"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                    },
                }
            }
        },
    }


def _bucket() -> Json:
    return {
        "name": "bucket",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.,-]{1,256}$"},
    }


def _key() -> Json:
    return {
        "name": "key",
        "in": "path",
        "required": True,
        "schema": {
            "type": "string",
            "pattern": "^[A-Za-z0-9_.,~:@=+-]{1,1024}$",
            "not": {"enum": [".", ".."]},
        },
    }


def _header(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _write_headers() -> list[Json]:
    return [
        _header("If-Match", _TAG_LIST, "Tags, quoted dates, or *: compare and set."),
        _header("If-None-Match", _TAG_LIST, "Tags, or *: create only."),
        _header("If-Unmodified-Since", _HTTP_DATE, "An HTTP-date."),
    ]


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _empty(description: str, headers: Json | None = None) -> Json:
    return {"description": description, **({"headers": headers} if headers else {})}


def _text(description: str) -> Json:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _problem(description: str, *, plain: bool = False) -> Json:
    content: Json = {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
    }
    if plain:
        content["text/plain"] = {"schema": {"type": "string"}}
    return {"description": description, "content": content}


def _responses(
    own: Json, *, missing: bool = False, body: bool = False, plain_400: bool = False
) -> Json:
    """What this operation may answer, and what any operation may."""
    responses = {
        "400": _problem("Bad input.", plain=plain_400),
        "404": _problem("No such bucket."),
        "503": _problem("The database is away or busy; see Retry-After."),
        **own,
    }
    if missing:
        responses["404"] = _empty("No such object (empty body), or no such bucket (a problem).")
    if body:
        responses["411"] = _problem("Transfer-Encoding: send Content-Length instead.")
        responses["413"] = _problem("Too large.")
    return responses


def _bodiless(operation: Json) -> Json:
    """The HEAD of a GET: the same statuses and header fields, no content."""
    responses = {
        status: {name: value for name, value in response.items() if name != "content"}
        for status, response in operation["responses"].items()
    }
    return {**operation, "responses": responses}


def _validators() -> Json:
    return {
        "ETag": {"schema": _TAGS, "description": "Strong: the revision and a hash."},
        "Last-Modified": {"schema": _DATE, "description": "The client's clock."},
    }


def _get_object(name: str) -> Json:
    return {
        "operationId": name,
        "summary": "The object.",
        "parameters": [
            _header("If-Match", _TAG_LIST, "Tags, quoted dates, or *."),
            _header("If-None-Match", _TAG_LIST, "Tags, or *."),
            _header("If-Modified-Since", {"type": "string"}, "304 only when that is certain."),
        ],
        "responses": _responses(
            {
                "200": {
                    "description": "The value, byte for byte, with its content type.",
                    "headers": _validators(),
                    "content": {"*/*": {}},
                },
                "304": _empty("The client's copy is current.", _validators()),
                "412": _empty("If-Match is false."),
            },
            missing=True,
        ),
    }


def _put_object(name: str) -> Json:
    return {
        "operationId": name,
        "summary": "Store the body.",
        "parameters": _write_headers(),
        "requestBody": {"content": {"*/*": {}}},
        "responses": _responses(
            {
                "200": _empty("Stored.", _validators()),
                "412": _empty("A condition is false: nothing changed."),
            },
            body=True,
            plain_400=True,
        ),
    }


def _list_objects(name: str) -> Json:
    listed = {
        "type": "object",
        "required": ["key", "size", "etag", "modified_at", "content_type"],
        "properties": {
            "key": {"type": "string"},
            "size": {"type": "integer"},
            "etag": _TAGS,
            "modified_at": _DATE,
            "content_type": {"type": "string"},
        },
    }
    return {
        "operationId": name,
        "summary": "A page of keys in order.",
        "parameters": [
            _query("prefix", {"type": "string"}, "Only keys that start with it."),
            _query("after", {"type": "string"}, "The next of the page before."),
            _query(
                "limit",
                {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
                "How many at most.",
            ),
        ],
        "responses": _responses(
            {
                "200": _json(
                    "The page.",
                    {
                        "type": "object",
                        "required": ["keys", "next"],
                        "properties": {
                            "keys": {"type": "array", "items": listed},
                            "next": {"type": ["string", "null"]},
                        },
                    },
                )
            }
        ),
    }


def _wanted() -> Json:
    return {
        "type": "object",
        "required": ["key"],
        "additionalProperties": False,
        "properties": {
            "key": {"type": "string"},
            "modified_at": {"type": ["string", "null"]},
            **_CONDITIONS,
        },
    }


def _given() -> Json:
    wanted = _wanted()
    return {
        **wanted,
        "properties": {
            **wanted["properties"],
            "data": {"type": ["string", "null"]},
            "data_base64": {"type": ["string", "null"], "contentEncoding": "base64"},
            "content_type": {"type": ["string", "null"]},
        },
    }


def _batch(config: Config, item: Json) -> Json:
    return {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "array", "items": item, "maxItems": config.max_batch_items}
            }
        },
    }


def _get_many(config: Config) -> Json:
    objects = {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["key"],
            "properties": {
                "key": {"type": "string"},
                "result": {"const": "missing"},
                "etag": _TAGS,
                "modified_at": _DATE,
                "content_type": {"type": "string"},
                "data": {"type": "string"},
                "data_base64": {"type": "string", "contentEncoding": "base64"},
            },
        },
    }
    return {
        "operationId": "getMany",
        "summary": "Read a batch.",
        "requestBody": _batch(config, _wanted()),
        "responses": _responses(
            {
                "200": {
                    "description": "Those that are there.",
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "additionalProperties": {"type": "string"},
                            }
                        },
                        "application/vnd.poky.objects+json": {"schema": objects},
                    },
                },
                "406": _problem("A value is not text: ask for the objects media type."),
                "415": _text("Invalid Content-Type"),
            },
            body=True,
        ),
    }


def _change_many(config: Config, name: str, summary: str, item: Json, done: str) -> Json:
    results = ["inserted", "updated", "rejected"] if done == "inserted" else [done, "missing"]
    outcomes = {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["key", "result"],
            "properties": {
                "key": {"type": "string"},
                "result": {
                    "enum": [*results, "rejected"] if "rejected" not in results else results
                },
                "etag": _TAGS,
            },
        },
    }
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [
            _query("atomic", {"enum": ["true", "false"]}, "All or nothing: any rejected is 412.")
        ],
        "requestBody": _batch(config, item),
        "responses": _responses(
            {
                "200": _json("One outcome per item, by position.", outcomes),
                "412": _json("Atomic, and some were rejected: nothing changed.", outcomes),
                "415": _text("Invalid Content-Type"),
            },
            body=True,
        ),
    }


def _get_buckets(name: str) -> Json:
    bucket = {
        "type": "object",
        "required": ["name", "schema", "estimated_rows", "bytes"],
        "properties": {
            "name": {"type": "string"},
            "schema": {"enum": ["partitioned", "flat"]},
            "estimated_rows": {"type": "integer"},
            "bytes": {"type": "integer"},
        },
    }
    return {
        "operationId": name,
        "summary": "All buckets.",
        "responses": _responses(
            {
                "200": _json(
                    "By name.",
                    {
                        "type": "object",
                        "required": ["buckets"],
                        "properties": {"buckets": {"type": "array", "items": bucket}},
                    },
                )
            }
        ),
    }


def _get_help(name: str) -> Json:
    return {
        "operationId": name,
        "summary": "The table of routes and statuses.",
        "responses": {"200": _text("The table.")},
    }


def _get_openapi(name: str) -> Json:
    return {
        "operationId": name,
        "summary": "This document.",
        "responses": {"200": _json("The document.", {"type": "object"})},
    }


def _get_status(name: str) -> Json:
    status = {
        "type": "object",
        "required": ["release", "database", "schema", "inflight", "instance"],
        "properties": {
            "release": {"type": "string"},
            "database": {"enum": ["ok", "unavailable"]},
            "schema": {"enum": ["ok", "missing", "outdated", "newer", "unknown"]},
            "inflight": {"type": "integer", "minimum": 0},
            "instance": {"type": "string"},
        },
    }
    content = {
        "text/plain": {"schema": {"type": "string"}},
        "application/json": {"schema": status},
    }
    return {
        "operationId": name,
        "summary": "Whether this process can serve.",
        "parameters": [_query("verbose", {"type": "string"}, "Answer as JSON.")],
        "responses": {
            "200": {"description": "It can.", "content": content},
            "400": _problem("Bad input."),
            "503": {"description": "It cannot: the database is away.", "content": content},
        },
    }
