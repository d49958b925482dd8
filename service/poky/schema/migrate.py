"""The migration: applies the files of ``sql/`` that a database needs, and records them.

Runs before the service does, never inside it. What is needed is decided in ``plan``; how a flat
database becomes a partitioned one while it is used, in ``conversion``.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

from poky.schema import conversion
from poky.schema import plan as planning
from poky.schema.owner import OwnerConnection, Progress
from poky.schema.plan import SCRIPTS, Found, Kind, Phase, Plan, SchemaError, Scripts

# Buckets whose functions are replaced in one transaction: short, and few commits.
_AT_ONCE = 50

__all__ = ["Migrated", "Progress", "migrate", "plan"]


@dataclasses.dataclass(frozen=True)
class Migrated:
    """What ``migrate`` did."""

    applied: list[str]  # the files, in order; empty: there was nothing to do
    kind: Kind
    converted: bool  # from flat to partitioned


def plan(
    dsn: str,
    *,
    kind: Kind | None = None,
    phase: Phase = "expand",
    scripts: Scripts = SCRIPTS,
) -> Plan:
    """Look at a database and say what ``migrate`` would do; changes nothing."""
    with OwnerConnection(dsn) as owner:
        return planning.plan(_look(owner), kind=kind, phase=phase, scripts=scripts)


def migrate(
    dsn: str,
    *,
    release: str,
    kind: Kind | None = None,
    phase: Phase = "expand",
    progress: Callable[[Progress], None] | None = None,
    revision_start: int = 1,
    revision_increment: int = 1,
    scripts: Scripts = SCRIPTS,
) -> Migrated:
    """Bring a database to this release's schema: create it, upgrade it, or do nothing.

    All or nothing: the files are applied in one transaction. Clients can go on meanwhile, and the
    previous release works before and after (phase expand). ``kind`` settles what a new database
    becomes (partitioned unless told otherwise) and turns a flat one into a partitioned one;
    flat gives an unfinished conversion up. ``revision_start`` and ``revision_increment`` are for a
    new database that must never draw the revisions of another one. Raises SchemaError.
    """
    with OwnerConnection(dsn, progress) as owner:
        owner.keep_others_out()
        planned = planning.plan(_look(owner), kind=kind, phase=phase, scripts=scripts)
        gives_up = planned.converting and kind == "flat"
        if planned.refusal:
            raise SchemaError(planned.refusal)
        if planned.pending or planned.converts or gives_up:
            owner.become_owner(scripts.text("roles.sql"), creates_schema=planned.kind is None)

        def apply() -> None:
            for name in planned.pending:
                owner.report(Progress(f"Applying {name}"))
                owner.run(scripts.text(name))
            if planned.kind is None:
                owner.run(
                    f"ALTER SEQUENCE poky.revision START WITH {revision_start:d}"
                    f" INCREMENT BY {revision_increment:d} RESTART"
                )
                record(scripts.migrations)  # schema.sql has them
            record(planned.pending)

        def record(names: list[str]) -> None:
            for name in names:
                owner.run(
                    "INSERT INTO poky.migration AS m (name, checksum, release) VALUES (%s, %s, %s)"
                    " ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum,"
                    " release = excluded.release, applied_at = clock_timestamp()",
                    *(name, scripts.checksum(name), release),
                )

        if gives_up:
            conversion.give_up(owner, scripts.text)
        if planned.pending:
            owner.atomically(apply)
        if planned.converts:
            conversion.convert(owner, scripts.text, lambda: record(["partitioned.sql"]))
        _renew_functions(owner)
        return Migrated(
            applied=planned.pending,
            kind=kind or planned.kind or "partitioned",
            converted=planned.converts,
        )


def _renew_functions(owner: OwnerConnection) -> None:
    """Replace the functions of single buckets that are not as their templates, some at a time.

    Until a bucket's turn comes the service uses the functions for all buckets.
    """
    numbers = [number for (number,) in owner.run("SELECT poky._outdated_functions()")]
    for start in range(0, len(numbers), _AT_ONCE):
        owner.report(Progress("Renewing the functions of buckets", start, len(numbers)))
        some = numbers[start : start + _AT_ONCE]
        owner.atomically(
            partial(owner.run, "SELECT poky._renew_functions(n) FROM unnest(%s) AS n", some)
        )


def _look(owner: OwnerConnection) -> Found:
    """See what the database has."""
    # Not to_regclass, which minds whether one may look into the schema.
    if not owner.value(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'migration'"
        " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'poky'))"
    ):
        return Found(foreign=owner.value("SELECT to_regnamespace('poky') IS NOT NULL"))
    recorded = dict(owner.run("SELECT name, checksum FROM poky.migration ORDER BY name"))
    flat, converting = owner.run(
        "SELECT c.relkind = 'r', to_regclass('poky._conversion') IS NOT NULL"
        " FROM pg_class AS c WHERE c.oid = 'poky._object'::regclass"
    )[0]
    return Found(recorded, flat=flat, converting=converting)
