"""The bytes of an answer: what a WSGI application returns, as HTTP/1.1 frames it."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from poky.http.answers import Headers
from poky.http.head import CONTROLS, Environ

Body = bytes | memoryview

_FRAMING: Final = frozenset(  # fields that the server sets, whatever the application says
    {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}
)


def compose(
    environ: Environ, status: str, headers: Headers, body: Body, stamp: str, keep: bool
) -> tuple[bytes, Body, bool]:
    """The head, the body (empty for HEAD, 204 and 304), and whether the connection is kept.

    ``stamp`` has the fields Date and Server. Raises ValueError for an answer that cannot be framed.
    """
    code, line = _status_line(status)
    declared = None
    parts = [line, stamp]
    for name, value in headers:
        lower = name.lower()
        if lower not in _FRAMING:
            parts.append(f"{name}: {value}\r\n")
        elif lower == "content-length":
            declared = value
        elif lower == "connection" and value.lower() == "close":
            keep = False
    if code in (204, 304):
        body = b""
    elif environ["REQUEST_METHOD"] == "HEAD":
        parts.append(f"Content-Length: {int(declared or len(body))}\r\n")
        body = b""
    else:
        if declared is not None and int(declared) != len(body):
            raise ValueError(f"Content-Length is {declared}, but the body has {len(body)}")
        parts.append(f"Content-Length: {len(body)}\r\n")
    if not keep:
        parts.append("Connection: close\r\n")
    elif environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        parts.append("Connection: keep-alive\r\n")
    head = "".join(parts).encode("latin-1")
    if len(head) - len(head.translate(None, CONTROLS)) != 2 * len(parts) + 2:
        raise ValueError("a control character in the head of the answer")
    return head + b"\r\n", body, keep


def compose_stream(status: str, headers: Headers, stamp: str, *, is_chunked: bool) -> bytes:
    """The head of an answer whose length is not known; the connection ends with it.

    Raises ValueError for one that cannot be framed.
    """
    parts = [_status_line(status)[1], stamp]
    parts += [f"{name}: {value}\r\n" for name, value in headers if name.lower() not in _FRAMING]
    if is_chunked:
        parts.append("Transfer-Encoding: chunked\r\n")
    parts.append("Connection: close\r\n")
    head = "".join(parts).encode("latin-1")
    if len(head) - len(head.translate(None, CONTROLS)) != 2 * len(parts) + 2:
        raise ValueError("a control character in the head of the answer")
    return head + b"\r\n"


@lru_cache(maxsize=128)
def _status_line(status: str) -> tuple[int, str]:
    """The number of a WSGI status, and its line in the answer."""
    code = int(status[:3])
    if not 200 <= code <= 599 or status[3:4] not in ("", " "):
        raise ValueError(f"not a final status: {status!r}")
    return code, f"HTTP/1.1 {status}\r\n"
