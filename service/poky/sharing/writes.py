"""Writes of single objects: what arrives while a statement is under way shares the next one.

One thread writes: all that is queued, at most 64 objects or 256 kB, in one statement and one
commit, then one look at the cache nodes, one exchange with them, and then the answers, as long as
there is more. A second one writes while few writes are under way. A lone client's write is done at
once by the thread that brought it. While a statement waits for a lock, another thread writes what
comes meanwhile.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from poky.metrics import Sizes
from poky.sharing.lanes import Lane
from poky.sharing.stages import Stages
from poky.store import Held, OneShard, Put, Store, StoreError, Together, Write

log = logging.getLogger("poky.sharing")

MOST_WRITES = 64
MOST_BYTES = 262_144
# While so few are under way, a second thread writes: to wait for the disk takes longer than the
# work that they would share.
FEW_WRITES = 6
FEW_WRITERS = 2
LARGE_BYTES = 32_768  # a larger value is written alone
LATE_SECONDS = 0.02  # a statement that takes longer waits for a lock, or for the disk
TOGETHER_SECONDS = 0.2  # how long a statement of several may wait for a lock
ALONE_SECONDS = 0.02  # and each of them when it is made alone for the first time
QUEUED_SECONDS = 4.0  # after which a change that was not begun is refused
LOCKED_SECONDS = 5.0  # how long an object that was locked is written apart

Done = Callable[[Put | Exception], None]


class Caches(Protocol):
    """The caches, as writes need them."""

    def purge_each(
        self,
        objects: Sequence[tuple[str, str]],
        outbox_ids: Sequence[int],
        done: Callable[[StoreError | None], None],
    ) -> None:
        """Call ``done`` when no cache can give an older value of these objects any more."""


class Writing:
    """A write, and what to do with its outcome: ``done`` is called once."""

    __slots__ = ("done", "policy", "since", "write")

    def __init__(self, write: Write, policy: Held | None, done: Done) -> None:
        self.write = write
        self.policy = policy  #: what Store.held_policy said when access was decided
        self.done = done
        self.since = time.monotonic()


class Writes:
    """Makes writes, those that arrive together together. The order of each: commit, caches, answer.

    Large values, and objects that are locked, are written alone, each kind in a lane of its own.
    """

    def __init__(
        self,
        store: Store | OneShard,
        caches: Caches,
        threads: int,
        stages: Stages | None = None,
        sizes: Sizes | None = None,
    ) -> None:
        self._store = store
        self._is_one_of_several = isinstance(store, OneShard)
        self._caches = caches
        self._most_writers = max(threads - 1, 2)
        self._lane = Lane("writes", self._most_writers)
        self._large = Lane("writes-large", max(threads // 2, 1))
        self._parted = Lane("writes-parted", 1)
        self._locked = Lane("writes-locked", max(threads // 2, 1))
        self._queue: deque[Writing] = deque()
        self._lock = threading.Lock()
        # By thread that writes: since when it has been at its statement, and how many are in that.
        self._began: dict[int, tuple[float, int]] = {}
        self._begun = 0
        self._apart: dict[tuple[str, str], float] = {}
        self._stages = stages  # who wants to know how long statements take
        self.sizes = sizes or Sizes()  #: of statements, in objects

    def add(self, writing: Writing) -> None:
        """Have a write made after this turn of the calling thread."""
        write = writing.write
        if write.size > LARGE_BYTES:
            self._write_alone(writing, self._large)
        elif self._apart and self._apart.get(write[:2], 0.0) > time.monotonic():
            self._write_alone(writing, self._locked)
        else:
            self._queue.append(writing)

    def after_turn(self, alone: bool) -> None:
        """See to it that what is queued is written. ``alone``: for one and the same client."""
        if not self._queue:
            return
        with self._lock:
            count = len(self._began) + self._begun
            if count and (count >= FEW_WRITERS or self._under_way() > FEW_WRITES):
                return
            me = threading.get_ident()
            if alone and not count and len(self._queue) == 1:
                self._began[me] = time.monotonic(), 1
                batch = [self._queue.popleft()]
            else:
                self._begun += 1
                batch = []
        if batch:
            self._make(batch)
            self._go_on(me)
        else:
            self._lane.submit(self._begin, self._refuse_all)

    def _under_way(self) -> int:
        return len(self._queue) + sum(count for _, count in self._began.values())

    def late(self) -> None:
        """Have another thread write what is queued if all that do take long.

        What none of them has taken in four seconds is refused.
        """
        if not self._queue:
            return
        self._refuse_old(time.monotonic() - QUEUED_SECONDS)
        with self._lock:
            count = len(self._began) + self._begun
            latest = max((since for since, _ in self._began.values()), default=0.0)
            if self._begun or count >= self._most_writers:
                return
            if self._began and latest > time.monotonic() - LATE_SECONDS:
                return
            self._begun += 1
        self._lane.submit(self._begin, self._refuse_all)

    def _refuse_old(self, oldest: float) -> None:
        refused = []
        with self._lock:
            while self._queue and self._queue[0].since <= oldest:
                refused.append(self._queue.popleft())
        for writing in refused:
            writing.done(_busy())

    def _begin(self) -> None:
        me = threading.get_ident()
        with self._lock:
            self._begun -= 1
            self._began[me] = time.monotonic(), 0
        while batch := self._take(me):
            self._make(batch)

    def _go_on(self, me: int) -> None:
        """Leave what has come meanwhile to the lane: the calling thread looks for clients."""
        with self._lock:
            self._began.pop(me, None)
            if not self._queue or self._began or self._begun:
                return
            self._begun += 1
        self._lane.submit(self._begin, self._refuse_all)

    def _take(self, me: int) -> list[Writing]:
        """What is queued, as far as one statement takes it. Empty: the thread no longer writes."""
        queue = self._queue
        oldest = time.monotonic() - QUEUED_SECONDS
        batch: list[Writing] = []
        refused: list[Writing] = []
        size = 0
        with self._lock:
            while queue and len(batch) < MOST_WRITES:
                size += queue[0].write.size
                if batch and (size > MOST_BYTES or _policy(queue[0]) != _policy(batch[0])):
                    break
                writing = queue.popleft()
                (batch if writing.since > oldest else refused).append(writing)
            if batch:
                self._began[me] = time.monotonic(), len(batch)
            else:
                self._began.pop(me, None)
        for writing in refused:
            writing.done(_busy())
        return batch

    def _refuse_all(self, error: StoreError) -> None:
        with self._lock:
            self._begun -= 1
            refused = list(self._queue)
            self._queue.clear()
        for writing in refused:
            writing.done(error)

    def _make(self, batch: list[Writing], lock_timeout: float | None = None) -> None:
        """Write, purge, and have the answers sent; whatever happens, each is told once."""
        began = time.monotonic() if self._stages else 0.0
        batch.sort(key=lambda writing: writing.write[:2])
        self.sizes.add(threading.get_ident(), len(batch))
        try:
            held = batch[0].policy or (None, None)
            renew = held[1] if len(batch) == 1 else None
            with self._store.under(held[0], renew, min(each.since for each in batch)):
                outcomes = self._store.change_each(
                    [writing.write for writing in batch],
                    TOGETHER_SECONDS if len(batch) > 1 else lock_timeout,
                )
        except Together as error:
            self._part(batch, error)
        except StoreError as error:
            self._fail(batch, error)
        except Exception as error:
            if len(batch) == 1 and batch[0].policy is not None:  # decided anew, and refused
                batch[0].done(error)
                return
            log.exception("a statement of %d changes failed", len(batch))
            self._fail(
                batch, StoreError(503, "The service failed.", code="outcome_unknown", unknown=True)
            )
        else:
            self._tell(batch, outcomes, began)

    def _part(self, batch: list[Writing], error: Together) -> None:
        """Write each alone: first those that no lock is in the way of."""
        if len(batch) == 1:
            self._keep_apart(batch[0])
            self._write_alone(batch[0], self._locked)
            return
        log.info("making %d changes one by one after: %s", len(batch), error.__cause__)

        def make() -> None:
            for writing in batch:
                self._make([writing], ALONE_SECONDS)

        def refuse(error: StoreError) -> None:
            for writing in batch:
                writing.done(error)

        self._parted.submit(make, refuse)

    def _keep_apart(self, writing: Writing) -> None:
        if len(self._apart) >= 1000:
            self._apart.clear()
        self._apart[writing.write[:2]] = time.monotonic() + LOCKED_SECONDS

    def _fail(self, batch: list[Writing], error: StoreError) -> None:
        if error.code == "bucket_not_found":  # of whose drop caches may not have heard
            self._caches.purge_each(
                [writing.write[:2] for writing in batch],
                [],
                lambda untold: self._answer_all(batch, _untold() if untold else error),
            )
            return
        if len(batch) == 1 and error.code == "database_slow":
            self._keep_apart(batch[0])
        self._answer_all(batch, error)

    def _answer_all(self, batch: list[Writing], error: StoreError) -> None:
        for writing in batch:
            writing.done(error)

    def _tell(self, batch: list[Writing], outcomes: Sequence[Put], began: float) -> None:
        """Answer: after the caches have been told, where there are any."""
        stages = self._stages
        ended = time.monotonic() if stages else 0.0
        if stages:
            stages.set(began, ended)
        if self._is_one_of_several:
            batch, outcomes = self._without_elsewhere(batch, outcomes)
        told = [
            (writing, put)
            for writing, put in zip(batch, outcomes, strict=True)
            if put.outbox_id is not None
        ]
        if told:
            self._purge(told, began, ended)
        if len(told) < len(batch):
            for writing, put in zip(batch, outcomes, strict=True):
                if put.outbox_id is None:
                    writing.done(put)

    def _without_elsewhere(
        self, batch: list[Writing], outcomes: Sequence[Put]
    ) -> tuple[list[Writing], Sequence[Put]]:
        """Write alone, wherever they are now, those whose bucket has moved away."""
        here = []
        for writing, put in zip(batch, outcomes, strict=True):
            if put.outcome == "elsewhere":
                self._write_alone(writing, self._locked)
            else:
                here.append((writing, put))
        return [writing for writing, _ in here], [put for _, put in here]

    def _purge(self, told: list[tuple[Writing, Put]], began: float, ended: float) -> None:
        def done(error: StoreError | None) -> None:
            if self._stages:  # after a wait for leases this is another thread
                self._stages.set(began, ended)
            for writing, put in told:
                if error is None:
                    writing.done(put)
                else:
                    writing.done(error if put.outbox_id else _untold())

        self._caches.purge_each(
            [writing.write[:2] for writing, _ in told],
            [put.outbox_id for _, put in told if put.outbox_id],
            done,
        )

    def _write_alone(self, writing: Writing, lane: Lane) -> None:
        lane.submit(lambda: self._make([writing]), writing.done)


def _policy(writing: Writing) -> str | None:
    return writing.policy and writing.policy[0]


def _untold() -> StoreError:
    return StoreError(
        503, "Nothing was changed, but caches may not know it. Try again.", code="cache_cut_off"
    )


def _busy() -> StoreError:
    return StoreError(503, "Too many changes wait. Try again shortly.", code="busy")
