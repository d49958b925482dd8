"""Tokens: ``poky_<id>_<secret>``, shown once; PostgreSQL keeps the SHA-256 of the secret.

Pure: makes, reads and compares; knows neither grants nor the store.
"""

import binascii
import hashlib
import hmac
import re
import secrets
import string
from base64 import b64decode
from collections.abc import Sequence
from typing import NamedTuple, Self

_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 12
_SECRET_LENGTH = 32  # 190 bits
_FORM = re.compile(rf"poky_([A-Za-z0-9]{{{_ID_LENGTH}}})_([A-Za-z0-9]{{{_SECRET_LENGTH}}})")
_ID = re.compile(rf"[A-Za-z0-9]{{{_ID_LENGTH}}}")
_HASH = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_CREDENTIALS_BYTES = 512


def check_name(name: str) -> None:
    """Raise ValueError, with a sentence, if no token can be called that."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"“{name}” is no name: use 1 to 128 characters of A-Z a-z 0-9 _ . @ -")


def are_id_and_hash(id: str, hash: str) -> bool:
    """Whether they have the form of what is kept of a token."""
    return bool(_ID.fullmatch(id) and _HASH.fullmatch(hash))


class Token(NamedTuple):
    """A token as a client holds it."""

    id: str
    secret: str

    @classmethod
    def create(cls, id: str | None = None) -> Self:
        """Draw a new token, or another secret for the token of this id."""
        return cls(id or _draw(_ID_LENGTH), _draw(_SECRET_LENGTH))

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read a token; None if it does not have the form of one."""
        match = _FORM.fullmatch(text)
        return cls(match[1], match[2]) if match else None

    @classmethod
    def from_authorization(cls, value: str) -> Self | None:
        """Read the field Authorization: Bearer (RFC 6750), or Basic with the token as password.

        None if there is no token in it (RFC 7617: user and password, joined by a colon, base 64).
        """
        scheme, _, credentials = value.partition(" ")
        credentials = credentials.strip(" ")
        if len(credentials) > _CREDENTIALS_BYTES:
            return None
        if scheme.lower() == "bearer":
            return cls.parse(credentials)
        if scheme.lower() == "basic":
            try:
                _, _, password = b64decode(credentials, validate=True).partition(b":")
                return cls.parse(password.decode("ascii"))
            except (binascii.Error, ValueError):
                return None
        return None

    @property
    def hash(self) -> str:
        """What is kept of the secret: its SHA-256, in hex."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    def is_one_of(self, hashes: Sequence[str]) -> bool:
        """Whether the secret is one of these, in a time that does not depend on which."""
        mine = self.hash
        found = False
        for each in hashes or ("",):
            found |= hmac.compare_digest(mine, each)
        return found

    def __str__(self) -> str:
        return f"poky_{self.id}_{self.secret}"

    def __repr__(self) -> str:
        return f"Token({self.id})"  # a secret must not reach a log by way of a traceback


def _draw(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
