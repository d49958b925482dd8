"""The schema: how a database gets to be one that this release works with.

``sql/`` holds the truth: what a new database gets (schema.sql and partitioned.sql or flat.sql), how
an older one gets there (migrations/), and what both get whenever it has changed (functions/,
grants.sql). ``plan`` decides which of the files a database needs and refuses what cannot work;
``migrate`` applies and records them, as the ``owner``, and has the ``conversion`` from flat to
partitioned. The service asks only ``state``.

Exports what needs no database: import the rest from ``poky.schema.migrate``.
"""

from poky.schema.plan import SCRIPTS, Plan, SchemaError, Scripts, script, state, versions

__all__ = ["SCRIPTS", "Plan", "SchemaError", "Scripts", "script", "state", "versions"]
