"""The plan: which SQL files a database needs, and why a release cannot work with it.

Pure: it knows the files of ``sql/`` and what was found in a database, and imports neither psycopg2
nor the service, so that other programs (the Ansible role) plan by the same rules as ``migrate``.
The rules of migrations are in sql/migrations/README.md.
"""

import dataclasses
import hashlib
import importlib.resources
import re
from collections.abc import Collection, Mapping
from importlib.resources.abc import Traversable
from typing import Literal

from poky import __version__

Kind = Literal["partitioned", "flat"]
Phase = Literal["expand", "contract"]
State = Literal["ok", "missing", "outdated", "newer"]

# functions.sql is these files of sql/functions, one after the other.
_FUNCTIONS = (
    *(
        "names",
        "placement",
        "objects",
        "expiry",
        "templates",
        "bucket_functions",
        "batches",
        "shared",
    ),
    *("listing", "transfer", "buckets", "caches", "tokens", "cursors", "changes", "restore"),
    *("stays", "moving", "older"),
)
# Number 1 is schema.sql as it was before there were migrations.
_MIGRATION = re.compile(r"(\d{4})_(expand|contract)_[a-z0-9_]+\.sql")


class SchemaError(Exception):
    """The schema cannot be created, changed or converted; the message is for the operator.

    ``code`` says it to programs: schema_refused, database_unavailable, bad_dsn, busy,
    insufficient_privilege or database_failed.
    """

    def __init__(self, detail: str, *, code: str = "schema_refused") -> None:
        super().__init__(detail)
        self.code = code


