"""One command moves a bucket at a time, and what an earlier one still does is ended."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import psycopg2

from poky.schema.owner import OwnerConnection, Progress
from poky.schema.plan import SchemaError

_LOOK_SECONDS = 0.01
# At the source and the target: who is the only one by control's lock has this one, too.
_TAKE_OVER_SECONDS = 10.0
_LOCK_MOVER = "SELECT pg_try_advisory_lock(hashtextextended('poky mover', 0))"
_END_MOVER = """
    SELECT pg_terminate_backend(l.pid)
    FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32) + l.objid::bigint = hashtextextended('poky mover', 0)
"""


@contextlib.contextmanager
def alone(
    owners: Mapping[int, str], progress: Callable[[Progress], None] | None
) -> Iterator[OwnerConnection]:
    """The connection to control, as the only one that moves."""
    with OwnerConnection(owners[0], progress) as control:
        if not control.value("SELECT pg_try_advisory_lock(hashtextextended('poky move', 0))"):
            raise _another_moves()
        try:
            yield control
        finally:
            # A connection that is closed ends later, and the next move may come at once. Without a
            # connection nothing is held.
            with contextlib.suppress(psycopg2.Error):
                control.value("SELECT pg_advisory_unlock(hashtextextended('poky move', 0))")


def end_others(*owners: OwnerConnection) -> None:
    """End the sessions of a command that was the only one before control failed over.

    It may be frozen within a step, and must not go on with it: it would drop what comes after it.
    """
    for owner in owners:
        until = time.monotonic() + _TAKE_OVER_SECONDS
        with as_user(owner):
            while not owner.value(_LOCK_MOVER):
                try:
                    owner.run(_END_MOVER)
                except psycopg2.errors.InsufficientPrivilege as error:
                    raise _another_moves() from error
                if time.monotonic() > until:
                    raise _another_moves()
                time.sleep(_LOOK_SECONDS)


def _another_moves() -> SchemaError:
    return SchemaError("Another poky bucket move is running: one at a time.", code="busy")


@contextlib.contextmanager
def as_user(owner: OwnerConnection) -> Iterator[None]:
    """Act as who has connected: replication is not the owner's."""
    owner.run("RESET ROLE")
    try:
        yield
    finally:
        owner.run("SET ROLE poky_owner")
