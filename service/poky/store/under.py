"""Under which policy, and since when, a thread's statements are done."""

import threading
from collections.abc import Callable
from typing import Any


class Guard(threading.local):
    """The policy under which a thread's statements are done (None: any), and from when they count.

    ``since`` is when the request came, by time.monotonic(); 0: with the statement.
    """

    policy: str | None = None
    renew: Callable[[str], str] | None = None
    since: float = 0.0


class Under:
    """What `Pool.under` gives: three attributes set for a while. A generator would cost 2 us."""

    __slots__ = ("_before", "_given", "_guard")

    def __init__(self, guard: Guard, *given: Any) -> None:
        self._guard = guard
        self._given = given

    def __enter__(self) -> None:
        guard = self._guard
        self._before = guard.policy, guard.renew, guard.since
        guard.policy, guard.renew, guard.since = self._given

    def __exit__(self, *error: object) -> None:
        guard = self._guard
        guard.policy, guard.renew, guard.since = self._before
