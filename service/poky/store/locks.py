"""Locks that one process of the fleet holds at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2

from poky.store.errors import translated
from poky.store.pool import Pool


class Locks(Pool):
    """Advisory locks of the database."""

    @contextmanager
    def try_lock(self, name: str) -> Iterator[bool]:
        """Hold the lock of this name for the block; False at once if another holder has it.

        The lock is a connection of its own, not one of the pool's: PostgreSQL releases it when that
        ends, so a holder that dies leaves nothing behind, and one whose connection is lost may meet
        another holder.
        """
        connection = self._connect(None)
        try:
            try:
                connection.statement.execute(
                    "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,)
                )
                is_ours = bool(connection.statement.fetchall()[0][0])
            except psycopg2.Error as error:
                raise translated(error, is_write=False) from error
            finally:
                self._busy.discard(connection)  # the watchdog limits statements, not the block
            yield is_ours
        finally:
            connection.close()