class Scripts:
    """The SQL files of a release."""

    def __init__(self, root: Traversable) -> None:
        self._root = root
        found = sorted(file.name for file in (root / "functions").iterdir())
        if found != sorted(f"{noun}.sql" for noun in _FUNCTIONS):
            raise SchemaError(f"functions/ should have {', '.join(_FUNCTIONS)}, not {found}.")
        #: the names of the numbered files, in order
        self.migrations = sorted(
            file.name for file in (root / "migrations").iterdir() if file.name.endswith(".sql")
        )
        for number, name in enumerate(self.migrations, start=2):
            if not _is_migration(name) or _number(name) != number:
                raise SchemaError(
                    f"migrations/{name} should be named {number:04}_expand_….sql or"
                    f" {number:04}_contract_….sql."
                )

    def text(self, name: str) -> str:
        """Give a file's SQL by the name that poky.migration has for it."""
        if name == "functions.sql":
            return "\n".join(
                (self._root / "functions" / f"{noun}.sql").read_text("utf-8") for noun in _FUNCTIONS
            )
        folder = self._root / "migrations" if _is_migration(name) else self._root
        return (folder / name).read_text("utf-8")

    def checksum(self, name: str) -> str:
        """Give the SHA-256 of a file, in hex."""
        return hashlib.sha256(self.text(name).encode()).hexdigest()

    def fresh(self, kind: Kind) -> list[str]:
        """Name the files that make a new database, in order."""
        return ["schema.sql", f"{kind}.sql", "functions.sql", "grants.sql"]


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
    converts: bool  # migrate would make a flat database partitioned
    converting: bool  # such a conversion is unfinished
    # checksums by file name, so that another release can plan, too
    recorded: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a database has of a schema; nothing at all by default."""

    recorded: Mapping[str, str] | None = None  # checksums by file name; None: no poky.migration
    foreign: bool = False  # there is a schema poky that poky migrate did not make
    flat: bool = False
    converting: bool = False  # a conversion is unfinished


def _is_migration(name: str) -> bool:
    return _MIGRATION.fullmatch(name) is not None


def _number(name: str) -> int:
    return int(name[:4])


def _of(phase: Phase, names: Collection[str]) -> list[str]:
    return [name for name in names if _is_migration(name) and name.split("_", 2)[1] == phase]


def _unknown(applied: Collection[str], scripts: Scripts) -> list[str]:
    return [name for name in applied if _is_migration(name) and name not in scripts.migrations]


SCRIPTS = Scripts(importlib.resources.files("poky") / "sql")


def versions(scripts: Scripts = SCRIPTS) -> dict[str, int]:
    """Say which schemas the release works with, for ``poky version --json``.

    A database suits it if it has every expand migration up to ``schema_min`` and no contract
    migration above ``schema_max``; ``schema`` is what ``poky migrate`` leads to. In the words of
    ``Plan``: ``plan.schema >= schema_min and plan.contracted <= schema_max``.
    """
    latest = max(map(_number, scripts.migrations), default=1)
    return {
        "schema": latest,
        "schema_min": max(map(_number, _of("expand", scripts.migrations)), default=1),
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
    if _of("contract", _unknown(applied, scripts)):
        return "newer"
    return "ok" if set(_of("expand", scripts.migrations)) <= set(applied) else "outdated"


def plan(
    found: Found,
    *,
    kind: Kind | None = None,
    phase: Phase = "expand",
    scripts: Scripts = SCRIPTS,
) -> Plan:
    """Say what ``migrate`` would do with a database in which this was found."""
    recorded = found.recorded
    if recorded is None:
        return Plan(
            state="missing",
            kind=None,
            pending=scripts.fresh(kind or "partitioned"),
            postponed=[],
            refusal=_FOREIGN_SCHEMA if found.foreign else None,
            schema=0,
            contracted=0,
            converts=False,
            converting=False,
        )
    missing = [name for name in scripts.migrations if name not in recorded]
    pending = missing if phase == "contract" else _of("expand", missing)
    # A migration may have dropped functions, and new functions need their grants.
    if pending or recorded.get("functions.sql") != scripts.checksum("functions.sql"):
        pending = [*pending, "functions.sql", "grants.sql"]
    elif recorded.get("grants.sql") != scripts.checksum("grants.sql"):
        pending = ["grants.sql"]
    planned = Plan(
        state=state(recorded, scripts),
        kind="flat" if found.flat else "partitioned",
        pending=pending,
        postponed=[name for name in missing if name not in pending],
        refusal=None,
        schema=max(map(_number, filter(_is_migration, recorded)), default=1),
        contracted=max(map(_number, _of("contract", recorded)), default=1),
        converts=found.flat and kind == "partitioned",
        converting=found.converting,
        recorded=recorded,
    )
    return dataclasses.replace(planned, refusal=_refusal(planned, recorded, kind, scripts))


def script(
    kind: Kind = "partitioned", *, release: str = __version__, scripts: Scripts = SCRIPTS
) -> str:
    """Give the SQL that makes a new database, for psql, or to be read first."""
    names = scripts.fresh(kind)
    records = ",\n".join(
        "    ('{}', '{}', '{}')".format(name, scripts.checksum(name), release.replace("'", "''"))
        for name in names + scripts.migrations
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


_FOREIGN_SCHEMA = "The database has a schema named poky that poky migrate did not make."


def _refusal(
    planned: Plan, recorded: Mapping[str, str], kind: Kind | None, scripts: Scripts
) -> str | None:
    if unknown := _unknown(recorded, scripts):
        return (
            f"The database is newer than this release, which does not know {unknown[-1]}:"
            " migrate with the release that it was migrated with, or a later one."
        )
    for name in scripts.migrations:
        if name in recorded and recorded[name] != scripts.checksum(name):
            return (
                f"{name} has changed since it was applied to the database."
                " What is applied stays as it is: put the change into a new migration."
            )
    if kind == "flat" and planned.kind == "partitioned":
        return "The database is partitioned, and there is no way back to flat."
    if planned.converting and kind != "flat" and any(map(_is_migration, planned.pending)):
        return (
            "A conversion to the partitioned schema is unfinished, and the tables cannot change"
            " under it. Finish it with the release that began it (poky migrate --schema"
            " partitioned), or give it up (poky migrate --schema flat)."
        )
    return None
