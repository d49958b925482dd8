"""Reads and writes of buckets in several databases: each database has its own of both.

So a database that is slow, or does not answer, holds up nothing of the others. A bucket that this
process has not asked for yet is looked up in a lane first.
"""

from collections.abc import Callable

from poky.sharing.lanes import PATIENCE_SECONDS, Lane, Refuse, Work
from poky.sharing.reads import BEGIN_SECONDS, Read, Reads
from poky.sharing.stages import Stages
from poky.sharing.writes import Caches, Writes, Writing
from poky.store import ALONE, CONTROL, Found, ShardedStore, Store, StoreError


def open_lane(store: Store, name: str, threads: int, patience: float = PATIENCE_SECONDS) -> Lane:
    """A lane over one database, or over several."""
    if isinstance(store, ShardedStore):
        return ShardedLane(name, threads, store, patience)
    return Lane(name, threads, patience)


def open_sharing(
    store: Store, caches: Caches, threads: int, stages: Stages | None = None
) -> tuple[Reads, Writes]:
    """The reads and writes over one database or over several."""
    if isinstance(store, ShardedStore):
        return (
            ShardedReads(store, threads, stages),
            ShardedWrites(store, caches, threads, stages),
        )
    return Reads(store, threads, stages), Writes(store, caches, threads, stages)


class ShardedLane(Lane):
    """A lane for each database: work that waits for one of them delays none of the others'."""

    def __init__(self, name: str, threads: int, store: ShardedStore, patience: float) -> None:
        super().__init__(name, threads, patience)
        self._map = store
        self._shards = {
            number: Lane(f"{name}-{number}", threads, patience) for number in store.shards
        }

    def submit(
        self, work: Work, refuse: Refuse, bucket: str = "", shard: int | None = None
    ) -> None:
        """As of a Lane; buckets that this process has not asked for yet have one of their own."""
        number = self._map.known_shard(bucket) if shard is None else shard
        if number in self._shards:
            self._shards[number].submit(work, refuse, bucket)
        else:
            super().submit(work, refuse, bucket)


class ShardedReads(Reads):
    """Reads over several databases; at most half of the threads wait for one of them."""

    def __init__(self, store: ShardedStore, threads: int, stages: Stages | None = None) -> None:
        super().__init__(store, threads, stages)
        self._map = store
        most = max(threads // 2, 1)
        self._shards = {
            number: Reads(store.one(number), threads, stages, most, self.sizes)
            for number in store.shards
        }
        self._unknown = Lane("reads-unknown", most, BEGIN_SECONDS)

    def add(self, read: Read) -> None:
        """Ask for an object after this turn of the calling thread."""
        number = self._map.known_shard(read.bucket)
        if number in self._shards:
            self._shards[number].add(read)
        else:
            self._read_alone((read,), self._unknown)

    def at_once(self, bucket: str, key: str) -> Found:
        """As of Reads; ALONE also for a bucket that has to be looked up."""
        number = self._map.known_shard(bucket)
        return self._shards[number].at_once(bucket, key) if number in self._shards else ALONE

    def after_turn(self, alone: bool) -> None:
        """Ask for what the calling thread has collected."""
        for reads in self._shards.values():
            reads.after_turn(alone)


class ShardedWrites(Writes):
    """Writes over several databases."""

    def __init__(
        self, store: ShardedStore, caches: Caches, threads: int, stages: Stages | None = None
    ) -> None:
        super().__init__(store, caches, threads, stages)
        self._map = store
        self._shards = {
            number: Writes(store.one(number), caches, threads, stages, self.sizes)
            for number in store.shards
        }
        self._unknown = Lane("writes-unknown", max(threads // 2, 1), BEGIN_SECONDS)

    def add(self, writing: Writing) -> None:
        """Have a write made after this turn of the calling thread."""
        number = self._map.known_shard(writing.write.bucket)
        if number in self._shards:
            self._shards[number].add(writing)
        else:
            self._unknown.submit(self._adding(writing), writing.done)

    def _adding(self, writing: Writing) -> Callable[[], None]:
        def add() -> None:
            try:
                with self._map.under(None, since=writing.since):
                    number = self._map.find_shard(writing.write.bucket)
            except StoreError as error:
                writing.done(error)
                return
            # Where the settings name no such shard, control's refusal leads to who says so.
            writes = self._shards.get(number, self._shards[CONTROL])
            writes.add(writing)
            writes.after_turn(False)

        return add

    def after_turn(self, alone: bool) -> None:
        """See to it that what is queued is written."""
        for writes in self._shards.values():
            writes.after_turn(alone)

    def late(self) -> None:
        """As of Writes, for each database."""
        for writes in self._shards.values():
            writes.late()
