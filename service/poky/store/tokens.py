"""Tokens, public buckets, and the policy under which decisions about them hold."""

from collections.abc import Sequence
from typing import Any

from poky.store.pool import Pool
from poky.store.results import Credential, TokenRow
from poky.store.statements import EXECUTE


class Tokens(Pool):
    """What access control needs of the database. Changes return an outbox_id, or None."""

    def credential(self, token: str, bucket: str) -> Credential:
        """What the token of this id may do, whether the bucket is public, under which policy."""
        rows = self._read_freely(EXECUTE["credential"], (token, bucket))
        return Credential(*rows[0])

    def create_token(
        self, id: str, name: str, hash: str, grants: Sequence[str], expires_at: int | None
    ) -> int | None:
        """Create a token; StoreError 409 if there is one of that name."""
        return self._change(
            "SELECT poky.create_token(%s, %s, %s, %s::text[], %s)",
            id,
            name,
            hash,
            list(grants),
            expires_at,
        )

    def change_token(
        self,
        name: str,
        id: str | None,
        hash: str | None,
        grants: Sequence[str],
        expires_at: int | None,
    ) -> int | None:
        """Give a token other grants, another end, and unless None another id and secret."""
        return self._change(
            "SELECT poky.change_token(%s, %s, %s, %s::text[], %s)",
            name,
            id,
            hash,
            list(grants),
            expires_at,
        )

    def rotate_token(self, name: str, hash: str | None, keep_previous: bool) -> int | None:
        """Give a token another secret (None: the same one); StoreError 404."""
        return self._change("SELECT poky.rotate_token(%s, %s, %s)", name, hash, keep_previous)

    def revoke_token(self, name: str) -> int | None:
        """End a token for good; StoreError 404."""
        return self._change("SELECT poky.revoke_token(%s)", name)

    def publish_bucket(self, bucket: str, public_read: bool) -> int | None:
        """Let a bucket's objects be read without a token, or end that; StoreError 404."""
        return self._change("SELECT poky.publish_bucket(%s, %s)", bucket, public_read)

    def tokens(self) -> list[TokenRow]:
        """All tokens that are not revoked, by name."""
        rows = self._read_freely(
            "SELECT id, name, hash, grants, is_rotating, created_at, expires_at, last_used_on"
            " FROM poky.tokens()",
            (),
        )
        return [TokenRow(*row) for row in rows]

    def public_buckets(self) -> list[str]:
        """The names of the buckets that are read without a token."""
        return [row[0] for row in self._read_freely("SELECT poky.public_buckets()", ())]

    def touch_tokens(self, ids: Sequence[str]) -> None:
        """Record that these tokens were used today."""
        self._write_freely("SELECT poky.touch_tokens(%s)", (list(ids),))

    def _change(self, statement: str, *parameters: Any) -> int | None:
        outbox_id: int | None = self._write_freely(statement, parameters)[0][0]
        return outbox_id
