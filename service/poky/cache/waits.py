"""Waits for leases: a suspended node may use its copies until the leases granted before expire."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from poky.store import Node, Store, StoreError

log = logging.getLogger("poky.cache")

TICK_SECONDS = 0.25


class _Wait:
    def __init__(self, pending: Iterable[Node], done: Callable[[], None]) -> None:
        self.left_out = {(node.name, node.generation): node for node in pending}
        self.end = time.monotonic() + max(node.lease_seconds for node in self.left_out.values())
        self.done = done


class LeaseWaits:
    """Any number of waits in one thread, which runs while there are any."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._waits: list[_Wait] = []
        self._is_running = False

    def __len__(self) -> int:
        return len(self._waits)

    def begin(self, pending: Iterable[Node], done: Callable[[], None]) -> None:
        """Call ``done`` when all leases of these suspended nodes have certainly expired.

        By our own monotonic clock, counted from after the suspension's commit; or earlier, when
        another instance, which began to wait before, has recorded it.
        """
        with self._lock:
            self._waits.append(_Wait(pending, done))
            if self._is_running:
                return
            self._is_running = True
        threading.Thread(target=self._run, name="poky-leases", daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waits:
                    self._is_running = False
                    return
                end = min(wait.end for wait in self._waits)
            time.sleep(max(min(end - time.monotonic(), TICK_SECONDS), 0))
            for wait in self._finished():
                try:
                    wait.done()
                except Exception:
                    log.exception("a change that waited for leases failed")

    def _finished(self) -> list[_Wait]:
        expired: set[tuple[str, str]] = set()
        with suppress(StoreError):
            # Under the generation that it got when it was suspended, and no other: a database
            # that was restored from a backup would know nothing of the suspension.
            expired = {
                (node.name, node.generation)
                for node in self._store.nodes()
                if node.drained or node.suspended_at is None
            }
        now = time.monotonic()
        with self._lock:
            finished = [
                wait for wait in self._waits if now >= wait.end or wait.left_out.keys() <= expired
            ]
            self._waits = [wait for wait in self._waits if wait not in finished]
        recorded = {key for wait in finished if now >= wait.end for key in wait.left_out} - expired
        for name, generation in recorded:
            with suppress(StoreError):
                self._store.drain_node(name, generation)
        return finished
