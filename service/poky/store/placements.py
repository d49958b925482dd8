"""Where buckets are: what control says of it, and what a shard is told."""

from typing import NamedTuple

from poky.store.pool import Pool


class Place(NamedTuple):
    """Which database has a bucket, under which id."""

    shard: int
    id: int
    settled: bool  #: whether it has been made there
    moving: bool  #: whether it changes its place just now


class ShardState(NamedTuple):
    """A database among several."""

    shard: int
    bytes: int
    buckets: int


class Placements(Pool):
    """The places of buckets; all but the last four are asked of control."""

    def place(self, bucket: str) -> Place | None:
        """Which database has a bucket; None: there is no such bucket."""
        rows = self._read_freely("SELECT shard, id, settled, moving FROM poky.place(%s)", (bucket,))
        return Place(*rows[0]) if rows else None

    def places(self) -> dict[str, int]:
        """The shard of every bucket that is settled, by name."""
        rows = self._read_freely("SELECT name, shard FROM poky.places() WHERE settled", ())
        return dict(rows)

    def place_bucket(self, bucket: str, shard: int) -> int:
        """The id under which a shard is to make a bucket; StoreError 421 if it has a place."""
        return int(self._write("SELECT poky.place_bucket(%s, %s)", (bucket, shard))[0][0])

    def settle_bucket(self, bucket: str, id: int, settled: bool) -> None:
        """Say that the shard has made the bucket, or is about to drop it; 503 while it moves."""
        self._write("SELECT poky.settle_bucket(%s, %s, %s)", (bucket, id, settled))

    def displace_bucket(self, bucket: str, id: int) -> None:
        """The shard has dropped the bucket."""
        self._write("SELECT poky.displace_bucket(%s, %s)", (bucket, id))

    def policy_tag(self) -> tuple[str, int]:
        """The tag of the policy, and when it was drawn, as a revision."""
        tag, revision = self._read_freely("SELECT tag, revision FROM poky.policy_tag()", ())[0]
        return str(tag), int(revision)

    def adopt_bucket(self, bucket: str, id: int) -> bool:
        """Make a bucket on a shard under control's id, unless it is there; whether it was made."""
        rows = self._write_freely("SELECT poky.adopt_bucket(%s, %s)", (bucket, id))
        return bool(rows[0][0])

    def adopt_policy(self, tag: str, revision: int) -> bool:
        """Have a shard go by control's policy, unless it knows a later one; whether that is new."""
        rows = self._write_freely("SELECT poky.adopt_policy(%s, %s)", (tag, revision))
        return bool(rows[0][0])

    def expect_caches(self) -> None:
        """Have a shard announce every change from now on."""
        self._write_freely("SELECT poky.expect_caches()", ())

    def shard_state(self) -> ShardState:
        """Which shard this database is, and how full."""
        rows = self._read_freely("SELECT shard, bytes, buckets FROM poky.shard_state()", ())
        return ShardState(*rows[0])
