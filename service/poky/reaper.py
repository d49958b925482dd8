"""The reaper: removes the rows of objects that have expired, which no request sees any more.

One instance of the fleet at a time, with caches and without: no cache has to be told. It takes at
most a fifth of the time of one connection. Knows the store's queue; knows nothing of ttls.
"""

import time
from typing import Self

from poky.background import Background
from poky.metrics import Figure, Figures
from poky.store import Store

_PERIOD_SECONDS = 5.0
_OBJECTS = 1000  # in one transaction
_REST = 4.0  # how long it rests after a transaction, times how long that took
_REST_SECONDS = 0.05  # at least
_RUN_SECONDS = 60.0  # after which another instance may take its turn


class Reaper:
    """The removal of expired objects. Where there are none it is one short query in a period."""

    def __init__(self, store: Store, background: Background) -> None:
        self._store = store
        self._background = background
        self._removed = 0
        self._lag = 0.0

    def start(self, period: float = _PERIOD_SECONDS) -> Self:
        """Look for expired objects every so many seconds from now on."""
        self._background.add(
            "reap", self.run, period=period, scope="fleet", is_needed=self._is_needed
        )
        return self

    def run(self) -> None:
        """Remove what has expired until nothing is left, or another may go on."""
        deadline = time.monotonic() + _RUN_SECONDS
        while True:
            began = time.monotonic()
            self._removed += self._store.reap(_OBJECTS)
            took = time.monotonic() - began
            if not self._is_needed() or time.monotonic() > deadline:
                return
            if not self._background.rest(max(took * _REST, _REST_SECONDS)):
                return

    def figures(self) -> Figures:
        """What to watch, by name."""
        return {
            "expired_objects": Figure(
                "Expired objects removed by this instance.", lambda: self._removed, "counter"
            ),
            "expired_lag_seconds": Figure(
                "For how long the oldest expired object has waited for its removal.",
                lambda: self._lag,
            ),
        }

    def _is_needed(self) -> bool:
        lag = self._store.expiry_lag()
        self._lag = lag or 0.0
        return lag is not None
