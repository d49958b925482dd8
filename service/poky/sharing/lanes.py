"""Threads for work that may take long: a few for each kind, and a bounded wait for one."""

import logging
import queue
import threading
import time
from collections.abc import Callable

from poky.store import StoreError

log = logging.getLogger("poky.sharing")

PATIENCE_SECONDS = 5.0

Work = Callable[[], None]
Refuse = Callable[[StoreError], None]


class Lane:
    """At most ``threads`` pieces of work of one kind at a time, in the order in which they come.

    Work that has waited for ``patience`` seconds is not begun; it is told of a StoreError 503.
    """

    def __init__(self, name: str, threads: int, patience: float = PATIENCE_SECONDS) -> None:
        self.name = name
        self._patience = patience
        self._most = threads
        self._idle = 0
        self._count = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[float, Work, Refuse]] = queue.SimpleQueue()

    def submit(
        self, work: Work, refuse: Refuse, bucket: str = "", shard: int | None = None
    ) -> None:
        """Have the work done by one of the lane's threads. Neither of the two may raise.

        ``bucket``: what it is about, for lanes that go by it; ``shard``: which of several databases
        it asks, if that is another one than the bucket's.
        """
        self._queue.put((time.monotonic(), work, refuse))
        if self._count < self._most:
            with self._lock:
                if self._queue.qsize() <= self._idle or self._count >= self._most:
                    return
                self._count += 1
            name = f"{self.name}-{self._count}"
            threading.Thread(target=self._run, name=name, daemon=True).start()

    @property
    def waiting(self) -> int:
        """Pieces of work that have not begun."""
        return self._queue.qsize()

    @property
    def is_busy(self) -> bool:
        """Whether work that is submitted now would have to wait."""
        return self._count >= self._most and self._queue.qsize() >= self._idle

    def _run(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            since, work, refuse = self._queue.get()
            with self._lock:
                self._idle -= 1
            try:
                if time.monotonic() - since < self._patience:
                    work()
                else:
                    refuse(
                        StoreError(
                            503, "Too much work of this kind waits. Try again shortly.", code="busy"
                        )
                    )
            except Exception:
                log.exception("work in lane %s failed", self.name)
