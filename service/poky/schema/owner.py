"""The owner's conversation with PostgreSQL: alone, and never in the way of traffic.

Every change of the schema goes through one ``OwnerConnection``: it acts as ``poky_owner``, can keep
all other migrations out, and retries rather than let a lock it waits for hold up clients. This
module knows roles and locks; it knows no table.
"""

import contextlib
import random
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from poky.schema.plan import SchemaError

T = TypeVar("T")

# Clients queue behind a lock that we wait for: well below their own lock timeout, and below
# PostgreSQL's deadlock_timeout (1 s), so that in a deadlock PostgreSQL cancels us, not them.
_LOCK_TIMEOUT_MS = 200
_PATIENCE_SECONDS = 60.0
# Any number that no other program uses: "poky" in ASCII.
_ADVISORY_LOCK = 0x706F6B79
_IS_TAKEN_BY_A_STRANGER = """
    SELECT coalesce(
        bool_and(NOT pg_has_role(a.usesysid, to_regrole('poky_owner')::oid, 'MEMBER')), false
    )
    FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32) + l.objid::bigint = %s
"""
# No migration may take this lock, nor one that conflicts with it, on this table.
_LOCK_TABLE = """
    SET idle_in_transaction_session_timeout = 0;
    DO $$ BEGIN
        IF EXISTS (SELECT FROM pg_catalog.pg_class WHERE relname = 'migration'
                   AND relnamespace = (
                       SELECT oid FROM pg_catalog.pg_namespace WHERE nspname = 'poky')) THEN
            SET LOCAL ROLE poky_owner;
            LOCK TABLE poky.migration IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
        END IF;
    END $$
"""
_CONNECTION: dict[str, Any] = {
    "application_name": "poky migrate",
    "connect_timeout": 10,
    "target_session_attrs": "read-write",  # of several hosts, the one that can be migrated
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


class Progress(NamedTuple):
    """How far it is: what is being done, and how many rows of how many (estimated; 0: unknown)."""

    step: str
    done: int = 0
    total: int = 0


class OwnerConnection:
    """A connection of its own that acts as poky_owner; a context manager.

    ``report`` hears what is being done. Everything raises SchemaError with a sentence.
    """

    def __init__(
        self,
        dsn: str,
        report: Callable[[Progress], None] | None = None,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        self.report = report or (lambda progress: None)
        self._patience = patience
        self._connect = partial(psycopg2.connect, dsn, **_CONNECTION)
        self._keeper: psycopg2.extensions.connection | None = None
        try:
            self._connection = self._connect()
        except (psycopg2.ProgrammingError, ValueError):
            # Without libpq's words: they may quote a password.
            raise SchemaError(
                "The owner's DSN is not one that PostgreSQL understands.", code="bad_dsn"
            ) from None
        except psycopg2.OperationalError as error:
            raise SchemaError(
                f"Cannot connect to the database: {_first_line(error)}", code="database_unavailable"
            ) from error
        self._connection.autocommit = True
        self._user, self._database = self.run(
            "SELECT quote_ident(session_user), quote_ident(current_database())"
        )[0]
        # No client's limit is meant for a migration, and names mean what the files say.
        self.run("SET statement_timeout = 0")
        self.run("SET idle_in_transaction_session_timeout = 0")
        self.run("SET search_path = pg_catalog")
        # What exists already can be looked at as the owner; become_owner makes the rest.
        with contextlib.suppress(
            psycopg2.errors.InvalidParameterValue, psycopg2.errors.InsufficientPrivilege
        ):
            self.run("SET ROLE poky_owner")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._connection.close()
        if self._keeper is not None:
            self._keeper.close()
        if isinstance(error, psycopg2.errors.InsufficientPrivilege):
            raise self._lacks_rights(error) from error
        if isinstance(error, psycopg2.Error):
            what = "PostgreSQL refused" if error.pgcode else "The connection was lost"
            raise SchemaError(f"{what}: {_first_line(error)}", code="database_failed") from error

    def run(self, statements: str, *values: object) -> list[tuple[Any, ...]]:
        """Send SQL and give the rows of its last statement; without values, % is just a %."""
        with self._connection.cursor() as cursor:
            cursor.execute(statements, values or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, query: str, *values: object) -> Any:
        """Give the first column of the query's first row."""
        return self.run(query, *values)[0][0]

    def become_owner(self, roles: str, *, creates_schema: bool) -> None:
        """Act as poky_owner from now on; make the roles with the script ``roles`` if need be."""
        ready = self.value(
            "SELECT bool_and(to_regrole(r.name) IS NOT NULL) FROM unnest(ARRAY["
            "'poky_owner', 'poky_service', 'poky_reader', 'poky_monitor']) AS r (name)"
        )
        if ready and creates_schema:
            ready = self.value(
                "SELECT has_database_privilege('poky_owner', current_database(), 'CREATE')"
            )
        self.run("RESET ROLE")
        if not ready:
            self.run(roles)
        try:
            self.run("SET ROLE poky_owner")
        except psycopg2.errors.InsufficientPrivilege:
            # Since PostgreSQL 16 a role's creator may join it, but has to grant that itself.
            self.run("GRANT poky_owner TO CURRENT_USER")
            self.run("SET ROLE poky_owner")

    def keep_others_out(self) -> None:
        """Let no other migration of this database begin before the connection is closed.

        Waits for one that is under way. Any role may take an advisory lock, so one that is held by
        a role that cannot migrate does not count: then the lock on a table of ours decides.
        """
        waits = False
        # Asked for again and again: a statement that waits would hold a snapshot all the while.
        while not (self._lock_number() and self._lock_table()):
            if not waits:
                self.report(Progress("Waiting for another migration to end"))
                waits = True
            time.sleep(0.1)

    def _lock_number(self) -> bool:
        """The lock that every release takes, also for a database without a schema."""
        return bool(
            self.value("SELECT pg_try_advisory_lock(%s)", _ADVISORY_LOCK)
            or self.value(_IS_TAKEN_BY_A_STRANGER, _ADVISORY_LOCK)
        )

    def _lock_table(self) -> bool:
        """The lock that only the owner can take, held by a connection of its own.

        Its transaction has neither a snapshot nor a number, so it holds up no vacuum.
        """
        if self._keeper is None:
            self._keeper = self._connect()
        try:
            with self._keeper.cursor() as cursor:
                cursor.execute(_LOCK_TABLE)
        except psycopg2.errors.LockNotAvailable:
            self._keeper.rollback()
            return False
        return True

    def atomically(self, work: Callable[[], T]) -> T:
        """Do ``work`` in one transaction; where it would have to wait for a lock, try again later.

        So ``work`` may run several times, each time from the start.
        """
        deadline = time.monotonic() + self._patience
        while True:
            self.run(
                f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}"
            )
            try:
                result = work()
                self.run("COMMIT")
                return result
            except (psycopg2.errors.LockNotAvailable, psycopg2.errors.DeadlockDetected) as error:
                self.run("ROLLBACK")
                if time.monotonic() > deadline:
                    raise SchemaError(
                        f"For {self._patience:.0f} s other transactions held locks that this needs"
                        f" ({_first_line(error)}); nothing was changed. Look for long transactions"
                        " in pg_stat_activity, and try again.",
                        code="busy",
                    ) from error
                time.sleep(random.uniform(0.05, 0.5))  # noqa: S311 (no secret)
            except BaseException:
                with contextlib.suppress(psycopg2.Error):
                    self.run("ROLLBACK")
                raise

    def _lacks_rights(self, error: psycopg2.Error) -> SchemaError:
        if self._user == "poky_service":  # must never become a member of the owner
            return SchemaError(
                "Migrations run as the database's owner, and poky_service is the role that serves"
                f" ({_first_line(error)}). Name another user with -d or POKY_OWNER_DSN: one that"
                " may act as poky_owner.",
                code="insufficient_privilege",
            )
        return SchemaError(
            f"The user {self._user} cannot act as poky_owner ({_first_line(error)}). An"
            f" administrator of the database {self._database} can change that:\n"
            "  CREATE ROLE poky_owner NOLOGIN;\n"
            "  CREATE ROLE poky_service LOGIN;\n"
            "  CREATE ROLE poky_reader NOLOGIN;\n"
            "  CREATE ROLE poky_monitor NOLOGIN;\n"
            f"  GRANT CREATE ON DATABASE {self._database} TO poky_owner;\n"
            f"  GRANT poky_owner TO {self._user};",
            code="insufficient_privilege",
        )


def _first_line(error: psycopg2.Error) -> str:
    """PostgreSQL's message without its details: lines of SQL, and in them perhaps values."""
    return str(error).strip().split("\n", 1)[0]
