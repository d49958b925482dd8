"""Parses the head of an HTTP/1.1 request from bytes into a WSGI environ. Does no input.

RFC 9112 leaves servers freedom with malformed requests; two servers that use it differently can be
played off against each other (request smuggling). This parser therefore refuses every head that
two parsers could read differently, with a sentence that says what to send.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

from poky.http.answers import Headers, Refused, refuse

__all__ = ["CONTROLS", "REQUEST_LINE_BYTES", "Environ", "Headers", "parse_head"]

Environ = dict[str, Any]

# What no head may hold, in or out, besides the CR LF at the end of each line.
CONTROLS: Final = bytes(set(range(0x20)) - {0x09} | {0x7F})
REQUEST_LINE_BYTES: Final = 8192

_REQUEST_LINE: Final = re.compile(r'([A-Z]{1,20}) ([!"$-~]+) HTTP/([0-9])\.([0-9])')
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
_ABSOLUTE: Final = re.compile(r"http://([^/?]*)(.*)", re.IGNORECASE)
# Not two hexadecimal digits, or an escaped control character.
_BAD_ESCAPE: Final = re.compile(r"%(?![2-9A-Fa-f][0-9A-Fa-f])|%7[Ff]")
_ESCAPE: Final = re.compile(r"%(?!2[Ff])([0-9A-Fa-f]{2})")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_FRAMING: Final = frozenset({"CONTENT_LENGTH", "TRANSFER_ENCODING", "HOST"})
_ONCE: Final = frozenset({"HTTP_HOST", "CONTENT_LENGTH", "CONTENT_TYPE"})


def parse_head(head: bytes, environ: Environ, max_headers: int = 100) -> tuple[int, bool, bool]:
    """Read a request's head, without its final empty line, into `environ` (PEP 3333).

    Returns the length of the body, whether the connection may be kept, and whether the client
    waits for "100 Continue". Raises `Refused`. `REQUEST_URI` is the target just as it was sent;
    `PATH_INFO` is decoded except for "%2F", which is a character of a name and not a separator.
    """
    lines = head.decode("latin-1").split("\r\n")
    if len(head) - len(head.translate(None, CONTROLS)) != 2 * len(lines) - 2:
        raise _malformed("Send no control characters, and end every line with CR LF.")
    if len(lines[0]) > REQUEST_LINE_BYTES:
        raise refuse(
            414, "head_too_large", f"Send a request line of at most {REQUEST_LINE_BYTES} bytes."
        )
    if len(lines) - 1 > max_headers:
        raise refuse(431, "head_too_large", f"Send at most {max_headers} header fields.")
    line = _REQUEST_LINE.fullmatch(lines[0])
    if line is None:
        raise _malformed("Send a request line of METHOD, target and HTTP/1.1, one space between.")
    method, target, major, minor = line.groups()
    environ["REQUEST_METHOD"] = method
    environ["REQUEST_URI"] = target
    if major != "1":
        raise refuse(505, "version_unsupported", "Send HTTP/1.1 or HTTP/1.0.")
    if minor != "0":
        minor = "1"  # RFC 9110, 2.5: a later minor version is answered as the latest known one
    environ["SERVER_PROTOCOL"] = f"HTTP/1.{minor}"

    for field in lines[1:]:
        name, colon, value = field.partition(":")
        key = _environ_key(name)
        if not colon:
            raise _malformed("Send header fields as name, colon, value.")
        value = value.strip(" \t")
        if key in environ:
            if key in _ONCE:
                raise _malformed(f"Send {name} only once.")
            value = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ', '}{value}"
        if key:
            environ[key] = value

    _read_target(target, environ)
    if "HTTP_TRANSFER_ENCODING" in environ:
        coding = environ["HTTP_TRANSFER_ENCODING"].lower()
        if coding != "chunked" or minor == "0" or "CONTENT_LENGTH" in environ:
            raise _malformed("Send Content-Length, and no Transfer-Encoding.")
        raise refuse(
            411,
            "length_required",
            "Send the body with Content-Length in place of Transfer-Encoding.",
        )
    if minor == "0" and method in ("PUT", "POST") and "CONTENT_LENGTH" not in environ:
        # RFC 1945, 7.2.2: its body would end with the connection, and pass for an empty one.
        raise refuse(411, "length_required", "Send Content-Length, also of an empty body.")
    length = environ.get("CONTENT_LENGTH", "0")
    if not _LENGTH.fullmatch(length):
        raise _malformed("Send Content-Length as one decimal number of bytes.")
    return int(length), _keeps(environ, minor), _expects(environ, minor)


def _malformed(detail: str) -> Refused:
    return refuse(400, "request_malformed", detail)


@lru_cache(maxsize=512)
def _environ_key(name: str) -> str:
    """The CGI variable of a header field; empty for a name to be ignored."""
    key = name.upper().replace("-", "_")
    if not _TOKEN.fullmatch(name) or ("_" in name and key in _FRAMING):
        raise _malformed("Send header names of letters, digits and hyphens, right before a colon.")
    if "_" in name:
        return ""  # CGI cannot tell it from a hyphen: X_Y would pass for X-Y (nginx drops it, too)
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else "HTTP_" + key


def _read_target(target: str, environ: Environ) -> None:
    """Check target and Host (RFC 9112, 3.2 and 3.3), set path and query."""
    host = environ.get("HTTP_HOST")
    if host is None:
        if environ["SERVER_PROTOCOL"] == "HTTP/1.1":
            raise _malformed("Send one Host header field.")
    elif not _HOST.fullmatch(host):
        raise _malformed("Send Host as a name or address, and optionally a colon and a port.")
    if target[0] != "/":
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None or not _HOST.fullmatch(absolute[1]):
            raise _malformed("Send a target which is a path that begins with a slash.")
        environ["HTTP_HOST"] = absolute[1]  # it wins over Host (RFC 9112, 3.2.2)
        target = absolute[2]
        if not target.startswith("/"):
            target = "/" + target
    path, _, environ["QUERY_STRING"] = target.partition("?")
    if "%" in target:
        if _BAD_ESCAPE.search(target):
            raise _malformed("Send a target without control characters, escaped as %XX or not.")
        path = _ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), path)
    environ["PATH_INFO"] = path


def _keeps(environ: Environ, minor: str) -> bool:
    """Whether the connection may serve another request (RFC 9112, 9.3)."""
    value = environ.get("HTTP_CONNECTION")
    if value is None:
        return minor == "1"
    options = {option.strip(" \t") for option in value.lower().split(",")}
    return "close" not in options and (minor == "1" or "keep-alive" in options)


def _expects(environ: Environ, minor: str) -> bool:
    """Whether the client waits for "100 Continue" (RFC 9110, 10.1.1)."""
    value = environ.get("HTTP_EXPECT")
    if value is None or minor == "0":
        return False
    if value.lower() != "100-continue":
        raise refuse(417, "expectation_unknown", "Send no Expect other than 100-continue.")
    return True


def path_of(environ: Environ) -> str:
    """The target of a request without its query, which must not be in a log."""
    path: str = environ["REQUEST_URI"].partition("?")[0]
    return path
