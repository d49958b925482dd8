"""Origins: which pages in browsers may write here, and which of other origins may read.

A browser sends a page's requests wherever the page says. It names the page's origin in Origin or
Sec-Fetch-Site, which no page can forge; what sends neither is no browser.
"""

from collections.abc import Collection
from typing import Any, Final

from poky.api.guard import Handler
from poky.http import Answer, Environ, Headers, Later, Refused, Reply, bare, refuse

_OWN_SITES: Final = frozenset({"same-origin", "none"})
_WRITING: Final = frozenset({"PUT", "POST", "DELETE"})

# What a page may send, and read of an answer, beyond what Fetch always allows.
_REQUEST_FIELDS: Final = (
    "Authorization, Content-Digest, Content-Encoding, Content-MD5, Content-Type, If-Match,"
    " If-Modified-Since, If-None-Match, If-Range, If-Unmodified-Since, Poky-TTL, Range,"
    " Repr-Digest, X-If-Match, X-Request-ID"
)
_ANSWER_FIELDS: Final = (
    "Accept-Encoding, Accept-Ranges, Allow, Cache-Status, Content-Encoding, Content-Range, Date,"
    " ETag, Poky-Expires, Poky-Outcome, Retry-After, WWW-Authenticate, X-Cache, X-Request-ID,"
    " X-Served-By"
)
_REMEMBERED_SECONDS: Final = 7200  # the most that browsers do


class Origins:
    """The origins that a listener is shared with, besides its own: ``*`` is every one."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        self._allowed = frozenset(allowed)
        self._any = "*" in allowed

    def __bool__(self) -> bool:
        return bool(self._allowed)

    def guarding(self, handler: Handler) -> Handler:
        """The handler of a method that writes; 403 for pages of origins that are not allowed."""

        def own(services: Any, environ: Environ, **names: Any) -> Answer | Later:
            if "HTTP_ORIGIN" in environ or "HTTP_SEC_FETCH_SITE" in environ:
                self._require_own(environ)
            return handler(services, environ, **names)

        return own

    def preflight(self, methods: Collection[str]) -> Handler:
        """The handler of OPTIONS: which methods and fields a page may use."""
        allow = ", ".join(sorted({*methods, "OPTIONS"}))

        def answer(environ: Environ, **_: str) -> Answer:
            self._require_own(environ)
            return bare(
                204,
                [
                    ("Allow", allow),
                    ("Access-Control-Allow-Methods", allow),
                    ("Access-Control-Allow-Headers", _REQUEST_FIELDS),
                    ("Access-Control-Max-Age", str(_REMEMBERED_SECONDS)),
                ],
            )

        return answer

    def fields(self, environ: Environ) -> Headers:
        """What lets an allowed page read the answer to this request; never with credentials."""
        if self._any:
            origin = "*"
        elif (origin := environ.get("HTTP_ORIGIN", "")) not in self._allowed:
            return [("Vary", "Origin")]
        fields = [
            ("Access-Control-Allow-Origin", origin),
            ("Access-Control-Expose-Headers", _ANSWER_FIELDS),
        ]
        return fields if self._any else [*fields, ("Vary", "Origin")]

    def _require_own(self, environ: Environ) -> None:
        if self._is_foreign(environ):
            raise refuse(
                403,
                "cross_site",
                "This comes from a page of another origin, which may not write here. The operator"
                " can allow the origin in POKY_CORS_ORIGINS.",
            )

    def _is_foreign(self, environ: Environ) -> bool:
        origin = environ.get("HTTP_ORIGIN")
        if self._any or origin in self._allowed:
            return False
        site = environ.get("HTTP_SEC_FETCH_SITE")
        if site is not None:
            return site not in _OWN_SITES
        return origin is not None and origin.lower() != _own(environ)


def writes(method: str) -> bool:
    """Whether pages of other origins may not use a method unasked.

    POST /multi reads, but a form can send it, and it has the server work.
    """
    return method in _WRITING


def share(answer: Answer, fields: Headers) -> Answer:
    """The answer with these fields."""
    return answer._replace(headers=[*answer.headers, *fields])


def share_later(later: Later, fields: Headers) -> Later:
    """The same for an answer that is completed later."""
    begin = later.begin

    def begin_shared(reply: Reply) -> None:
        try:
            begin(lambda answer: reply(answer and share(answer, fields)))
        except Refused as refused:
            raise Refused(share(refused.answer, fields)) from refused

    later.begin = begin_shared
    return later


def _own(environ: Environ) -> str:
    """The origin by which the client came: what is in front says it in fields of its own.

    A page that could set these fields for another origin has been allowed by a preflight.
    """
    scheme = environ.get("HTTP_X_FORWARDED_PROTO", "http")
    host = environ.get("HTTP_X_FORWARDED_HOST") or environ.get("HTTP_HOST", "")
    return f"{scheme}://{host}".lower()
