"""Background work: named tasks beside the requests, each in a thread of its own.

A task runs in every instance, or in one of the fleet at a time (an advisory lock of PostgreSQL). It
runs again a period after its last end, whatever that run came to: errors are counted, logged and
shown, never raised. Knows the store's locks and failures; knows no task.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from poky.metrics import Figure, Figures
from poky.store import Store, StoreError

log = logging.getLogger("poky.background")

Scope = Literal["instance", "fleet"]

_STOP_SECONDS = 5.0


@dataclass
class Task:
    """What is run, how often, where, and what came of it so far."""

    name: str
    run: Callable[[], object]
    period: float  #: seconds from the end of a run to the next
    scope: Scope
    is_needed: Callable[[], bool]  #: asked before each run; if not, that was a good one
    runs: int = 0  #: that ended well
    errors: int = 0
    ended_at: float | None = None  #: when the last good run ended, in seconds since 1970
    last_error: str | None = None  #: None once a run has ended well
    on_time_at: float = field(
        default_factory=time.time
    )  #: when a good run ended, here or elsewhere
    thread: threading.Thread = field(init=False, repr=False)

    def lag(self) -> float:
        """Seconds since the last good end, beyond the period; 0 while it is in time."""
        return max(time.time() - self.on_time_at - self.period, 0.0)


class Background:
    """The tasks of this process. Costs nothing while it has none."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tasks: dict[str, Task] = {}
        self._adding = threading.Lock()
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        """Whether a task that is at work should end early."""
        return self._stopping.is_set()

    def rest(self, seconds: float) -> bool:
        """Pause a task that is at work; whether it may go on, rather than end early."""
        return not self._stopping.wait(seconds)

    def add(
        self,
        name: str,
        run: Callable[[], object],
        *,
        period: float,
        scope: Scope = "instance",
        is_needed: Callable[[], bool] = lambda: True,
    ) -> None:
        """Run a task from now on, the first time after one period; does nothing if it is there.

        Scope ``fleet``: while an instance runs it, the others skip their turns. A run must still
        be safe beside another one, because a lock ends with its connection. ``is_needed`` is
        asked first, without the lock: a run that is not needed costs no connection.
        """
        with self._adding:
            if name in self._tasks or self.is_stopping:
                return
            task = Task(name, run, period, scope, is_needed)
            task.thread = threading.Thread(
                target=self._keep_running, args=(task,), name=f"poky-{name}", daemon=True
            )
            self._tasks = {**self._tasks, name: task}
            task.thread.start()

    def stop(self) -> None:
        """Start no run any more, and wait for those at work: five seconds at most in all."""
        with self._adding:
            self._stopping.set()
        deadline = time.monotonic() + _STOP_SECONDS
        for task in self._tasks.values():
            task.thread.join(max(deadline - time.monotonic(), 0))
            if task.thread.is_alive():
                log.warning("the background task %s was still at work at the end", task.name)

    def status(self) -> list[dict[str, Any]]:
        """What each task came to, for /status?verbose; times are seconds since 1970."""
        return [
            {
                "name": task.name,
                "scope": task.scope,
                "period_seconds": task.period,
                "runs": task.runs,
                "errors": task.errors,
                "ended_at": None if task.ended_at is None else int(task.ended_at),
                "last_error": task.last_error,
                "lag_seconds": round(task.lag(), 1),
            }
            for task in self._tasks.values()
        ]

    def figures(self) -> Figures:
        """What to watch, by name."""

        def by_task(read: Callable[[Task], float]) -> Callable[[], dict[str, float]]:
            return lambda: {task.name: read(task) for task in self._tasks.values()}

        return {
            "background_runs": Figure(
                "Runs of background tasks that ended well.",
                by_task(lambda task: task.runs),
                kind="counter",
                label="task",
            ),
            "background_errors": Figure(
                "Runs of background tasks that failed.",
                by_task(lambda task: task.errors),
                kind="counter",
                label="task",
            ),
            "background_lag_seconds": Figure(
                "How late a background task is: time since its last good end, beyond its period.",
                by_task(Task.lag),
                label="task",
            ),
            "background_success_timestamp_seconds": Figure(
                "When a background task last ended well; 0: never.",
                by_task(lambda task: task.ended_at or 0),
                label="task",
            ),
        }

    def _keep_running(self, task: Task) -> None:
        while not self._stopping.wait(task.period):
            try:
                if not task.is_needed():
                    pass
                elif task.scope == "fleet":
                    with self._store.try_lock(f"poky {task.name}") as is_ours:
                        if not is_ours:  # another instance runs it
                            task.on_time_at = time.time()
                            continue
                        task.run()
                else:
                    task.run()
            except Exception as error:
                self._failed(task, error)
            else:
                task.runs += 1
                task.ended_at = task.on_time_at = time.time()
                task.last_error = None

    @staticmethod
    def _failed(task: Task, error: Exception) -> None:
        task.errors += 1
        if isinstance(error, StoreError):
            said = error.detail
            if task.last_error != said:  # once for each outage, not for each period
                log.info("the background task %s will be tried again: %s", task.name, said)
        else:
            said = type(error).__name__  # /status is public, and only our own sentences are for it
            log.exception("the background task %s failed", task.name)
        task.last_error = said
