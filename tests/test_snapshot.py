"""The public schema and the contract as they are recorded, and docs/sql.md beside them."""

from __future__ import annotations

import json
import os
import re
from contextlib import closing
from pathlib import Path

from poky.api import ADMIN_ROUTES, LEASE_ROUTES, ROUTES, openapi
from poky.config import Config
from tests import schema_snapshot
from tests.conftest import Database

DOCS = Path(__file__).parent.parent / "docs/sql.md"


def test_the_contract_is_as_recorded() -> None:
    """The OpenAPI document of each listener. If the change is meant: make schema-snapshot."""
    listeners = {"main": ROUTES, "admin": ADMIN_ROUTES, "lease": LEASE_ROUTES}
    documents = {
        name: openapi.document(Config(), routes)["paths"] for name, routes in listeners.items()
    }
    seen = json.dumps(documents, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    path = Path(__file__).parent / "snapshots" / "openapi.json"
    if os.environ.get("REFRESH"):
        path.write_text(seen)
    assert path.read_text() == seen, "it differs from its record: make schema-snapshot"


def test_the_public_schema_is_as_recorded(own_database: Database) -> None:
    """If the change is meant: make schema-snapshot, and commit what it wrote."""
    with closing(own_database.connect()) as connection:
        seen = schema_snapshot.describe(connection)
    path = schema_snapshot.path(own_database.kind)
    if os.environ.get("REFRESH"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(seen)
    assert path.read_text() == seen, "the schema differs from its record: make schema-snapshot"


def test_the_docs_list_the_public_functions(own_database: Database) -> None:
    query = (
        "SELECT DISTINCT proname FROM pg_proc WHERE pronamespace = 'poky'::regnamespace"
        " AND proname !~ '^_|[0-9]$'"
    )
    with closing(own_database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        functions = {name for (name,) in cursor.fetchall()}
    listed = re.findall(r"(?m)^\| `poky\.([a-z_]+)", DOCS.read_text())
    assert sorted(listed) == sorted(functions)
