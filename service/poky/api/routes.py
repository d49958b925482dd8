"""The contract as tables: one row for each route of a listener.

A row names the handler and the right which a request needs; /help and /openapi.json show the rest.
"""

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from poky.api import admin, batches, buckets, changes, lease, objects, page, welcome
from poky.http import Answer, Later

Right = Literal["read", "write", "delete", "list", "admin", "none", "list,read"]


class Route(NamedTuple):
    """One row of the contract.

    ``does`` is what /help says of it. ``summary``: what OpenAPI says, if that is not the same.
    ``lane``: whose threads call the handler; without one it must not wait for anything.
    """

    methods: tuple[str, ...]
    path: str
    handler: Callable[..., Answer | Later]
    right: Right
    does: str
    statuses: str
    summary: str = ""
    lane: str = ""

    @property
    def takes_body(self) -> bool:
        """Whether the handler reads a body, after it has checked the head."""
        return "411" in self.statuses


GET = ("GET", "HEAD")

ROUTES = (
    Route(
        GET,
        "/",
        welcome.get_welcome,
        "none",
        "what this is, as a page or text",
        "200",
        "what this is and where to go on",
    ),
    Route(
        GET,
        "/kv/<bucket>/<key>",
        objects.get_object,
        "read",
        "the object, or a part: Range",
        "200 206 304 400 404 412 416",
    ),
    Route(
        ("PUT", "POST"),
        "/kv/<bucket>/<key>",
        objects.put_object,
        "write",
        "store the body",
        "200 400 404 411 412 413 415",
    ),
    Route(
        ("DELETE",),
        "/kv/<bucket>/<key>",
        objects.delete_object,
        "delete",
        "delete it",
        "200 400 404 412",
        "delete the object",
    ),
    Route(
        GET,
        "/kv/<bucket>",
        objects.list_objects,
        "list",
        "list keys: ?prefix= &after= &limit= &delimiter=/",
        "200 400 404",
        "a page of keys in order",
        lane="batch",
    ),
    Route(
        ("DELETE",),
        "/kv/<bucket>",
        batches.delete_prefix,
        "delete",
        "delete by prefix: ?prefix= &confirm=",
        "200 400 404",
        "delete keys by prefix",
        lane="batch",
    ),
    Route(
        GET,
        "/changes/<bucket>",
        changes.get_changes,
        "list,read",
        "changes: ?after= &prefix= &limit= &wait=",
        "200 400 404 410",
        "changes after a cursor, as they come",
    ),
    Route(
        ("POST",),
        "/multi/<bucket>",
        batches.get_many,
        "read",
        "read a batch",
        "200 400 404 406 411 413 415",
        lane="batch",
    ),
    Route(
        ("PUT",),
        "/multi/<bucket>",
        batches.put_many,
        "write",
        "store a batch: ?atomic=true",
        "200 400 404 411 412 413 415",
        lane="batch",
    ),
    Route(
        ("DELETE",),
        "/multi/<bucket>",
        batches.delete_many,
        "delete",
        "delete a batch: ?atomic=true",
        "200 400 404 411 412 413 415",
        lane="batch",
    ),
    Route(GET, "/buckets", buckets.get_buckets, "list", "all buckets", "200", lane="batch"),
    Route(
        ("PUT",),
        "/buckets/<bucket>",
        buckets.ensure_bucket_by_token,
        "admin",
        "create a bucket (with tokens)",
        "200 400 403",
    ),
    Route(
        ("DELETE",),
        "/buckets/<bucket>",
        buckets.drop_bucket_by_token,
        "admin",
        "drop a bucket: ?keys=drop (with tokens)",
        "200 400 403 404 409",
    ),
    Route(
        GET,
        "/status",
        admin.get_status,
        "none",
        "ok, or ?verbose as JSON",
        "200",
        "whether this process can serve",
        lane="status",
    ),
    Route(
        GET, "/help", admin.get_help, "none", "this text", "200", "the table of routes and statuses"
    ),
    Route(
        GET,
        "/openapi.json",
        admin.get_openapi,
        "none",
        "this as OpenAPI 3.1",
        "200",
        "this document",
    ),
)

ADMIN_ROUTES = (
    Route(
        GET,
        "/",
        page.get_overview,
        "none",
        "how all of it is, as a page; or where to go on",
        "200",
        lane="page",
    ),
    Route(
        GET,
        "/browse",
        page.get_bucket_page,
        "none",
        "a bucket's keys as a page: ?bucket= &prefix= &after=",
        "200 400 403 404",
        lane="page",
    ),
    Route(
        GET,
        "/browse/object",
        page.get_object_page,
        "none",
        "an object as a page: ?bucket= &key=",
        "200 400 403 404",
        lane="page",
    ),
    Route(GET, "/buckets", buckets.get_buckets, "list", "all buckets", "200", lane="batch"),
    Route(
        ("PUT",),
        "/buckets/<bucket>",
        buckets.ensure_bucket,
        "admin",
        "create a bucket",
        "200 400",
        lane="admin",
    ),
    Route(
        ("DELETE",),
        "/buckets/<bucket>",
        buckets.drop_bucket,
        "admin",
        "drop a bucket: ?keys=drop if it has any",
        "200 400 404 409",
        lane="admin",
    ),
    Route(GET, "/metrics", admin.get_metrics, "none", "metrics for Prometheus", "200"),
    Route(
        GET, "/status", admin.get_status, "none", "ok, or ?verbose as JSON", "200", lane="status"
    ),
    Route(GET, "/help", admin.get_help, "none", "this text", "200"),
)

LEASE_ROUTES = (
    Route(GET, "/lease", lease.get_lease, "none", "a lease", "200 403"),
    Route(("DELETE",), "/lease", lease.delete_lease, "none", "a cache has ended", "200 403"),
    Route(
        GET,
        "/access/<bucket>",
        lease.get_access,
        "none",
        "may this be read",
        "200 401 403",
        lane="access",
    ),
)


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
