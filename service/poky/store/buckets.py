"""Buckets, and the state of the schema that holds them."""

from collections.abc import Sequence

from poky.store.pool import Pool
from poky.store.results import Bucket


class Buckets(Pool):
    """Create, list and drop buckets."""

    def buckets(self) -> list[Bucket]:
        """All buckets, by name."""
        rows = self._read(
            "SELECT name, kind, estimated_rows, bytes, default_ttl, changes_kept"
            " FROM poky.buckets() ORDER BY name",
            (),
        )
        return [Bucket(*row) for row in rows]

    def ensure_bucket(self, bucket: str) -> bool:
        """Create a bucket unless it is there; whether it was created."""
        return bool(self._write("SELECT poky.ensure_bucket(%s)", (bucket,))[0][0])

    def drop_bucket(self, bucket: str, keys: bool = False) -> int | None:
        """Drop a bucket, with its keys only if ``keys``; else StoreError 409 when it has any.

        The outbox_id, or None where no cache must hear of it.
        """
        rows = self._write("SELECT poky.drop_bucket(%s, %s)", (bucket, keys))
        return None if rows[0][0] is None else int(rows[0][0])

    def set_bucket_ttl(self, bucket: str, ttl: int) -> bool:
        """Give a bucket the ttl of objects written without one, 0: never; False if it had it."""
        return bool(self._write("SELECT poky.set_bucket_ttl(%s, %s)", (bucket, ttl))[0][0])

    def migrations(self) -> tuple[str, Sequence[str]]:
        """The kind of the schema and the names of its migrations; StoreError 503 without one."""
        kind, migrations, _ = self.serving()
        return kind, migrations

    def serving(self) -> tuple[str, Sequence[str], str]:
        """The same, and which server says so: its address and port, "socket" without one."""
        kind, migrations, server = self._read(
            "SELECT kind, migrations,"
            " coalesce(host(inet_server_addr()) || ':' || inet_server_port(), 'socket')"
            " FROM poky.status()",
            (),
        )[0]
        return kind, migrations or [], server
