"""The store of one database."""

from poky.store.activity import Activities
from poky.store.buckets import Buckets
from poky.store.changes import Changes
from poky.store.expiry import Expiries
from poky.store.locks import Locks
from poky.store.nodes import Nodes
from poky.store.placements import Placements
from poky.store.restore import Restores
from poky.store.shared import Shared
from poky.store.tokens import Tokens


class Store(
    Shared,
    Buckets,
    Placements,
    Changes,
    Expiries,
    Nodes,
    Tokens,
    Locks,
    Activities,
    Restores,
):
    """The interface of schema ``poky`` over one pool of connections.

    Never hands out a connection that the server has closed; every wait is bounded; a statement
    that cannot be confirmed raises StoreError, and one that surely did nothing is tried again.
    """
