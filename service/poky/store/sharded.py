"""A store over several databases: each bucket is in one of them, and control knows in which.

The map of buckets is a cache: it is filled on demand, and a database refuses what it does not have
(``bucket_elsewhere``, ``bucket_moving``), so that a wrong map costs a question and nothing else.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from poky.store.activity import Activities, Activity
from poky.store.buckets import Buckets
from poky.store.changes import Changes, ChangesPage
from poky.store.errors import ChangesElsewhere, StoreError
from poky.store.objects import Objects
from poky.store.one_shard import CONTROL, OUTBOX_SHIFT, REFUSED, OneShard, tagged
from poky.store.placements import ShardState
from poky.store.results import Bucket, Change, Put, Write
from poky.store.shared import Found, Shared, Together
from poky.store.store import Store

log = logging.getLogger("poky.store")

MOVE_SECONDS = 2.0  # how long a request waits for a bucket that is being moved
_PAUSE_SECONDS = 0.02
_KNOWN = 100_000  # buckets
_SIZES_SECONDS = 60.0
_AWAY_SECONDS = 5.0
_NEW_BYTES = 65_536  # of a bucket that was just made

Verb = TypeVar("Verb", bound=Callable[..., Any])


def open_store(dsn: str, shards: Mapping[int, str], **limits: Any) -> Store:
    """The store of one database, or of several: ``shards`` are those besides control."""
    return ShardedStore(dsn, shards, **limits) if shards else Store(dsn, **limits)


def _of_bucket(verb: Verb) -> Verb:
    """The same verb, done where the bucket is; its first argument."""

    @functools.wraps(verb)
    def routed(self: "ShardedStore", bucket: str, *args: Any, **options: Any) -> Any:
        return self.at(bucket, lambda store: verb(store, bucket, *args, **options))

    return cast(Verb, routed)


def _of_policy(verb: Verb) -> Verb:
    """The same verb on control; it holds when every shard goes by the new policy."""

    @functools.wraps(verb)
    def spread(self: "ShardedStore", *args: Any, **options: Any) -> Any:
        outbox_id = verb(self, *args, **options)
        self.spread_policy()
        return tagged(CONTROL, outbox_id)

    return cast(Verb, spread)


class ShardedStore(Store):
    """A Store whose buckets are in several databases. It is control's store itself.

    What concerns no bucket (tokens, caches, locks) is control's. Raises StoreError as a Store
    does; 503 only for buckets of the database that is away, ``bucket_moving`` if a move takes long.
    """

    def __init__(self, dsn: str, shards: Mapping[int, str], **limits: Any) -> None:
        super().__init__(dsn, **limits)
        self._others = {number: Store(each, **limits) for number, each in sorted(shards.items())}
        for store in self._others.values():
            store.guard = self.guard  # what a thread is held to holds at every shard
        self._map: dict[str, int] = {}
        self._sizes: tuple[float, dict[int, int]] = (0.0, {})
        self._away_until = 0.0

    def close(self) -> None:
        """Close every idle connection to every database."""
        for store in self._others.values():
            store.close()
        super().close()

    @property
    def shards(self) -> list[int]:
        """The numbers of all databases; the first is control."""
        return [CONTROL, *self._others]

    def of_shard(self, number: int) -> Store:
        """The store of one database. StoreError 503 if the settings do not name it."""
        if number == CONTROL:
            return self
        try:
            return self._others[number]
        except KeyError:
            raise StoreError(
                503,
                f"The bucket is on shard {number}, which POKY_SHARDS of this instance does not"
                " name.",
                code="database_unavailable",
            ) from None

    def holding(self, bucket: str) -> Store:
        """The store of the database that has a bucket, for work in bulk."""
        return self.of_shard(self.find_shard(bucket))

    def confirm_in(self, bucket: str, ids: Sequence[int]) -> None:
        """As ``confirm``, of ids that the bucket's own database gave."""
        number = self.find_shard(bucket)
        self.confirm([tagged(number, each) for each in ids])

    def one(self, number: int) -> "OneShard":
        """What requests that share statements ask of one database."""
        return OneShard(self, self.of_shard(number), number)

    def known_shard(self, bucket: str) -> int | None:
        """The shard on which the bucket was last; None: to be asked for."""
        return self._map.get(bucket)

    def find_shard(self, bucket: str) -> int:
        """The shard of a bucket; control's where there is none: it says so itself."""
        number = self._map.get(bucket)
        if number is None:
            place = self.place(bucket)
            if place is None or not place.settled:
                return CONTROL
            number = place.shard
            if len(self._map) >= _KNOWN:
                self._map.clear()
            self._map[bucket] = number
        return number

    def at(self, bucket: str, do: Callable[[Store], Any]) -> Any:
        """Do what concerns a bucket where it is, and wait for it for a moment while it moves."""
        until = time.monotonic() + MOVE_SECONDS
        misses = 0
        while True:
            number = self.find_shard(bucket)
            try:
                return tagged(number, self._on(number, do))
            except StoreError as error:
                if error.code not in REFUSED:
                    raise
                refusal = error
            self._map.pop(bucket, None)
            place = self.place(bucket)
            if place is None:
                continue  # control says that there is none
            if place.shard == number or place.moving:
                misses += not place.moving and refusal.code == "bucket_elsewhere"
                if misses > 1:
                    # It was dropped there, and control was not told, or is not yet.
                    raise StoreError(
                        404, f"There is no bucket named {bucket}.", code="bucket_not_found"
                    )
                if time.monotonic() > until:
                    raise StoreError(
                        503,
                        "The bucket is being moved to another database. Try again shortly.",
                        code="bucket_moving",
                    ) from refusal
                time.sleep(_PAUSE_SECONDS)

    def _on(self, number: int, do: Callable[[Store], Any]) -> Any:
        """Do it on a shard, which is told of a policy that it has not heard of."""
        store = self.of_shard(number)
        try:
            return do(store)
        except StoreError as error:
            if error.code != "policy_changed" or number == CONTROL:
                raise
        self._spread_policy_to(number)
        return do(store)

    get = _of_bucket(Objects.get)
    get_part = _of_bucket(Objects.get_part)
    put = _of_bucket(Objects.put)
    delete = _of_bucket(Objects.delete)
    get_many = _of_bucket(Objects.get_many)
    read_many = _of_bucket(Objects.read_many)
    put_many = _of_bucket(Objects.put_many)
    delete_many = _of_bucket(Objects.delete_many)
    list_page = _of_bucket(Objects.list_page)
    get_small = _of_bucket(Shared.get_small)
    set_bucket_ttl = _of_bucket(Buckets.set_bucket_ttl)
    keep_changes = _of_bucket(Changes.keep_changes)

    create_token = _of_policy(Store.create_token)
    change_token = _of_policy(Store.change_token)
    rotate_token = _of_policy(Store.rotate_token)
    revoke_token = _of_policy(Store.revoke_token)
    publish_bucket = _of_policy(Store.publish_bucket)

    def changes(
        self, bucket: str, after: str = "", prefix: str = "", limit: int = 100
    ) -> ChangesPage:
        """As a Store's; what was recorded before the bucket moved is read where it was."""
        try:
            return self.present_changes(bucket, after, prefix, limit)
        except ChangesElsewhere as error:
            return self.changes_of(error.stay, after, prefix, limit)

    def present_changes(self, bucket: str, after: str, prefix: str, limit: int) -> ChangesPage:
        """As ``changes``, asking where the bucket is now alone. ChangesElsewhere: `changes_of`."""
        page: ChangesPage = self.at(
            bucket, lambda store: Changes.changes(store, bucket, after, prefix, limit)
        )
        return page

    def changes_of(
        self, stay: Mapping[str, Any], after: str, prefix: str, limit: int
    ) -> ChangesPage:
        """A page of a former stay, asking where that was alone; the next stay follows."""
        number = stay["shard"]
        if number not in self.shards:
            raise StoreError(
                503,
                f"The changes after this cursor are on shard {number}, which POKY_SHARDS of this"
                " instance does not name.",
                code="database_unavailable",
            )
        page: ChangesPage = self._on(
            number, lambda store: Changes.former_changes(store, stay, after, prefix, limit)
        )
        return page

    def get_each(self, wanted: Sequence[tuple[str, str]], *, is_quick: bool = False) -> list[Found]:
        """As a Store's, one statement for each shard."""
        found: dict[tuple[str, str], Found] = {}
        for number, some in self._by_shard(wanted, lambda each: each[0]).items():
            objects = self.one(number).get_each(some, is_quick=is_quick)
            found.update(zip(some, objects, strict=True))
        return [found[each] for each in wanted]

    def change_each(self, writes: Sequence[Write], lock_timeout: float | None = None) -> list[Put]:
        """As a Store's, for writes to one shard; Together if they are of several."""
        shards = self._by_shard(writes, lambda each: each.bucket)
        if len(shards) > 1:
            raise Together
        outcomes = self.one(next(iter(shards))).change_each(writes, lock_timeout)
        return [
            self._change_one(write) if put.outcome == "elsewhere" else put
            for write, put in zip(writes, outcomes, strict=True)
        ]

    def _by_shard(
        self, all_of_them: Iterable[Any], bucket: Callable[[Any], str]
    ) -> dict[int, list[Any]]:
        shards: dict[int, list[Any]] = {}
        for each in all_of_them:
            shards.setdefault(self.find_shard(bucket(each)), []).append(each)
        return shards

    def buckets(self) -> list[Bucket]:
        """All buckets of all databases, by name; StoreError if one of them does not answer.

        A bucket that moves meanwhile, from one not asked yet to one that was, is looked for again.
        """
        until = time.monotonic() + MOVE_SECONDS
        while True:
            places = self.places()
            found = {each.name: each for each in self.buckets_of(self.shards)}
            if found.keys() >= places.keys() or time.monotonic() > until:
                return [found[name] for name in sorted(found)]
            time.sleep(_PAUSE_SECONDS)

    def activity_of(self, number: int) -> Activity:
        """The server of one of the databases, and who else is connected to it."""
        return Activities.activity(self.of_shard(number))

    def buckets_of(self, numbers: Iterable[int]) -> list[Bucket]:
        """The buckets of these databases, by name; StoreError if one of them does not answer."""
        found = []
        for number in numbers:
            with _naming(number):
                some = Buckets.buckets(self.of_shard(number))
            found += [each._replace(shard=number) for each in some]
        return sorted(found, key=lambda each: each.name)

    def ensure_bucket(self, bucket: str, shard: int | None = None) -> bool:
        """Create a bucket unless it is there, on this shard or on the emptiest one."""
        place = self.place(bucket)
        if place is None and shard is None:
            shard = self._emptiest()
        if place is None and shard == CONTROL:
            return super().ensure_bucket(bucket)
        if place is not None and place.settled:
            return super().ensure_bucket(bucket) if place.shard == CONTROL else False
        with self._placing(bucket):
            place = self.place(bucket)
            if place is None:
                number = self._emptiest() if shard is None else shard  # it was dropped meanwhile
                if number == CONTROL:
                    return super().ensure_bucket(bucket)
                id, store = self.place_bucket(bucket, number), self.of_shard(number)
            elif place.settled:
                return False
            else:  # somebody began to make it, or to drop it
                id, store = place.id, self.of_shard(place.shard)
            created = store.adopt_bucket(bucket, id)
            self.settle_bucket(bucket, id, True)
            return created

    def drop_bucket(self, bucket: str, keys: bool = False) -> int | None:
        """As a Store's, wherever the bucket is."""
        place = self.place(bucket)
        if place is None or place.shard == CONTROL:
            outbox_id: int | None = self.at(
                bucket, lambda store: Buckets.drop_bucket(store, bucket, keys)
            )
            return outbox_id
        with self._placing(bucket):
            self.settle_bucket(bucket, place.id, False)
            store = self.of_shard(place.shard)
            try:
                outbox_id = tagged(place.shard, store.drop_bucket(bucket, keys))
            except StoreError as error:
                if error.code not in REFUSED:
                    if not error.unknown:
                        self.settle_bucket(bucket, place.id, True)
                    raise
                # It was dropped before, and control was not told.
                outbox_id = None
            self.displace_bucket(bucket, place.id)
            self._map.pop(bucket, None)
            return outbox_id

    @contextmanager
    def _placing(self, bucket: str) -> Iterator[None]:
        """The right to make or drop a bucket in another database, which takes several steps."""
        until = time.monotonic() + MOVE_SECONDS
        while True:
            with self.try_lock(f"poky placing {bucket}") as is_ours:
                if is_ours:
                    yield
                    return
            if time.monotonic() > until:
                raise StoreError(
                    503,
                    "Another client makes or drops the bucket just now. Try again shortly.",
                    code="busy",
                )
            time.sleep(_PAUSE_SECONDS)

    def _emptiest(self) -> int:
        """The shard with the fewest bytes, by what was true within a minute and was made since."""
        until, sizes = self._sizes
        if time.monotonic() > until:
            sizes = {}
            for state in self.states():
                sizes[state.shard] = state.bytes
            self._sizes = time.monotonic() + _SIZES_SECONDS, sizes
        number = min(sizes, key=lambda number: (sizes[number], number), default=CONTROL)
        if number in sizes:  # many made at once go to all, not to one of them
            sizes[number] += _NEW_BYTES
        return number

    def states(self) -> list[ShardState]:
        """How full each database is that answers, by number."""
        found = []
        for number in self.shards:
            try:
                found.append(Store.shard_state(self.of_shard(number)))
            except StoreError as error:
                log.warning("shard %d: %s", number, error.detail)
        return found

    def serving(self) -> tuple[str, Sequence[str], str]:
        """As a Store's. While control is away another database answers for it.

        What is known of buckets goes on without it: an instance is not sick for that.
        """
        if time.monotonic() > self._away_until:
            try:
                return super().serving()
            except StoreError as error:
                if error.code == "schema_missing":
                    raise
                self._away_until = time.monotonic() + _AWAY_SECONDS
                failure = error
        for store in self._others.values():
            try:
                return store.serving()
            except StoreError as error:
                failure = error
        self._away_until = 0.0
        raise failure

    def renew_changes(self) -> int:
        """As a Store's, in every database."""
        return sum(self._each(Changes.renew_changes))

    def register_node(self, node: str, url: str) -> bool:
        """As a Store's; every database knows of caches before one is given a lease."""
        for number, store in self._others.items():
            with _naming(number):
                store.expect_caches()
        return super().register_node(node, url)

    def unconfirmed(self, seconds: float, limit: int) -> list[Change]:
        """As a Store's, up to ``limit`` of each database."""
        found: list[Change] = []
        for number in self.shards:
            try:
                changes = Store.unconfirmed(self.of_shard(number), seconds, limit)
            except StoreError as error:
                if number == CONTROL:
                    raise
                log.info("shard %d: %s", number, error.detail)
                continue
            found += [each._replace(id=tagged(number, each.id)) for each in changes]
        return found

    def confirm(self, ids: Sequence[int]) -> None:
        """As a Store's, each where it was announced."""
        by_shard: dict[int, list[int]] = {}
        for each in ids:
            shard = each & ((1 << OUTBOX_SHIFT) - 1)
            by_shard.setdefault(shard, []).append(each >> OUTBOX_SHIFT)
        for shard, some in by_shard.items():
            Store.confirm(self.of_shard(shard), some)

    def spread_policy(self) -> None:
        """Have every shard go by control's policy. StoreError 503, unknown, if one cannot be told.

        Until it is told it goes by the former one.
        """
        for number in self._others:
            try:
                self._spread_policy_to(number)
            except StoreError as error:
                raise StoreError(
                    503,
                    f"It is changed, but shard {number} has not heard of it and goes by what was"
                    f" before ({error.detail}) Do the same again once it answers.",
                    code="outcome_unknown",
                    unknown=True,
                ) from error

    def _spread_policy_to(self, number: int) -> None:
        self.of_shard(number).adopt_policy(*self.policy_tag())

    def after_restore(self, future_seconds: int) -> tuple[int, float]:
        """As of one database: for all of them, whichever was restored."""
        for number in self.shards[1:]:
            self.of_shard(number).after_restore(future_seconds)
        found = super().after_restore(future_seconds)
        self.spread_policy()
        return found

    def _each(self, verb: Callable[[Store], Any]) -> list[Any]:
        """What the verb gives in every database; the failure of one does not stop the others."""
        found = []
        failure: StoreError | None = None
        for number in self.shards:
            try:
                with _naming(number):
                    found.append(verb(self.of_shard(number)))
            except StoreError as error:
                failure = error
        if failure is not None:
            raise failure
        return found


@contextmanager
def _naming(number: int) -> Iterator[None]:
    """Say in a failure which of the databases failed."""
    try:
        yield
    except StoreError as error:
        detail = f"Shard {number}: {error.detail}"
        raise StoreError(error.status, detail, code=error.code, unknown=error.unknown) from error
