"""What has expired, and its removal."""

from poky.store.pool import Pool


class Expiries(Pool):
    """The queue of objects that expire."""

    def expiry_lag(self) -> float | None:
        """For how many seconds the oldest expired object has waited; None: none does."""
        rows = self._read("SELECT poky.expiry_lag()", ())
        return None if rows[0][0] is None else float(rows[0][0])

    def reap(self, limit: int) -> int:
        """Remove up to ``limit`` objects that have expired, oldest first; how many."""
        return int(self._write("SELECT poky.reap(%s)", (limit,))[0][0])
