"""The feed: one thread looks for changes while requests wait for them, once for all of a bucket.

Each database of several has a thread of its own, so that one which hangs keeps nothing of the
others from their followers; one more looks where buckets are.

It asks, rather than being notified: NOTIFY in the transaction of a change takes a lock that all
commits of the cluster wait for, and halves the writes.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from poky.background import Background
from poky.feed.cursors import Cursor
from poky.metrics import Figure, Figures
from poky.store import Changed, ChangesElsewhere, ChangesPage, ShardedStore, Store, StoreError

log = logging.getLogger("poky.feed")

PERIOD: Final = 0.05  # seconds from one look to the next
PAGE: Final = 1000  # changes that are read at a time
TICK: Final = 0.25  # seconds from one tick of the followers to the next
RENEW: Final = 600.0  # seconds from one renewal of the days to the next
PAUSE: Final = 1.0  # seconds after a look that failed
CHECK: Final = 1.0  # seconds after which a follower's token is looked at again


class Follower:
    """A request that waits for changes of a bucket, and has seen all up to its cursor.

    The feed calls its methods, in one thread; none of them may raise.
    """

    #: Decides whether it may follow, under another policy than before or (None) because time has
    #: passed: gives the policy of the decision, or raises. None: it always may.
    check: Callable[[str | None], str] | None = None
    policy: str | None = ""  #: of the latest decision
    #: Of which stay in another database its next page is; None: of the bucket where it is now.
    former: Mapping[str, Any] | None = None

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.cursor: Cursor

    def take(self, changes: list[Changed], page: Cursor) -> None:
        """There may be changes, all of them unseen; ``page`` is where they end."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """There will be no more changes: the bucket is gone, or the right to follow it."""
        raise NotImplementedError

    def tick(self, now: float) -> None:
        """Some time has passed; ``now`` is time.monotonic()."""
        raise NotImplementedError


class Feed:
    """The followers of this process, ``most`` at a time."""

    def __init__(self, store: Store, background: Background, most: int) -> None:
        self._store = store
        self._most = most
        self._lock = threading.Lock()
        self._admitted: set[Any] = set()
        self._following: dict[Follower, None] = {}
        self._running: set[int | None] = set()  # shards whose thread runs; None: of unknown ones
        self._held: set[Follower] = set()  # by a thread: no other one calls them meanwhile
        self._paused: dict[tuple[str, int], float] = {}  # until when, where a database is away
        self.statements = 0  #: that looked for changes
        self._background = background
        background.add("changes", store.renew_changes, period=RENEW, scope="fleet")

    @property
    def followers(self) -> int:
        """Requests that wait for changes, or are sent some."""
        return len(self._admitted)

    def admit(self, who: object) -> None:
        """Enter before waiting; raises StoreError 503 when too many wait already."""
        with self._lock:
            if len(self._admitted) >= self._most:
                raise StoreError(
                    503,
                    "Too many requests wait for changes. Try again shortly.",
                    code="too_many_followers",
                )
            self._admitted.add(who)

    def release(self, who: object) -> None:
        """Leave for good. May be called more than once."""
        with self._lock:
            self._admitted.discard(who)
            self._following.pop(who, None)  # type: ignore[call-overload]

    def join(self, follower: Follower) -> None:
        """Have the follower told of what its cursor has not seen, unless it was released."""
        with self._lock:
            if follower not in self._admitted:
                return
            self._following[follower] = None
            self._begin(self._shard(follower))

    def leave(self, follower: Follower) -> None:
        """Tell the follower of nothing until it joins again."""
        with self._lock:
            self._following.pop(follower, None)

    def figures(self) -> Figures:
        """What to watch, by name."""
        return {
            "followers": Figure("Requests that wait for changes.", lambda: self.followers),
            "changes_statements": Figure(
                "Statements that looked for changes for them.", lambda: self.statements, "counter"
            ),
        }

    def _shard(self, follower: Follower) -> int | None:
        """Which of several databases has what it has not seen; None: to be found, or only one."""
        if isinstance(self._store, ShardedStore):
            if follower.former is not None:
                return int(follower.former["shard"])
            return self._store.known_shard(follower.bucket)
        return None

    def _begin(self, shard: int | None) -> None:
        if shard not in self._running:
            self._running.add(shard)
            name = "poky-feed" if shard is None else f"poky-feed-{shard}"
            threading.Thread(target=self._run, args=(shard,), name=name, daemon=True).start()

    def _run(self, shard: int | None) -> None:
        ticked = checked = 0.0
        while True:
            began = time.monotonic()
            with self._lock:
                following = []
                for follower in self._following:
                    number = self._shard(follower)
                    if number != shard:
                        self._begin(number)
                    elif follower not in self._held:
                        following.append(follower)
                self._held.update(following)
                if not following or self._background.is_stopping:
                    self._running.discard(shard)
                    return
            # Where a bucket was before it moved is another database, which may be away.
            stays: dict[tuple[str, int, bool], list[Follower]] = {}
            for follower in following:
                its = follower.bucket, follower.cursor.stay, follower.former is not None
                stays.setdefault(its, []).append(follower)
            is_behind = False
            is_due = began - checked > CHECK
            try:
                for (bucket, stay, _), group in stays.items():
                    place = bucket, stay
                    if began >= self._paused.get(place, 0.0):
                        self._paused.pop(place, None)
                        is_behind |= self._look(place, group, is_due=is_due)
                if began - ticked > TICK:
                    ticked = began
                    for follower in following:
                        follower.tick(began)
                if is_due:
                    checked = began
                    for follower in following:
                        self._check(follower, None)
            except Exception:
                log.exception("looking for changes failed")
            with self._lock:
                self._held.difference_update(following)
            pause = 0 if is_behind else PERIOD + began - time.monotonic()
            time.sleep(max(pause, PERIOD / 5))

    def _look(self, place: tuple[str, int], group: list[Follower], *, is_due: bool) -> bool:
        """Tell the followers of one bucket and stay what is new; whether there is more already.

        Where nothing is, their cursors are moved on when it is due.
        """
        oldest = min((follower.cursor for follower in group), key=Cursor.age_order)
        self.statements += 1
        former = group[0].former
        for follower in group:
            follower.former = None
        try:
            page = self._page(place[0], str(oldest), former)
        except StoreError as error:
            if isinstance(error, ChangesElsewhere) and isinstance(self._store, ShardedStore):
                for follower in group:
                    follower.former = error.stay
                return True
            if error.status == 503 and not self._is_unknown(former):
                log.info("changes will be looked for again: %s", error.detail)
                self._paused[place] = time.monotonic() + PAUSE
                return False
            for follower in group:
                follower.fail(error)
            return False
        if not page.changes and not is_due:
            return not page.is_last
        end = Cursor.parse(page.next)
        for follower in group:
            if self._check(follower, page.policy):
                self._tell(follower, page, oldest, end)
        return not page.is_last

    def _page(self, bucket: str, after: str, former: Mapping[str, Any] | None) -> ChangesPage:
        """The next page. Each database is asked by its own thread: ChangesElsewhere."""
        if not isinstance(self._store, ShardedStore):
            return self._store.changes(bucket, after, "", PAGE)
        if former is not None:
            return self._store.changes_of(former, after, "", PAGE)
        return self._store.present_changes(bucket, after, "", PAGE)

    def _is_unknown(self, former: Mapping[str, Any] | None) -> bool:
        """Whether a former database is one that the settings do not name: no use to wait."""
        store = self._store
        return (
            former is not None
            and isinstance(store, ShardedStore)
            and former["shard"] not in store.shards
        )

    def _tell(self, follower: Follower, page: ChangesPage, oldest: Cursor, end: Cursor) -> None:
        """Tell who has seen all that the page leaves out, and no more than a snapshot besides.

        Others have their turn when theirs is the oldest cursor.
        """
        seen = follower.cursor
        if seen != oldest and (seen.until is not None or not seen.includes(oldest)):
            return
        follower.take([each for each in page.changes if not seen.has(each)], end)

    def _check(self, follower: Follower, policy: str | None) -> bool:
        """Whether the follower may be told of what was read under this policy; None: looked at."""
        if follower.check is None or follower.policy == policy:
            return True
        try:
            follower.policy = follower.check(policy)
        except StoreError as error:
            if error.status == 503:  # not decided: nothing is told meanwhile
                return False
            follower.fail(error)
            return False
        except Exception as error:
            follower.fail(error)
            return False
        return True
