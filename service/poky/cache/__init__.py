"""The caches: why a read that starts after a change was acknowledged never gives an older value.

``caches`` keeps the promise, ``purge`` is the wire to the cache nodes. The reasons, step by step:
docs/cache.md.
"""

from poky.cache.caches import Caches, Lease
from poky.cache.purge import NotConfirmed, PurgeClient

__all__ = ["Caches", "Lease", "NotConfirmed", "PurgeClient"]
