"""One database of several, as requests that share statements see it."""

from collections.abc import Sequence
from typing import Any

from poky.store.errors import StoreError
from poky.store.objects import Objects, Room, Select
from poky.store.results import Object, Put, Write
from poky.store.shared import ALONE, Found, Shared, Together
from poky.store.store import Store

CONTROL = 0
OUTBOX_SHIFT = 8  # below: the shard that an outbox_id is of
REFUSED = ("bucket_elsewhere", "bucket_moving")


class OneShard:
    """One database of several, as requests that share statements see it.

    What is not there any more is asked for alone, wherever it is.
    """

    def __init__(self, whole: Store, store: Store, number: int) -> None:
        self._whole = whole
        self._store = store
        self._number = number
        self.under = whole.under

    def get(
        self,
        bucket: str,
        key: str,
        room: Room = lambda size: None,
        select: Select = lambda found: None,
    ) -> Object | None:
        """The object, wherever its bucket is."""
        return self._whole.get(bucket, key, room, select)

    def get_small(self, bucket: str, key: str) -> Found:
        """As a Store's; ALONE also for a bucket that is elsewhere."""
        try:
            return Shared.get_small(self._store, bucket, key)
        except StoreError as error:
            if error.code in REFUSED:
                return ALONE
            raise

    def get_each(self, wanted: Sequence[tuple[str, str]], *, is_quick: bool = False) -> list[Found]:
        """As a Store's; ALONE also for buckets that are elsewhere."""
        try:
            if len(wanted) == 1 and not is_quick:
                return [self.get_small(*wanted[0])]
            return Shared.get_each(self._store, wanted, is_quick=is_quick)
        except StoreError as error:
            if error.code in REFUSED:
                return [ALONE] * len(wanted)
            raise

    def change_each(self, writes: Sequence[Write], lock_timeout: float | None = None) -> list[Put]:
        """As a Store's. ``elsewhere`` is an outcome, too: nothing was done of that write."""
        try:
            outcomes = self._changed(writes, lock_timeout)
        except StoreError as error:
            if len(writes) > 1 or error.code not in (*REFUSED, "policy_changed"):
                raise
            if lock_timeout is not None:
                raise Together from error
            # Where it is now, after a wait if it is being moved.
            return [self._whole._change_one(writes[0])]
        return [tagged(self._number, put) for put in outcomes]

    def _changed(self, writes: Sequence[Write], lock_timeout: float | None) -> list[Put]:
        if self._number != CONTROL:
            return self._store.change_each(writes, lock_timeout)
        if len(writes) == 1 and lock_timeout is None:
            return [_change_here(self._whole, writes[0])]
        return Shared.change_each(self._store, writes, lock_timeout)


def _change_here(control: Store, write: Write) -> Put:
    """The change on control, wherever the bucket is."""
    bucket, key, value, _, modified_at, if_match, if_none_match, *_ = write
    if value is None:
        outcome, outbox_id = Objects.delete(
            control, bucket, key, if_match, if_none_match, modified_at
        )
        return Put(outcome, 0, "", 0, outbox_id)
    return Objects.put(control, *write)  # type: ignore[arg-type]


def tagged(shard: int, given: Any) -> Any:
    """An outcome, or outbox_id, that tells its shard: ids of two databases may be the same."""
    if isinstance(given, bool) or given is None:
        return given
    if isinstance(given, int):
        return given << OUTBOX_SHIFT | shard if given else given
    if isinstance(given, list):
        return [tagged(shard, each) for each in given]
    if getattr(given, "outbox_id", None):
        return given._replace(outbox_id=tagged(shard, given.outbox_id))
    return given
