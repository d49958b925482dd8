"""Answers: what a handler returns, and how a refusal looks (RFC 9457).

Knows HTTP's shapes; knows nothing of objects, PostgreSQL or caches.
"""

from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec

Headers = list[tuple[str, str]]

#: Codes of the refusals that need no application, and what they mean. Programs compare codes,
#: never sentences: a code keeps its meaning, and is never reused for another.
CODES = {
    "body_incomplete": "The body is shorter than its Content-Length; nothing was stored.",
    "body_too_large": "The body is larger than any that is read.",
    "expectation_unknown": "An Expect other than 100-continue.",
    "head_too_large": "The request line or the header block is too large.",
    "internal_error": "A defect of the service; the operator finds it in the log.",
    "length_required": "The body has no Content-Length.",
    "overloaded": "Too many connections, or too many bytes in flight. Try again shortly.",
    "request_malformed": "Not a request as RFC 9110 and 9112 have it, or one of two meanings.",
    "request_too_slow": "The head or the body took too long to arrive.",
    "version_unsupported": "A version of HTTP other than 1.x.",
}


class Answer(NamedTuple):
    """A complete answer: status line without the version, header fields, body."""

    status: str
    headers: Headers
    body: Any = b""  #: bytes, a memoryview, or of an answer that comes later also a `Stream`


class Refused(Exception):
    """A request that gets this answer instead of what it asked for."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def refuse(status: int, code: str, detail: str, headers: Headers | None = None) -> Refused:
    """A refusal as problem details: ``detail`` is one sentence that says what to do."""
    return Refused(problem(status, code, detail, headers))


def too_slow() -> Refused:
    """The refusal of a request that does not arrive."""
    return refuse(408, "request_too_slow", "Send the whole request without long pauses.")


def defect() -> Refused:
    """The refusal in place of an answer that could not be made."""
    return refuse(500, "internal_error", "Try again, and tell the operator if it fails again.")


def problem(status: int, code: str, detail: str, headers: Headers | None = None) -> Answer:
    """Problem details (RFC 9457) with a ``code`` for programs; 503 says when to come back.

    Never stored by a cache. docs/http-api.md lists the codes.
    """
    title = HTTPStatus(status).phrase
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail,
    }
    fields = [("Content-Type", "application/problem+json"), ("Cache-Control", "no-store")]
    if status == 503:
        fields.append(("Retry-After", "1"))
    return Answer(f"{status} {title}", fields + (headers or []), msgspec.json.encode(body))


def bare(status: int, headers: Headers | None = None) -> Answer:
    """A refusal with an empty body, never stored by a cache."""
    return Answer(
        f"{status} {HTTPStatus(status).phrase}",
        [("Cache-Control", "no-store"), *(headers or [])],
    )


def text(body: str, status: int = 200) -> Answer:
    """Plain text, never stored by a cache."""
    return Answer(
        f"{status} {HTTPStatus(status).phrase}",
        [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")],
        body.encode(),
    )


def json(body: Any, status: int = 200, content_type: str = "application/json") -> Answer:
    """JSON, never stored by a cache."""
    return Answer(
        f"{status} {HTTPStatus(status).phrase}",
        [("Content-Type", content_type), ("Cache-Control", "no-store")],
        msgspec.json.encode(body),
    )
