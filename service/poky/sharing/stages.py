"""When the statement of an answer began and ended, for those who time it (Server-Timing)."""

import threading


class Stages:
    """The times of the last statement of each thread, by time.monotonic(): answers follow in it."""

    def __init__(self) -> None:
        self._local = threading.local()

    def set(self, began: float, ended: float) -> None:
        """Note the statement whose outcomes this thread is about to tell."""
        self._local.times = began, ended

    def of_thread(self) -> tuple[float, float] | None:
        """The times of the calling thread's last statement; None: there was none."""
        return getattr(self._local, "times", None)

    def forget(self) -> None:
        """Begin anew in the calling thread."""
        self._local.times = None
