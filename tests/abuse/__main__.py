"""``make abuse``: the long form, with a table. Exit status 1 on any violation.

The environment says what: PART="raw memory" DOOR=D ONLY=multi SHORT=1; ROOT=/path/to/checkout tries
another release, with its own environment (.venv) and roles.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.abuse import PARTS
from tests.abuse.report import CHAIN, DIRECT, Row, show
from tests.support import roles
from tests.support.chain import Chain

console = Console(width=None if sys.stdout.isatty() else 200)


def main() -> int:
    parts = os.environ.get("PART", " ".join(PARTS)).split()
    unknown = set(parts) - set(PARTS)
    if unknown:
        console.print(f"PART is one or more of: {' '.join(PARTS)}")
        return 2
    root = Path(os.environ.get("ROOT", str(roles.ROOT)))
    short = bool(os.environ.get("SHORT"))
    rows: list[Row] = []
    try:
        for door in os.environ.get("DOOR", f"{DIRECT} {CHAIN}").split():
            front = door == CHAIN
            with tempfile.TemporaryDirectory(prefix="abuse-") as folder:
                console.print(f"Starting PostgreSQL, the service{', Varnish, nginx' * front} …")
                with Chain(
                    Path(folder), instances=2 if front else 1, front=front, root=root
                ) as chain:
                    for part in parts:
                        console.print(f"{part} at {door} …")
                        rows += PARTS[part](
                            chain, door, short=short, only=os.environ.get("ONLY", "")
                        )
    finally:  # what was seen before something broke down
        show(rows, console)
        if rows:
            violations = sum(len(row.violations) for row in rows)
            console.print(f"{violations} violations in {len(rows)} rows")
    return 0 if rows and all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
