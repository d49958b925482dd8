"""Memory that requests and their answers hold, counted against one limit.

A reservation belongs to the request at hand of one connection. It is raised before memory is
allocated (a body is received, copied for the database, a large value fetched), lowered to what is
left when that is done, and given back when the answer has been sent: so a slow reader counts.
"""

from __future__ import annotations

import threading
from typing import Final

from poky.http.answers import Refused, refuse

#: What needs no reservation: so little that the number of threads and connections bounds it.
SMALL: Final = 16384


def overload() -> Refused:
    """503 for a connection, request or answer that exceeds a limit of the process."""
    return refuse(503, "overloaded", "Try again in a moment.")


class Budget:
    """How much memory requests and answers may hold at once.

    ``factor``: what a request's body takes while it is answered, in multiples of its length.
    """

    def __init__(self, limit: float = float("inf"), factor: float = 1.0) -> None:
        self.factor = factor
        self.limit = limit
        self.refused = 0  #: reservations for which there was no room
        self._used = 0
        self._lock = threading.Lock()

    def used(self) -> int:
        """Bytes reserved now."""
        return self._used

    def change(self, held: int, wanted: int, headroom: int = 0, *, force: bool = False) -> bool:
        """Turn a reservation of ``held`` bytes into one of ``wanted``, if there is room for it.

        ``headroom`` must be free as well, but is not reserved. A request that is alone always
        fits: one that is larger than the limit is slow, not impossible.
        """
        with self._lock:
            others = self._used - held
            if others and not force and wanted > held and others + wanted + headroom > self.limit:
                self.refused += 1
                return False
            self._used = others + wanted
            return True


class Reservation:
    """The bytes that the request at hand of one connection holds."""

    __slots__ = ("_budget", "held")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self.held = 0

    def admit(self, length: int, head: int = 0) -> bool:
        """Reserve a body that is to be received, if it could be answered as well."""
        headroom = int(length * (self._budget.factor - 1))
        return self._change(length + head, headroom)

    def answer(self, length: int) -> bool:
        """Reserve what answering a request with such a body takes."""
        return self.raise_to(int(length * self._budget.factor))

    def raise_to(self, size: int) -> bool:
        """Hold at least so many bytes; False: there is no room, and nothing has changed."""
        return size <= self.held or self._change(size)

    def need(self, size: int) -> None:
        """As raise_to, but raises Refused (503) where there is no room."""
        if not self.raise_to(size):
            raise overload()

    def lower_to(self, size: int, *, exactly: bool = False) -> None:
        """Hold at most so many bytes; ``exactly``: so many, even if that is beyond the limit."""
        if size < self.held or (exactly and size != self.held):
            self._change(size, force=True)

    def _change(self, size: int, headroom: int = 0, *, force: bool = False) -> bool:
        if not self._budget.change(self.held, size, headroom, force=force):
            return False
        self.held = size
        return True
