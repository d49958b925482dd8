"""`GET /`: what this is and where to go on, as a page for browsers and as text for the rest.

It says nothing of data, releases or machines: it is shown without a token.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from html import escape
from typing import NamedTuple

from poky.api.hosts import is_loopback, name_of
from poky.api.request import prefers
from poky.api.services import Services
from poky.config import url_of
from poky.http import Answer, Environ

_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_STYLE = """
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 44rem; margin: 3rem auto; padding: 0 1rem }
pre { padding: 1rem; overflow-x: auto; border: 1px solid; border-radius: .4rem }
dt { float: left; clear: left; min-width: 9rem }
"""
_HASH = b64encode(sha256(_STYLE.encode()).digest()).decode()
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)


class _Page(NamedTuple):
    """What a page says: its lines to paste are complete."""

    title: str
    what: str
    try_it: str
    lines: Sequence[str]
    links: Sequence[tuple[str, str]]  #: a path, and what is there


def get_welcome(services: Services, environ: Environ) -> Answer:
    """The first page of the main listener; its lines name the URL that the client used."""
    base = _base(environ)
    config = services.config
    curl = "curl" if config.access == "open" else 'curl -H "Authorization: Bearer $TOKEN"'
    lines = [
        f"{curl} -d 'Hello!' -X PUT {base}/kv/greetings/hello",
        f"{curl} -i {base}/kv/greetings/hello",
        f"{curl} {base}/kv/greetings",
    ]
    try_it = (
        "Try it, in a bucket that “poky bucket create greetings” makes on the service's machine:"
    )
    if _is_same_machine(environ):
        admin = url_of(config.admin_listen, config.admin_port)
        lines.insert(0, f"curl -X PUT {admin}/buckets/greetings")
        try_it = "Try it; the first line makes a bucket:"
    what = (
        "PUT stores a value under a key in a bucket, GET reads it. A read that starts after a write"
        " was acknowledged never returns an older value."
    )
    if config.access != "open":
        what += " Requests for objects need a token, which the operator makes (poky token create)."
    page = _Page(
        "Poky: buckets of objects over HTTP",
        what,
        try_it,
        lines,
        (
            ("/help", "all paths with their methods and statuses"),
            ("/openapi.json", "the same for programs: OpenAPI 3.1"),
            ("/status", "whether it can serve now"),
        ),
    )
    return _show(page, environ, base)


def get_admin_welcome(services: Services, environ: Environ) -> Answer:
    """The first page of the admin listener."""
    base = _base(environ)
    page = _Page(
        "Poky: the admin listener",
        "Buckets and metrics. Objects are on the main listener"
        f" ({url_of(services.config.listen, services.config.port)}).",
        "Make a bucket, and list all:",
        [f"curl -X PUT {base}/buckets/greetings", f"curl {base}/buckets"],
        (
            ("/help", "all paths with their methods and statuses"),
            ("/metrics", "for Prometheus"),
            ("/status", "whether it can serve now"),
        ),
    )
    return _show(page, environ, base)


def _show(page: _Page, environ: Environ, base: str) -> Answer:
    is_html = prefers(environ, "text/html", "text/plain")
    headers = [
        ("Content-Type", f"text/{'html' if is_html else 'plain'}; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Vary", "Accept"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", _POLICY),
        ("Referrer-Policy", "no-referrer"),
    ]
    shown = _html(page) if is_html else _text(page, base)
    return Answer("200 OK", headers, shown.encode())


def _html(page: _Page) -> str:
    lines = escape("\n".join(page.lines))
    links = "\n".join(
        f'<dt><a href="{path}">{path}</a></dt><dd>{escape(what)}</dd>' for path, what in page.links
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(page.title)}</h1>
<p>{escape(page.what)}</p>
<p>{escape(page.try_it)}</p>
<pre><code>{lines}</code></pre>
<p>Where to go on:</p>
<dl>
{links}
</dl>
</body>
</html>
"""


def _text(page: _Page, base: str) -> str:
    width = max(len(path) for path, _ in page.links)
    return "\n".join(
        [
            f"{page.title}.",
            "",
            *page.what.replace(". ", ".\n").splitlines(),
            "",
            page.try_it,
            "",
            *(f"  {line}" for line in page.lines),
            "",
            "Where to go on:",
            "",
            *(f"  {base}{path.ljust(width)}  {what}" for path, what in page.links),
            "",
        ]
    )


def _base(environ: Environ) -> str:
    """The URL by which the client came: nginx says it in fields of its own."""
    host = _name(environ, "HTTP_X_FORWARDED_HOST") or _name(environ, "HTTP_HOST")
    scheme = "https" if environ.get("HTTP_X_FORWARDED_PROTO") == "https" else "http"
    return f"{scheme}://{host}" if host else url_of(*_address(environ))


def _name(environ: Environ, field: str) -> str:
    value: str = environ.get(field, "")
    return value if _HOST.fullmatch(value) else ""


def _address(environ: Environ) -> tuple[str, int]:
    return environ["SERVER_NAME"], int(environ["SERVER_PORT"] or 80)


def _is_same_machine(environ: Environ) -> bool:
    """Whether the client came directly, from this machine: it may use the admin listener."""
    host = name_of(environ.get("HTTP_HOST", ""))
    forwarded = any(name.startswith(("HTTP_X_FORWARDED", "HTTP_VIA")) for name in environ)
    return not forwarded and is_loopback(host) and is_loopback(environ["REMOTE_ADDR"])
