"""Reading a request: names, query, dates, conditions, content type.

Each reader raises Refused with a sentence for the client. Knows nothing of PostgreSQL.
"""

import time
from collections.abc import Callable
from urllib.parse import parse_qsl

from poky.api import conditions
from poky.api.names import (
    CONTENT_CODINGS,
    check_bucket,
    check_content_encoding,
    check_content_type,
    check_key,
    default_content_type,
)
from poky.http import Environ, Refused, refuse, text

BAD_UNMODIFIED_SINCE = "Error in If-Unmodified-Since format. Use RFC 1123 date format."


def require_bucket(bucket: str) -> None:
    try:
        check_bucket(bucket)
    except ValueError as error:
        raise refuse(400, "bad_bucket_name", f"Choose another bucket: {error}.") from None


def require_key(key: str, what: str = "key", *, partial: bool = False) -> None:
    try:
        check_key(key + "-" if partial else key)
    except ValueError as error:
        raise refuse(400, "bad_key", f"Choose another {what}: {error}.") from None


def require_names(bucket: str, key: str) -> None:
    require_bucket(bucket)
    require_key(key)


def read_tags(environ: Environ, name: str, parse: Callable[[str], str]) -> str | None:
    """A condition in the words of `conditions`; 400 if it cannot be parsed, never ignored."""
    value = environ.get(name)
    if value is None:
        return None
    try:
        return parse(value)
    except ValueError:
        header = name.removeprefix("HTTP_").replace("_", "-").title()
        raise refuse(
            400,
            "bad_condition",
            f'{header} cannot be read: send *, or entity tags or an HTTP-date in "quotes".',
        ) from None


def read_tag_conditions(environ: Environ) -> tuple[str | None, str | None]:
    return (
        read_tags(environ, "HTTP_IF_MATCH", conditions.parse_if_match),
        read_tags(environ, "HTTP_IF_NONE_MATCH", conditions.parse_if_none_match),
    )


def read_unmodified_since(environ: Environ) -> int | None:
    value = environ.get("HTTP_IF_UNMODIFIED_SINCE")
    if value is None:
        return None
    try:
        return conditions.parse_date(value)
    except ValueError:
        raise Refused(text(BAD_UNMODIFIED_SINCE, 400)) from None


def is_modified_since(environ: Environ, modified_at: int) -> bool:
    """Whether If-Unmodified-Since of a read is false (RFC 9110 13.1.4); ignored if unreadable."""
    value = environ.get("HTTP_IF_UNMODIFIED_SINCE")
    if value is None:
        return False
    try:
        return modified_at > conditions.parse_date(value)
    except ValueError:
        return False


def is_unchanged(environ: Environ, unchanged_since: int) -> bool:
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


def cacheability(environ: Environ) -> str:
    """no-store for all but the canonical spelling of an object's URL, the one that is purged."""
    canonical = environ["REQUEST_URI"] == environ["PATH_INFO"]
    return "no-cache" if canonical else "no-store"


def read_content_type(environ: Environ, value: bytes) -> str:
    given: str = environ.get("CONTENT_TYPE", "").strip()
    if not given or given.lower().startswith("application/x-www-form-urlencoded"):
        return default_content_type(value)
    try:
        return check_content_type(given)
    except ValueError as error:
        raise refuse(400, "bad_content_type", f"Send another Content-Type: {error}.") from None


def read_content_encoding(environ: Environ) -> str | None:
    """The coding that the body is in; 415 for one that clients could not be expected to undo."""
    try:
        return check_content_encoding(environ.get("HTTP_CONTENT_ENCODING", "").strip())
    except ValueError as error:
        raise refuse_content_encoding(str(error)) from None


def refuse_content_encoding(why: str, accepted: str = ", ".join(CONTENT_CODINGS)) -> Refused:
    """415 that names the coding, with Accept-Encoding (RFC 9110 15.5.16)."""
    return refuse(
        415,
        "bad_content_encoding",
        f"Send the body in another Content-Encoding, {accepted} or none: {why}.",
        [("Accept-Encoding", accepted)],
    )


def read_query(environ: Environ, *known: str) -> dict[str, str]:
    """The query's parameters; 400 for unknown or repeated ones, which would be ignored."""
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
        raise refuse(
            400, "bad_query", "The query cannot be read: send name=value pairs in UTF-8."
        ) from None
    query = dict(pairs)
    unknown = sorted(set(query) - set(known))
    if unknown or len(query) < len(pairs):
        allowed = ", ".join(known) or "none"
        raise refuse(
            400,
            "bad_query",
            f"The query has a parameter too many; known here, once each: {allowed}.",
        )
    return query


def read_atomic(environ: Environ) -> bool:
    value = read_query(environ, "atomic").get("atomic", "false")
    if value not in ("true", "false"):
        raise refuse(400, "bad_query", "atomic is true or false.")
    return value == "true"
