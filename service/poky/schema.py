"""The schema: how a database gets to be one that this release works with.

``sql/`` holds the truth: what a new database gets (schema.sql and partitioned.sql or flat.sql), how
an older one gets there (migrations/), and what both get whenever it has changed (functions.sql,
grants.sql). This module decides which of the files a database needs, applies them, records them,
and refuses what cannot work. It runs before the service does, never inside it; the service asks
only ``state``. The rules of migrations are in sql/migrations/README.md.
"""

import dataclasses
import hashlib
import importlib.resources
import re
from collections.abc import Callable, Collection
from importlib.resources.abc import Traversable
from typing import Literal

from poky import __version__, conversion
from poky.owner import Owner, Progress, SchemaError

__all__ = ["Migrated", "Plan", "Progress", "SchemaError", "migrate", "plan", "script", "state"]

Kind = Literal["partitioned", "flat"]
Phase = Literal["expand", "contract"]
State = Literal["ok", "missing", "outdated", "newer"]

_MIGRATION = re.compile(r"(\d{4})_(expand|contract)_[a-z0-9_]+\.sql")
# The first version is schema.sql as it was when the first migration was written.
_BASE = "schema.sql"


@dataclasses.dataclass(frozen=True)
class Migration:
    """One numbered file; expand adds for the next release, contract removes what none needs."""

    name: str

    @property
    def number(self) -> int:
        """Its place in the order of all migrations."""
        return int(self.name[:4])

    @property
    def phase(self) -> str:
        """Expand or contract."""
        return self.name.split("_", 2)[1]


class Scripts:
    """The SQL files of a release."""

    def __init__(self, root: Traversable) -> None:
        self._root = root
        names = sorted(
            file.name for file in (root / "migrations").iterdir() if file.name.endswith(".sql")
        )
        for name in names:
            if not _MIGRATION.fullmatch(name):
                raise SchemaError(f"migrations/{name} is not named NNNN_expand|contract_….sql.")
        self.migrations = [Migration(name) for name in names]
        if [each.number for each in self.migrations] != list(range(2, len(names) + 2)):
            raise SchemaError("The migrations are not numbered 0002, 0003, … without a gap.")

    def text(self, name: str) -> str:
        """Give a file's SQL by the name that poky.migration has for it."""
        folder = self._root / "migrations" if _MIGRATION.fullmatch(name) else self._root
        return (folder / name).read_text("utf-8")

    def checksum(self, name: str) -> str:
        """Give the SHA-256 of a file, in hex."""
        return hashlib.sha256(self.text(name).encode()).hexdigest()

    def fresh(self, kind: Kind) -> list[str]:
        """Name the files that make a new database, in order."""
        return [_BASE, f"{kind}.sql", "functions.sql", "grants.sql"]


