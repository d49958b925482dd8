"""A connection for work in bulk: without the limits of requests, in transactions of its own."""

import contextlib
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import psycopg2

from poky.store import BadDsn, StoreError
from poky.store.errors import translated

_CONNECTION: dict[str, Any] = {
    "connect_timeout": 10,
    "client_encoding": "UTF8",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


class Session:
    """One connection to PostgreSQL; a context manager. Everything raises StoreError."""

    def __init__(self, dsn: str, name: str, *, as_owner: bool = False) -> None:
        try:
            self.connection = psycopg2.connect(dsn, application_name=name, **_CONNECTION)
        except (psycopg2.ProgrammingError, ValueError):
            raise BadDsn("The DSN is not one that PostgreSQL understands.") from None
        except psycopg2.OperationalError as error:
            raise StoreError(
                503,
                f"Cannot connect to the database: {str(error).strip().splitlines()[0]}",
                code="database_unavailable",
            ) from None
        self.cursor = self.connection.cursor()
        self.run("SET statement_timeout = 0")
        self.run("SET idle_in_transaction_session_timeout = 0")
        if as_owner:
            self.run("SET ROLE poky_owner")
        self.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.connection.close()

    def run(self, statement: str, given: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Send a statement in the transaction of now; its rows, if it has any."""
        with failures():
            self.cursor.execute(statement, given or None)
            return self.cursor.fetchall() if self.cursor.description else []

    def commit(self) -> None:
        """Commit; after an error that says ``unknown`` it may have been done."""
        with failures():
            self.connection.commit()

    def end(self) -> None:
        """End the transaction of now, and undo what it did."""
        with failures():
            self.connection.rollback()

    def begin_snapshot(self) -> None:
        """Begin a transaction whose statements all see what is committed now."""
        self.end()
        self.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")

    def copy(self, statement: str, file: Any, given: Sequence[Any] = ()) -> None:
        """Send COPY, and what it reads or writes through ``file``."""
        with failures():
            self.cursor.copy_expert(self.cursor.mogrify(statement, given or None), file, 1 << 20)


@contextlib.contextmanager
def failures() -> Iterator[None]:
    """Turn psycopg2's errors into StoreError."""
    try:
        yield
    except (psycopg2.Error, ValueError) as error:
        raise translated(error, is_write=True) from error
