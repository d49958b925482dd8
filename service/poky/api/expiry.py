"""When an object expires, as clients and caches are told."""

from typing import Final

from poky.api.conditions import format_date
from poky.http import Environ, refuse
from poky.store import Object

#: the header, for everybody
EXPIRES: Final = "Poky-Expires"
#: what is left, in seconds, for the cache; it counts from when it asked
LEFT: Final = "Poky-Left"


def show_expiry(found: Object) -> list[tuple[str, str]]:
    """The header fields of an object that expires; of any other none."""
    if found.expires_at is None:
        return []
    left = max(found.milliseconds_left or 0, 0)
    return [
        (EXPIRES, format_date(found.expires_at)),
        (LEFT, f"{left // 1000}.{left % 1000:03}"),
    ]


def show_expires(expires_at: int | None) -> dict[str, str]:
    """The same as a field of JSON."""
    return {} if expires_at is None else {"expires": format_date(expires_at)}


def require_knowing_cache(environ: Environ) -> None:
    """Refuse an object that expires to a cache of a release that would keep it for longer: 503."""
    if (
        environ.get("HTTP_HOST") == "poky"  # as poky.vcl names the service
        and "HTTP_X_VARNISH" in environ
        and environ.get("HTTP_POKY_CACHE") != "expiry"
    ):
        raise refuse(
            503,
            "cache_outdated",
            "This object expires, and the cache before the service is of a release that would keep"
            " it for longer. Deploy this release to the caches.",
        )