SCRIPTS = Scripts(importlib.resources.files("poky") / "sql")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What ``migrate`` would do, and what it sees."""

    state: State
    kind: Kind | None  # None: there is no schema
    pending: list[str]  # files to apply, in order
    postponed: list[str]  # files that wait for the phase contract
    refusal: str | None  # why migrate would change nothing
    schema: int  # the highest number that the database has
    contracted: int  # the highest number of a contract migration that it has
    converting: bool  # a conversion to the partitioned schema is unfinished


@dataclasses.dataclass(frozen=True)
class Migrated:
    """What ``migrate`` did."""

    applied: list[str]  # the files, in order; empty: there was nothing to do
    kind: Kind
    converted: bool  # from flat to partitioned


def versions(scripts: Scripts = SCRIPTS) -> dict[str, int]:
    """Say which schemas the release works with, for ``poky version --json``.

    A database suits it if it has every expand migration up to ``schema_min`` and no contract
    migration above ``schema_max``; ``schema`` is what ``poky migrate`` leads to. In the words of
    ``Plan``: ``plan.schema >= schema_min and plan.contracted <= schema_max``.
    """
    latest = scripts.migrations[-1].number if scripts.migrations else 1
    return {
        "schema": latest,
        "schema_min": max(_numbers(scripts.migrations, "expand"), default=1),
        "schema_max": latest,
    }


def state(applied: Collection[str] | None, scripts: Scripts = SCRIPTS) -> State:
    """Say whether this release can serve from a database that has these files applied.

    Unknown expand migrations are fine: they serve the previous release too, so that it can run on
    during a deployment and come back after it. An unknown contract migration is not.
    ``applied`` is what poky.status() says, None without a schema.
    """
    if not applied:
        return "missing"
    unknown = _unknown(applied, scripts)
    if any(each.phase == "contract" for each in unknown):
        return "newer"
    required = {each.name for each in scripts.migrations if each.phase == "expand"}
    return "ok" if required <= set(applied) else "outdated"


def plan(
    dsn: str,
    *,
    kind: Kind | None = None,
    phase: Phase = "expand",
    scripts: Scripts = SCRIPTS,
) -> Plan:
    """Look at a database and say what ``migrate`` would do; changes nothing."""
    with Owner(dsn) as owner:
        return _plan(owner, kind, phase, scripts)


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
    with Owner(dsn, progress) as owner, owner.alone():
        planned = _plan(owner, kind, phase, scripts)
        if planned.refusal:
            raise SchemaError(planned.refusal)
        wanted: Kind = kind or planned.kind or "partitioned"
        converts = planned.kind == "flat" and wanted == "partitioned"
        gives_up = planned.converting and kind == "flat"
        if planned.pending or converts or gives_up:
            owner.become_owner(scripts.text("roles.sql"), creates_schema=planned.kind is None)
        if gives_up:
            conversion.give_up(owner, scripts.text)
        if planned.kind is None:
            owner.atomically(
                lambda: _create(owner, wanted, release, revision_start, revision_increment, scripts)
            )
        elif planned.pending:
            owner.atomically(lambda: _apply(owner, planned.pending, release, scripts))
        if converts:
            conversion.convert(
                owner,
                scripts.text,
                lambda: _record(owner, ["partitioned.sql"], release, scripts),
            )
        return Migrated(planned.pending, wanted, converts)


def script(
    kind: Kind = "partitioned", *, release: str = __version__, scripts: Scripts = SCRIPTS
) -> str:
    """Give the SQL that makes a new database, for psql and for whoever wants to read it first."""
    names = scripts.fresh(kind)
    records = ",\n".join(
        "    ('{}', '{}', '{}')".format(name, scripts.checksum(name), release.replace("'", "''"))
        for name in names + [each.name for each in scripts.migrations]
    )
    return "\n".join(
        [
            "BEGIN;",
            scripts.text("roles.sql"),
            "SET LOCAL ROLE poky_owner;",
            "SET LOCAL search_path = pg_catalog;",
            *(scripts.text(name) for name in names),
            f"INSERT INTO poky.migration (name, checksum, release) VALUES\n{records};",
            "COMMIT;\n",
        ]
    )


def _plan(owner: Owner, kind: Kind | None, phase: Phase, scripts: Scripts) -> Plan:
    recorded = _recorded(owner)
    if recorded is None:
        return Plan(
            state="missing",
            kind=None,
            pending=scripts.fresh(kind or "partitioned"),
            postponed=[],
            refusal=_refusal_to_create(owner),
            schema=0,
            contracted=0,
            converting=False,
        )
    missing = [each for each in scripts.migrations if each.name not in recorded]
    pending = [each.name for each in missing if each.phase == "expand" or phase == "contract"]
    # A migration may have dropped functions, and new functions need their grants.
    if pending or recorded.get("functions.sql") != scripts.checksum("functions.sql"):
        pending += ["functions.sql", "grants.sql"]
    elif recorded.get("grants.sql") != scripts.checksum("grants.sql"):
        pending += ["grants.sql"]
    had = [Migration(name) for name in recorded if _MIGRATION.fullmatch(name)]
    is_flat, converting = owner.run(
        "SELECT c.relkind = 'r', to_regclass('poky._conversion') IS NOT NULL"
        " FROM pg_class AS c WHERE c.oid = 'poky._object'::regclass"
    )[0]
    seen = Plan(
        state=state(recorded, scripts),
        kind="flat" if is_flat else "partitioned",
        pending=pending,
        postponed=[each.name for each in missing if each.name not in pending],
        refusal=None,
        schema=max((each.number for each in had), default=1),
        contracted=max(_numbers(had, "contract"), default=1),
        converting=converting,
    )
    return dataclasses.replace(seen, refusal=_refusal(seen, recorded, kind, scripts))


def _refusal_to_create(owner: Owner) -> str | None:
    if owner.value("SELECT to_regnamespace('poky') IS NULL"):
        return None
    return "The database has a schema named poky that poky migrate did not make."


def _refusal(
    seen: Plan, recorded: dict[str, str], kind: Kind | None, scripts: Scripts
) -> str | None:
    unknown = [each.name for each in _unknown(recorded, scripts)]
    if unknown:
        return (
            f"The database is newer than this release, which does not know {unknown[-1]}:"
            " migrate with the release that it was migrated with, or a later one."
        )
    for each in scripts.migrations:
        if each.name in recorded and recorded[each.name] != scripts.checksum(each.name):
            return (
                f"{each.name} has changed since it was applied to the database."
                " What is applied stays as it is: put the change into a new migration."
            )
    if kind == "flat" and seen.kind == "partitioned":
        return "The database is partitioned, and there is no way back to flat."
    if seen.converting and kind != "flat" and len(seen.pending) > 2:
        return (
            "A conversion to the partitioned schema is unfinished, and the tables cannot change"
            " under it. Finish it with the release that began it (poky migrate --schema"
            " partitioned), or give it up (poky migrate --schema flat)."
        )
    return None


def _recorded(owner: Owner) -> dict[str, str] | None:
    """Checksums by name of what the database has; None without a schema."""
    # Not to_regclass, which minds whether one may look into the schema.
    if not owner.value(
        "SELECT EXISTS (SELECT FROM pg_class WHERE relname = 'migration'"
        " AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'poky'))"
    ):
        return None
    return dict(owner.run("SELECT name, checksum FROM poky.migration ORDER BY name"))


def _create(
    owner: Owner,
    kind: Kind,
    release: str,
    revision_start: int,
    revision_increment: int,
    scripts: Scripts,
) -> None:
    names = scripts.fresh(kind)
    for name in names:
        owner.run(scripts.text(name))
    owner.run(
        "ALTER SEQUENCE poky.revision"
        f" START WITH {revision_start:d} INCREMENT BY {revision_increment:d} RESTART"
    )
    _record(owner, names + [each.name for each in scripts.migrations], release, scripts)


def _apply(owner: Owner, names: list[str], release: str, scripts: Scripts) -> None:
    for name in names:
        owner.report(Progress(f"Applying {name}"))
        owner.run(scripts.text(name))
    _record(owner, names, release, scripts)


def _record(owner: Owner, names: list[str], release: str, scripts: Scripts) -> None:
    for name in names:
        owner.run(
            "INSERT INTO poky.migration AS m (name, checksum, release) VALUES (%s, %s, %s)"
            " ON CONFLICT (name) DO UPDATE SET checksum = excluded.checksum,"
            " release = excluded.release, applied_at = clock_timestamp()",
            name,
            scripts.checksum(name),
            release,
        )


def _unknown(applied: Collection[str], scripts: Scripts) -> list[Migration]:
    known = {each.name for each in scripts.migrations}
    return [
        Migration(name)
        for name in sorted(applied)
        if _MIGRATION.fullmatch(name) and name not in known
    ]


def _numbers(migrations: list[Migration], phase: Phase) -> list[int]:
    return [each.number for each in migrations if each.phase == phase]
