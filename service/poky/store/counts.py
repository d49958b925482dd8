"""Counts of what a pool did: waits for a connection, retries, and errors by SQLSTATE."""

import threading
import time
from collections import Counter

import psycopg2


class Counts:
    """Numbers that only grow. Any thread may add; none of it is on the way of what goes well."""

    def __init__(self) -> None:
        self.errors: Counter[str] = Counter()  #: by SQLSTATE; "connection": there was none
        self.failing_since: float | None = None  #: since 1970: no connection could be made
        self._numbers: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, amount: float = 1) -> None:
        """Add to a number."""
        with self._lock:
            self._numbers[name] = self._numbers.get(name, 0.0) + amount

    def add_error(self, error: Exception) -> None:
        """Count what PostgreSQL reported; our functions' refusals (PKnnn) are no errors of it."""
        if isinstance(error, psycopg2.Error):
            code = error.pgcode or "connection"
            if not code.startswith("PK"):
                with self._lock:
                    self.errors[code] += 1

    def connected(self, is_made: bool) -> None:
        """Note whether the last attempt to connect succeeded."""
        if is_made:
            self.failing_since = None
        elif self.failing_since is None:
            self.failing_since = time.time()

    def get(self, name: str) -> float:
        """A number; 0 until something was added."""
        return self._numbers.get(name, 0.0)
