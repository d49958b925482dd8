"""The store: every conversation of the running service with PostgreSQL.

One method per function of schema ``poky``, same verb, same order of arguments: ``objects``,
``buckets``, ``changes``, ``expiry``, ``nodes``, ``tokens``, ``locks`` and ``restore``, over the
``pool``. Knows psycopg2 and SQLSTATEs (``errors``); knows nothing of HTTP headers, and builds no
SQL beyond ``statements``.
"""

from poky.store.activity import Activities, Activity
from poky.store.buckets import Buckets
from poky.store.changes import Changed, Changes, ChangesPage
from poky.store.errors import CODES, BadDsn, PolicyChanged, StoreError
from poky.store.expiry import Expiries
from poky.store.literals import Value, is_utf8
from poky.store.locks import Locks
from poky.store.nodes import Nodes
from poky.store.objects import Objects
from poky.store.pool import Held
from poky.store.restore import Restores
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
from poky.store.shared import ALONE, Alone, Found, Shared, Together
from poky.store.tokens import Tokens

__all__ = [
    "ALONE",
    "CODES",
    "Activity",
    "Alone",
    "BadDsn",
    "Bucket",
    "Change",
    "Changed",
    "ChangesPage",
    "Credential",
    "Delete",
    "Expiry",
    "Found",
    "Held",
    "Listed",
    "Node",
    "Object",
    "Outcome",
    "Page",
    "PolicyChanged",
    "Put",
    "Store",
    "StoreError",
    "Together",
    "TokenRow",
    "Value",
    "Write",
    "is_utf8",
]


class Store(
    Shared, Objects, Buckets, Changes, Expiries, Nodes, Tokens, Locks, Activities, Restores
):
    """The interface of schema ``poky`` over one pool of connections.

    Never hands out a connection that the server has closed; every wait is bounded; a statement
    that cannot be confirmed raises StoreError, and one that surely did nothing is tried again.
    """
