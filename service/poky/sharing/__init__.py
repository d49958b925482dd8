"""Requests that share a statement: what arrives while one is under way is asked for in the next.

``reads`` and ``writes`` collect what connections ask for; ``lanes`` are the threads for what may
take long, a few for each kind, so that slow work delays only its own kind; ``shards`` has reads and
writes for each of several databases. Nothing waits for company. Knows the store and the caches;
knows nothing of how a request looks.
"""

from poky.sharing.lanes import Lane
from poky.sharing.reads import BEGIN_SECONDS, Read, Reads
from poky.sharing.shards import open_lane, open_sharing
from poky.sharing.stages import Stages
from poky.sharing.writes import Writes, Writing

__all__ = [
    "BEGIN_SECONDS",
    "Lane",
    "Read",
    "Reads",
    "Stages",
    "Writes",
    "Writing",
    "open_lane",
    "open_sharing",
]
