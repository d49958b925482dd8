"""Reading a request: names, query, dates, conditions, content type.

Each reader raises Refused with a sentence for the client. Knows nothing of PostgreSQL.
"""

import hashlib
import re
import time
from base64 import b64encode
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import parse_qsl

from poky.api import conditions
from poky.api.names import (
    CONTENT_CODINGS,
    MOST_TTL,
    check_bucket,
    check_content_encoding,
    check_content_type,
    check_key,
    check_prefix,
    check_ttl,
)
from poky.http import Environ, Refused, refuse, text
from poky.store import Expiry

_DIGESTS = {"Content-Digest": "HTTP_CONTENT_DIGEST", "Repr-Digest": "HTTP_REPR_DIGEST"}
_BYTE_SEQUENCE = re.compile(":([A-Za-z0-9+/=]*):(?:[ \t]*;.*)?")
# Of the header Digest, which came before them (RFC 3230; RFC 5843).
_OLDER_DIGESTS = {"md5": "md5", "sha": "sha1", "sha-256": "sha256", "sha-512": "sha512"}
_DICTIONARY_MEMBER = re.compile(r"[a-z*][a-z0-9_.*-]*=.*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_SECONDS = re.compile("[0-9]{1,20}")
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")

BAD_UNMODIFIED_SINCE = "Error in If-Unmodified-Since format. Use RFC 1123 date format."


def require_bucket(bucket: str) -> None:
    try:
        check_bucket(bucket)
    except ValueError as error:
        raise refuse(400, "bad_bucket_name", f"Choose another bucket: {error}.") from None


def require_key(key: str) -> None:
    try:
        check_key(key)
    except ValueError as error:
        raise refuse(400, "bad_key", f"Choose another key: {error}.") from None


def require_prefix(text: str, what: str) -> None:
    """Refuse what no key begins with, or sorts after."""
    try:
        check_prefix(text)
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


def read_content_type(environ: Environ) -> str | None:
    """The Content-Type to store; None without one, or with the one that curl invents."""
    given: str = environ.get("CONTENT_TYPE", "").strip()
    if not given or given.lower().startswith("application/x-www-form-urlencoded"):
        return None
    try:
        return check_content_type(given)
    except ValueError as error:
        raise refuse(400, "bad_content_type", f"Send another Content-Type: {error}.") from None


def read_content_encoding(environ: Environ) -> str | None:
    """The coding that the body is in; 415 for one that clients could not be expected to undo."""
    value = environ.get("HTTP_CONTENT_ENCODING")
    if value is None:
        return None
    try:
        return check_content_encoding(value.strip())
    except ValueError as error:
        raise refuse_content_encoding(str(error)) from None


def read_ttl(environ: Environ) -> Expiry | None:
    """What Poky-TTL says, None without it; 400 if it cannot be read, never ignored."""
    value = environ.get("HTTP_POKY_TTL")
    if value is None:
        return None
    try:
        if not _SECONDS.fullmatch(value):
            raise ValueError
        return Expiry(check_ttl(int(value)))
    except ValueError:
        raise refuse(
            400,
            "bad_ttl",
            f"Poky-TTL is a whole number of seconds from 1 to {MOST_TTL}, or 0 for never.",
        ) from None


def refuse_content_encoding(why: str, accepted: str = ", ".join(CONTENT_CODINGS)) -> Refused:
    """415 that names the coding, with Accept-Encoding (RFC 9110 15.5.16)."""
    return refuse(
        415,
        "bad_content_encoding",
        f"Send the body in another Content-Encoding, {accepted} or none: {why}.",
        [("Accept-Encoding", accepted)],
    )


def body_bytes(environ: Environ) -> int:
    """The length of the body, which may not have come yet."""
    return int(environ.get("CONTENT_LENGTH", 0))


def read_body(environ: Environ) -> bytes:
    """The whole body; 400 if a digest that came with it does not match."""
    body: bytes = environ.pop("wsgi.input").read()  # the only reference
    if "HTTP_CONTENT_MD5" in environ:
        _check_digest("Content-MD5", "md5", environ["HTTP_CONTENT_MD5"], body)
    for part in environ.get("HTTP_DIGEST", "").split(","):
        name, _, value = part.strip(" \t").partition("=")
        if name.lower() in _OLDER_DIGESTS:
            _check_digest("Digest", _OLDER_DIGESTS[name.lower()], value, body)
    for header, variable in _DIGESTS.items():
        if variable not in environ:
            continue
        for part in environ[variable].split(","):
            name, _, value = part.strip(" \t").partition("=")
            if name in ("sha-256", "sha-512"):  # RFC 9530: others are ignored
                match = _BYTE_SEQUENCE.fullmatch(value)
                _check_digest(header, name.replace("-", ""), match[1] if match else "", body)
            elif part.strip(" \t") and not _DICTIONARY_MEMBER.fullmatch(part.strip(" \t")):
                raise refuse(400, "digest_mismatch", f"{header} cannot be read (RFC 9530).")
    return body


def _check_digest(header: str, algorithm: str, given: str, body: bytes) -> None:
    made = b64encode(hashlib.new(algorithm, body, usedforsecurity=False).digest()).decode()
    if given.strip(" \t") != made:
        raise refuse(
            400, "digest_mismatch", f"The body does not match its {header}: send it again."
        )


def require_whole(environ: Environ) -> None:
    """Refuse Content-Range on a write (RFC 9110 14.5): the part would replace the whole."""
    if "HTTP_CONTENT_RANGE" in environ:
        raise refuse(400, "partial_write", "Send the whole value, without Content-Range.")


def prefers(environ: Environ, media_type: str, default: str) -> bool:
    """Whether Accept names ``media_type`` and ranks it no lower than ``default``.

    RFC 9110 12.5.1; a range with a weight that cannot be read is ignored.
    """
    accept = environ.get("HTTP_ACCEPT", "").lower()
    if media_type not in accept:
        return False
    weights = _accepted(accept)
    kind, _, _ = default.partition("/")
    of_default = weights.get(default, weights.get(f"{kind}/*", weights.get("*/*", 0.0)))
    return weights.get(media_type, 0.0) > 0 and weights[media_type] >= of_default


@lru_cache(maxsize=128)
def _accepted(accept: str) -> dict[str, float]:
    """The weight of each media range of a field in lower case."""
    weights = {}
    for part in _QUOTED.sub('""', accept).split(","):
        media_range, *parameters = (each.strip(" \t") for each in part.split(";"))
        weight = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        if _WEIGHT.fullmatch(weight):
            weights[media_range] = float(weight)
    return weights


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
