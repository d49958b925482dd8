"""Health: whether the database answers and suits this release, known within a bounded time.

The same of each database of several. And the other instances: which of them were here and are gone.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from poky import schema
from poky.store import ShardedStore, ShardState, Store, StoreError

_HELD_SECONDS = 60.0


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
        return self.told(self.ask(), timeout)

    def ask(self) -> int:
        """Begin to ask; ``told`` has the answer for this number."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()
            return self._asked

    def told(self, number: int, timeout: float) -> State:
        """The state after ``ask`` was called, or unavailable after ``timeout`` seconds."""
        with self._changed:
            if self._changed.wait_for(lambda: self._answered >= number, timeout):
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
            _, migrations, server = self._serving()
        except StoreError as error:
            missing = error.code == "schema_missing"
            return State("ok" if missing else "unavailable", "missing" if missing else "unknown")
        return State("ok", schema.state(list(migrations)), server)

    def _serving(self) -> tuple[str, Sequence[str], str]:
        return self._store.serving()


class Shard(NamedTuple):
    """A database of several, as it was when it was asked."""

    number: int
    state: State
    failing_since: float | None  #: since 1970: no connection could be made
    held: ShardState | None  #: how full it was within the last minute


class _ShardHealth(Health):
    """Of one database of several, whichever of them that is: no other one answers for it."""

    held: ShardState | None = None
    _until = 0.0

    def _serving(self) -> tuple[str, Sequence[str], str]:
        answer = Store.serving(self._store)
        if time.monotonic() > self._until:  # it is a look at every file of the database
            self.held = Store.shard_state(self._store)
            self._until = time.monotonic() + _HELD_SECONDS
        return answer


class Shards:
    """The health of each database of several; of none where there is one."""

    def __init__(self, store: Store) -> None:
        self._stores = {}
        if isinstance(store, ShardedStore):
            self._stores = {number: store.of_shard(number) for number in store.shards}
        self._healths = {number: _ShardHealth(each) for number, each in self._stores.items()}
        self.seen: list[Shard] = []  #: as they were when they were asked last

    def check(self, timeout: float = 0.8) -> list[Shard]:
        """Each as it is now, by number; all are asked at once, and waited for so long together."""
        until = time.monotonic() + timeout
        asked = [(number, each, each.ask()) for number, each in self._healths.items()]
        self.seen = [
            Shard(
                number,
                each.told(ticket, max(until - time.monotonic(), 0.0)),
                self._stores[number].counts.failing_since,
                each.held,
            )
            for number, each, ticket in asked
        ]
        return self.seen

    @property
    def numbers(self) -> list[int]:
        """Those of the databases, if there are several."""
        return list(self._stores)


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
