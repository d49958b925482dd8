"""Names: which buckets, keys and content types there may be. Knows nothing else."""

import re
from functools import lru_cache

from poky.store import is_utf8

KEY_ALPHABET = "A-Z a-z 0-9 _ . , ~ : @ = + - /"
BUCKET_ALPHABET = "A-Z a-z 0-9 _ . , -"

BUCKET = re.compile(r"[A-Za-z0-9_.,-]{1,256}")
# Segments between single slashes, none of which a client would resolve (RFC 3986 5.2.4).
KEY = re.compile(
    r"(?!\.{1,2}(?:/|$))[A-Za-z0-9_.,~:@=+-]+(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9_.,~:@=+-]+)*"
)
KEY_LENGTH = 1024
_PREFIX = re.compile(r"[A-Za-z0-9_.,~:@=+/-]{0,1024}")
# Stored and sent back as they came: Poky neither encodes nor decodes.
CONTENT_CODINGS = ("br", "compress", "deflate", "gzip", "zstd")
_CODING_ALIASES = {"x-gzip": "gzip", "x-compress": "compress"}
#: the longest ttl, in seconds: 31 years
MOST_TTL = 1_000_000_000
_ESSENCE = re.compile(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+")
_ACTIVE = re.compile(r"text/html|multipart/.*|.*/(?:.*[+])?(?:xml|xsl|xslt)(?:-.*)?")
_CONTENT_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e\t]{0,254}")


def check_bucket(name: str) -> str:
    """The name, if it is a bucket's; else ValueError with a sentence naming the alphabet."""
    if not BUCKET.fullmatch(name) or name in (".", ".."):  # clients resolve these in paths
        raise ValueError(
            f"a bucket's name is 1 to 256 characters of {BUCKET_ALPHABET}, but not . or .."
        )
    return name


def check_key(name: str) -> str:
    """The name, if it is a key; else ValueError with a sentence naming the alphabet."""
    if len(name) > KEY_LENGTH or not KEY.fullmatch(name):
        raise ValueError(
            f"a key is 1 to 1024 characters of {KEY_ALPHABET}, with no slash at either end,"
            " no two in a row, and neither . nor .. between them"
        )
    return name


def check_prefix(text: str) -> str:
    """The text, if keys may begin with it or sort after it; else ValueError with a sentence."""
    if not _PREFIX.fullmatch(text):
        raise ValueError(f"keys have 1 to 1024 characters of {KEY_ALPHABET}")
    return text


def check_content_type(text: str) -> str:
    """The content type, if it can be sent back as a header field; else ValueError."""
    if not _CONTENT_TYPE.fullmatch(text):
        raise ValueError("a content type is 1 to 255 printable ASCII characters")
    return text


def check_content_encoding(text: str) -> str | None:
    """The content codings as they are stored, None for none; else ValueError (RFC 9110 8.4)."""
    names = [_CODING_ALIASES.get(name, name) for name in re.split(r"[ \t]*,[ \t]*", text.lower())]
    codings = [name for name in names if name not in ("", "identity")]
    for coding in codings:
        if coding not in CONTENT_CODINGS:
            raise ValueError(f"{coding[:40]!r} is not a content coding known here")
    return ", ".join(codings) or None


def check_ttl(seconds: int) -> int:
    """The seconds, if they are a ttl, 0 for never; else ValueError."""
    if not 0 <= seconds <= MOST_TTL:
        raise ValueError(f"a ttl is 1 to {MOST_TTL} seconds, or 0 for never")
    return seconds


@lru_cache(maxsize=256)
def is_active(content_type: str) -> bool:
    """Whether a browser might run what is in such a value: HTML, XML, SVG, or no plain type."""
    essence = content_type.partition(";")[0].strip(" \t").lower()
    return not _ESSENCE.fullmatch(essence) or bool(_ACTIVE.fullmatch(essence))


def default_content_type(value: bytes) -> str:
    """What a value without a content type is stored as: text if it is UTF-8, else bytes."""
    return "text/plain; charset=utf-8" if is_utf8(value) else "application/octet-stream"
