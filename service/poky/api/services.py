"""What handlers may use: the store, the caches and the rest, each by its interface."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from poky.access import Gate
from poky.config import Config
from poky.feed import Feed
from poky.health import Health, Shard
from poky.logs import Event
from poky.metrics import Prometheus, Sample
from poky.sharing import Lane, Reads, Stages, Writes
from poky.store import Node, Store


class Lease(Protocol):
    """The right of a cache to use its copies of a generation for some seconds."""

    @property
    def generation(self) -> str: ...

    @property
    def seconds(self) -> float: ...


class Caches(Protocol):
    """The caches, as the contract needs them: asked before a change, purged after it."""

    def admit(self) -> AbstractContextManager[None]:
        """Enter before a change; raises StoreError 503 when too many changes wait already."""

    def purge(self, bucket: str, keys: Sequence[str], outbox_ids: Sequence[int]) -> None:
        """Return when no cache can give an older value of these keys any more."""

    def forget_bucket(self, outbox_id: int) -> None:
        """Return when no cache can give any value of the dropped bucket any more."""

    def lease(self, node: str) -> Lease | None:
        """Grant a cache a lease; None is no."""

    def leave(self, node: str, generation: str) -> str | None:
        """Have no change wait for a cache that has ended; None is no."""


class Sight(NamedTuple):
    """What the admin listener's page shows, besides what the store says."""

    history: Callable[[], Sequence[Sample]] = list
    events: Callable[[], Sequence[Event]] = list  #: the last warnings and errors
    nodes: Callable[[], Sequence[Node]] = list  #: caches, as they were a moment ago
    stale_at: Callable[[], float | None] = lambda: None  #: when a canary was last stale
    failing_since: Callable[[], float | None] = lambda: None  #: no connection to the database
    memory: Callable[[], tuple[float, float]] = lambda: (0.0, 1.0)  #: used, and the limit
    groups: Callable[[], tuple[int, int]] = lambda: (0, 0)  #: statements, and writes in them
    purge_seconds: Callable[[], Mapping[str, float]] = dict  #: recent ones, by cache
    recent: Callable[[], Sample | None] = lambda: None  #: the last seconds, objects alone
    note: Callable[[Iterable[str]], None] = lambda _: None  #: the instances that are here now
    gone: Callable[[], Mapping[str, float]] = dict  #: instances that are not, and since when
    shards: Callable[[], Sequence[Shard]] = list  #: each of several databases, as it is now
    prometheus: Prometheus | None = None  #: knows of all instances
    started_at: float = 0.0


class Services(NamedTuple):
    """What handlers may use."""

    store: Store
    caches: Caches
    config: Config
    health: Health
    inflight: Callable[[], int]  #: requests that are being answered now
    metrics: Callable[[], bytes]  #: all metrics in Prometheus' text format
    background: Callable[[], Sequence[Mapping[str, Any]]] = list  #: its tasks, for /status
    gate: Gate | None = None  #: decides by tokens; None: every client may do everything
    reads: Reads = None  # type: ignore[assignment]  # of listeners that serve objects
    writes: Writes = None  # type: ignore[assignment]
    stages: Stages | None = None  #: times of statements, if answers are to show them
    lanes: Mapping[str, Lane] = MappingProxyType({})  #: threads for slow handlers, by kind
    sight: Sight = Sight()  #: what the page shows
    house: Store = None  # type: ignore[assignment]  # connections of its own, for the page
    help: str = ""  #: the routes of the listener, for people
    document: Mapping[str, Any] | None = None  #: the same as OpenAPI
    feed: Feed = None  # type: ignore[assignment]

    def latest(self) -> int:
        """The latest date that a write may carry: one dated 9999 would lock its key."""
        return int(time.time()) + self.config.max_future_seconds
