"""The store: every conversation of the running service with PostgreSQL.

One method per function of schema ``poky``, same verb, same order of arguments: ``objects``,
``buckets``, ``placements``, ``changes``, ``expiry``, ``nodes``, ``tokens``, ``locks`` and
``restore``, over the ``pool``; ``sharded`` is the same over several databases. Knows psycopg2 and
SQLSTATEs (``errors``); knows nothing of HTTP headers, and builds no SQL beyond ``statements``.
"""

from poky.store.activity import Activity
from poky.store.changes import Changed, ChangesPage
from poky.store.errors import CODES, BadDsn, ChangesElsewhere, PolicyChanged, StoreError
from poky.store.literals import Value, is_utf8
from poky.store.one_shard import CONTROL, OneShard
from poky.store.placements import Place, ShardState
from poky.store.pool import Held
from poky.store.results import (
    Bucket,
    Change,
    Credential,
    Delete,
    Expiry,
    Listed,
    Node,
    Object,
    Outcome,
    Page,
    Put,
    TokenRow,
    Write,
)
from poky.store.sharded import ShardedStore, open_store
from poky.store.shared import ALONE, Alone, Found, Together
from poky.store.store import Store

__all__ = [
    "ALONE",
    "CODES",
    "CONTROL",
    "Activity",
    "Alone",
    "BadDsn",
    "Bucket",
    "Change",
    "Changed",
    "ChangesElsewhere",
    "ChangesPage",
    "Credential",
    "Delete",
    "Expiry",
    "Found",
    "Held",
    "Listed",
    "Node",
    "Object",
    "OneShard",
    "Outcome",
    "Page",
    "Place",
    "PolicyChanged",
    "Put",
    "ShardState",
    "ShardedStore",
    "Store",
    "StoreError",
    "Together",
    "TokenRow",
    "Value",
    "Write",
    "is_utf8",
    "open_store",
]
