"""Reads of single objects: those that one turn has collected are asked for in one statement."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from poky.metrics import Sizes
from poky.sharing.lanes import Lane
from poky.sharing.stages import Stages
from poky.store import ALONE, Found, Held, Object, OneShard, Store, StoreError

log = logging.getLogger("poky.sharing")

LATE_SECONDS = 0.02  # a statement that takes longer waits for a lock
BEGIN_SECONDS = 2.0  # within which a read that is asked for alone begins, to end within five
LARGE_SECONDS = 1.0  # how long the objects of a bucket with large values are asked for alone
LOCKED_SECONDS = 5.0  # how long those of a bucket that was locked

Done = Callable[[Object | Exception | None], None]


class Read(NamedTuple):
    """An object that is asked for; ``done`` is called once, with the object, None or an error."""

    bucket: str
    key: str
    room: Callable[[int], None]  #: what Store.get calls before it fetches a large value
    policy: Held | None  #: what Store.held_policy said when access was decided
    since: float  #: when the request came, by time.monotonic()
    done: Done
    #: what Store.get asks which part of a large value is wanted
    select: Callable[[Object], tuple[int, int] | None] = lambda found: None


class Reads:
    """Collects reads per thread; ``after_turn`` asks for those of the thread that calls it.

    Large objects, and those of a bucket that is locked, are asked for alone, each kind in a lane.
    """

    def __init__(
        self,
        store: Store | OneShard,
        threads: int,
        stages: Stages | None = None,
        most: int = 0,
        sizes: Sizes | None = None,
    ) -> None:
        """``most``: threads that may wait for the database at a time, by default all."""
        self._store = store
        self._collected: dict[int, list[Read]] = {}
        # By thread: since when it asks, and for what; of each, the bucket comes first.
        self._running: dict[int, tuple[float, Sequence[Sequence[Any]]]] = {}
        self._most_late = threads - 1
        self._most = most or threads
        self._full = Lane("reads-full", 1, BEGIN_SECONDS)
        # Of one database among several: while it is slow, or away, no thread that serves the
        # others' clients as well waits for it.
        self._is_one_of_several = isinstance(store, OneShard)
        self._is_slow = False
        self._slow = Lane("reads-slow", self._most, BEGIN_SECONDS)
        self._large = Lane("reads-large", max(threads // 2, 1), BEGIN_SECONDS)
        self._parted = Lane("reads-parted", 1, BEGIN_SECONDS)
        self._locked = Lane("reads-locked", max(threads // 4, 1), BEGIN_SECONDS)
        self._apart: dict[str, tuple[float, Lane]] = {}  # by bucket: until when, and in which lane
        self._stages = stages  # who wants to know how long statements take
        self.sizes = sizes or Sizes()  #: of statements, in objects

    def add(self, read: Read) -> None:
        """Ask for an object after this turn of the calling thread."""
        self._collected.setdefault(threading.get_ident(), []).append(read)

    def at_once(self, bucket: str, key: str) -> Found:
        """The object, asked for by the calling thread: for a lone client, half the Python.

        ALONE: it has to be added, for others wait, or it is large. Raises StoreError.
        """
        if self._apart or self._running or self._is_slow:
            return ALONE
        me = threading.get_ident()
        self._running[me] = time.monotonic(), ((bucket, key),)
        self.sizes.add(me, 1)
        try:
            return self._store.get_small(bucket, key)
        except StoreError as error:
            self._is_slow = self._is_one_of_several and error.status == 503
            raise
        finally:
            began, _ = self._running.pop(me)
            if self._stages:
                self._stages.set(began, time.monotonic())

    def after_turn(self, alone: bool) -> None:
        """Ask for what the calling thread has collected. ``alone``: for one and the same client."""
        reads = self._collected.pop(threading.get_ident(), None)
        if not reads:
            return
        late = self._late()
        if self._apart or late:
            reads = self._set_apart(reads, late, alone)
        while reads:
            policy = reads[0].policy and reads[0].policy[0]
            others = [read for read in reads if (read.policy and read.policy[0]) != policy]
            if others:
                reads = [read for read in reads if read not in others]
            if self._is_slow:
                self._read_later(reads, policy, self._slow)
            elif len(self._running) < self._most:
                self._read(reads, policy)
            else:
                self._read_later(reads, policy, self._full)
            reads = others

    def _read_later(self, reads: list[Read], policy: str | None, lane: Lane) -> None:
        lane.submit(lambda: self._read(reads, policy), lambda error: _refuse(reads, error))

    def _late(self) -> set[str] | None:
        """Buckets whose statements take long."""
        if not self._running:
            return None
        since = time.monotonic() - LATE_SECONDS
        late = [reads for began, reads in tuple(self._running.values()) if began < since]
        return {read[0] for reads in late for read in reads}

    def _set_apart(self, reads: list[Read], late: set[str] | None, alone: bool) -> list[Read]:
        rest = []
        now = time.monotonic()
        are_many_late = len(self._running) >= self._most_late
        for read in reads:
            until, lane = self._apart.get(read.bucket, (0.0, self._locked))
            if late and (read.bucket in late or are_many_late):
                self._read_alone((read,), self._locked)
            elif until > now:
                if alone and lane is self._large:
                    self._read_one(read)
                elif lane is self._large and lane.is_busy:
                    rest.append(read)  # it may be a small one
                else:
                    self._read_alone((read,), lane)
            else:
                if until:
                    self._apart.pop(read.bucket, None)
                rest.append(read)
        return rest

    def _read(self, reads: list[Read], policy: str | None) -> None:
        me = threading.get_ident()
        self._running[me] = time.monotonic(), reads
        self.sizes.add(me, len(reads))
        is_away = False
        try:
            try:
                with self._store.under(policy, since=min(read.since for read in reads)):
                    found = self._store.get_each([(read.bucket, read.key) for read in reads])
            except StoreError as error:
                is_away = error.status == 503
                self._part(reads, error)
                return
            except Exception as error:
                _refuse(reads, error)
                return
        finally:
            began, _ = self._running.pop(me)
            if self._is_one_of_several:
                self._is_slow = is_away or time.monotonic() > began + LATE_SECONDS
        if self._stages:
            self._stages.set(began, time.monotonic())
        self._tell(reads, found)

    def _part(self, reads: list[Read], error: StoreError) -> None:
        """Ask bucket by bucket, for which of them is locked shows soon then."""
        if error.code == "policy_changed":
            self._read_alone(reads, self._parted)
            return
        buckets: dict[str, list[Read]] = {}
        for read in reads:
            buckets.setdefault(read.bucket, []).append(read)
        if len(buckets) == 1 or error.code != "database_slow":
            for read in reads:
                read.done(error)
            return
        log.info("asking for %d objects bucket by bucket after: %s", len(reads), error)
        self._parted.submit(
            lambda: self._read_buckets(buckets),
            lambda error: _refuse(reads, error),
        )

    def _read_buckets(self, buckets: dict[str, list[Read]]) -> None:
        for bucket, reads in buckets.items():
            try:
                policy = reads[0].policy and reads[0].policy[0]
                with self._store.under(policy, since=min(read.since for read in reads)):
                    found = self._store.get_each(
                        [(bucket, read.key) for read in reads], is_quick=True
                    )
            except StoreError as error:
                if error.code == "database_slow":
                    self._keep_apart(bucket, LOCKED_SECONDS, self._locked)
                    self._read_alone(reads, self._locked)
                else:
                    self._read_alone(reads, self._parted)
            else:
                self._tell(reads, found)

    def _tell(self, reads: list[Read], found: Sequence[object]) -> None:
        large = []
        for read, each in zip(reads, found, strict=True):
            if each is ALONE:
                large.append(read)
            else:
                read.done(each)  # type: ignore[arg-type]
        if large:
            self._read_alone(large, self._large)
            if 2 * len(large) > len(reads):
                for read in large:
                    self._keep_apart(read.bucket, LARGE_SECONDS, self._large)

    def _keep_apart(self, bucket: str, seconds: float, lane: Lane) -> None:
        if len(self._apart) >= 1000:
            self._apart.clear()
        self._apart[bucket] = time.monotonic() + seconds, lane

    def _read_alone(self, reads: Iterable[Read], lane: Lane) -> None:
        for read in reads:
            lane.submit(lambda read=read: self._read_one(read, lane), read.done)  # type: ignore[misc]

    def _read_one(self, read: Read, lane: Lane | None = None) -> None:
        """``lane``: the one whose thread calls; large values hold up none but their own."""
        began = time.monotonic() if self._stages else 0.0
        try:
            policy, renew = read.policy or (None, None)
            with self._store.under(policy, renew, read.since):
                found: Any
                if lane in (self._locked, self._parted):
                    found = self._store.get_small(read.bucket, read.key)
                    if found is ALONE:
                        self._read_alone((read,), self._large)
                        return
                else:
                    found = self._store.get(read.bucket, read.key, read.room, read.select)
        except Exception as error:
            if isinstance(error, StoreError) and error.code == "database_slow":
                self._keep_apart(read.bucket, LOCKED_SECONDS, self._locked)
            found = error
        if self._stages:
            self._stages.set(began, time.monotonic())
        read.done(found)


def _refuse(reads: list[Read], error: Exception) -> None:
    for read in reads:
        read.done(error)
