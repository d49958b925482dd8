"""Health: whether the database answers and suits this release, known within a bounded time.

And the other instances: which of them were here and are gone.
"""

import threading
import time
from collections.abc import Iterable
from typing import NamedTuple

from poky import schema
from poky.store import Store, StoreError


class State(NamedTuple):
    """``ok`` twice, or what is wrong, and the server that answered, as /status says it."""

    database: str
    schema: str
    server: str | None = None

    @property
    def ok(self) -> bool:
        """Whether requests can be served."""
        return self[:2] == ("ok", "ok")


class Health:
    """Asks the database in a thread of its own, so that a hung database delays no answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._asked = self._answered = 0
        self._state = State("unavailable", "unknown")
        threading.Thread(target=self._answer, name="poky-health", daemon=True).start()

    def check(self, timeout: float = 0.8) -> State:
        """The state now: asked after the call began, or unavailable after ``timeout`` seconds."""
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._changed.notify_all()
            if self._changed.wait_for(lambda: self._answered >= ticket, timeout):
                return self._state
        return State("unavailable", "unknown")

    def _answer(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._asked > self._answered)
                ticket = self._asked
            state = self._look()
            with self._changed:
                self._answered, self._state = ticket, state
                self._changed.notify_all()

    def _look(self) -> State:
        try:
            _, migrations, server = self._store.serving()
        except StoreError as error:
            missing = error.code == "schema_missing"
            return State("ok" if missing else "unavailable", "missing" if missing else "unknown")
        return State("ok", schema.state(list(migrations)), server)


class Instances:
    """The instances of this database, by name: those that were connected, and are not."""

    MOST = 1000

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[str, float] = {}
        self._here: frozenset[str] = frozenset()

    def look(self) -> None:
        """Note who is connected now; raises StoreError."""
        self.note(self._store.instances())

    def note(self, names: Iterable[str]) -> None:
        """Note that these are, and no others."""
        self._here = frozenset(names)
        if len(self._seen) > self.MOST:
            self._seen = {}
        self._seen = {**self._seen, **dict.fromkeys(self._here, time.time())}

    def gone(self) -> dict[str, float]:
        """Those that were here and are not, and when they were last seen (since 1970)."""
        here = self._here
        return {name: at for name, at in self._seen.items() if name not in here}
