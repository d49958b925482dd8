"""The reaper: removes the rows of objects that have expired, which no request sees any more.

One instance of the fleet at a time, with caches and without: no cache has to be told. It takes at
most a fifth of the time of one connection. Each database of several has one of its own. Knows the
store's queue; knows nothing of ttls.
"""

import time
from collections.abc import Sequence
from typing import Self

from poky.background import Background
from poky.metrics import Figure, Figures
from poky.store import CONTROL, ShardedStore, Store

_PERIOD_SECONDS = 5.0
_OBJECTS = 1000  # in one transaction
_REST = 4.0  # how long it rests after a transaction, times how long that took
_REST_SECONDS = 0.05  # at least
_RUN_SECONDS = 60.0  # after which another instance may take its turn


def start_reapers(store: Store, background: Background) -> Figures:
    """Remove from now on what expires, in every database; what to watch."""
    stores = {CONTROL: store}
    if isinstance(store, ShardedStore):
        stores = {number: store.of_shard(number) for number in store.shards}
    reapers = [
        Reaper(each, background, f"reap-{number}" if number else "reap").start()
        for number, each in stores.items()
    ]
    return _figures(reapers)


class Reaper:
    """The removal of one database's expired objects: where there are none, a query in a period."""

    def __init__(self, store: Store, background: Background, task: str = "reap") -> None:
        self._store = store
        self._background = background
        self._task = task
        self._removed = 0
        self._lag = 0.0

    def start(self, period: float = _PERIOD_SECONDS) -> Self:
        """Look for expired objects every so many seconds from now on."""
        self._background.add(
            self._task, self.run, period=period, scope="fleet", is_needed=self._is_needed
        )
        return self

    def run(self) -> None:
        """Remove what has expired until nothing is left, or another may go on."""
        deadline = time.monotonic() + _RUN_SECONDS
        while True:
            began = time.monotonic()
            self._removed += Store.reap(self._store, _OBJECTS)
            took = time.monotonic() - began
            if not self._is_needed() or time.monotonic() > deadline:
                return
            if not self._background.rest(max(took * _REST, _REST_SECONDS)):
                return

    def figures(self) -> Figures:
        """What to watch, by name."""
        return _figures([self])

    def _is_needed(self) -> bool:
        lag = Store.expiry_lag(self._store)
        self._lag = lag or 0.0
        return lag is not None


def _figures(reapers: Sequence[Reaper]) -> Figures:
    return {
        "expired_objects": Figure(
            "Expired objects removed by this instance.",
            lambda: sum(each._removed for each in reapers),
            "counter",
        ),
        "expired_lag_seconds": Figure(
            "For how long the oldest expired object has waited for its removal.",
            lambda: max(each._lag for each in reapers),
        ),
    }
