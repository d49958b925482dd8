"""The public schema of a new database, as text: what a reviewer sees of a change in sql/.

tests/test_snapshot.py compares it with tests/snapshots/; REFRESH=1 writes it there instead:
``make schema-snapshot``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "snapshots"

# One query per section; private names begin with an underscore.
SECTIONS = {
    "functions": """
        SELECT p.proname || '(' || pg_get_function_arguments(p.oid) || ') -> '
            || pg_get_function_result(p.oid)
        FROM pg_proc AS p WHERE p.pronamespace = 'poky'::regnamespace
        AND p.proname NOT LIKE '\\_%' ORDER BY p.proname COLLATE "C", 1
    """,
    "types": """
        SELECT t.typname || '(' || string_agg(
            a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) || ')'
        FROM pg_type AS t JOIN pg_class AS c ON c.oid = t.typrelid
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
        WHERE t.typnamespace = 'poky'::regnamespace AND c.relkind = 'c'
        GROUP BY t.typname ORDER BY t.typname COLLATE "C"
    """,
    "tables": """
        SELECT c.relname || CASE c.relkind WHEN 'p' THEN ' partitioned by '
            || pg_get_partkeydef(c.oid) ELSE '' END || E'\\n' || string_agg(
                '    ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
                || CASE WHEN a.attnotnull THEN ' not null' ELSE '' END
                || coalesce(' default ' || pg_get_expr(d.adbin, d.adrelid), ''),
                E'\\n' ORDER BY a.attnum)
        FROM pg_class AS c
        JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relnamespace = 'poky'::regnamespace AND c.relkind IN ('r', 'p')
        GROUP BY c.oid, c.relname, c.relkind ORDER BY c.relname COLLATE "C"
    """,
    "constraints and indexes": """
        SELECT x FROM (
            SELECT conrelid::regclass || ': ' || pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'poky'::regnamespace AND contype <> 'n'
            UNION ALL
            SELECT indexdef FROM pg_indexes WHERE schemaname = 'poky'
        ) AS f (x) ORDER BY x COLLATE "C"
    """,
    "grants": """
        SELECT grantee || ': ' || what FROM (
            SELECT coalesce(r.rolname, 'public'), p.proname || '('
                || oidvectortypes(p.proargtypes) || ')'
            FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS a
            LEFT JOIN pg_roles AS r ON r.oid = a.grantee
            WHERE p.pronamespace = 'poky'::regnamespace AND a.grantee <> p.proowner
            UNION ALL
            SELECT coalesce(r.rolname, 'public'), a.privilege_type || ' on ' || c.relname
            FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
            LEFT JOIN pg_roles AS r ON r.oid = a.grantee
            WHERE c.relnamespace = 'poky'::regnamespace AND a.grantee <> c.relowner
            UNION ALL
            SELECT coalesce(r.rolname, 'public'), a.privilege_type || ' on schema'
            FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
            LEFT JOIN pg_roles AS r ON r.oid = a.grantee
            WHERE n.nspname = 'poky' AND a.grantee <> n.nspowner
        ) AS g (grantee, what) ORDER BY grantee COLLATE "C", what COLLATE "C"
    """,
}


def path(kind: str) -> Path:
    return FOLDER / f"schema-{kind}.txt"


def describe(connection: Any) -> str:
    """The sections of one database, one line or block per thing."""
    lines = []
    with connection.cursor() as cursor:
        for title, query in SECTIONS.items():
            cursor.execute(query)
            lines += [f"# {title}", "", *(row[0] for row in cursor.fetchall()), ""]
    return "\n".join(lines)
