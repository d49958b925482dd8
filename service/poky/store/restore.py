"""What follows a restore of the database to an earlier time; the owner's."""

from poky.store.pool import Pool


class Restores(Pool):
    """The end of what was given out in the time that is lost."""

    def after_restore(self, future_seconds: int) -> tuple[int, float]:
        """Let nothing of the lost time pass for new; the revision from which to go on, and seconds.

        For so many seconds a cache may still use its copies. Once, before any instance runs.
        """
        rows = self._write_freely("SELECT * FROM poky.after_restore(%s)", (future_seconds,))
        revision, lease_seconds = rows[0]
        return int(revision), float(lease_seconds)
