"""The prober: writes a canary, reads it through every cache, and counts what should never be seen.

A read that starts after a write was acknowledged and returns an older canary is *stale*. The write
takes the way of every client's write, the reads that of every client's read. Knows the order of the
canaries; knows nothing of leases and purges, which are what it tests.
"""

import http.client
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from poky.background import Background
from poky.config import Config
from poky.forms import CacheNode
from poky.metrics import Figure, Figures, Histogram
from poky.sharing import Writes, Writing
from poky.store import CONTROL, Put, ShardedStore, Store, StoreError, Value, Write

log = logging.getLogger("poky.probe")

_READ_SECONDS = 2.0
_WRITE_SECONDS = 5.0  # besides the lease that a write may have to wait for
_READS = 2  # of each canary through each cache: the second one may be a copy


class Probe:
    """The canaries of one instance. Costs nothing where none is asked for.

    Each database of several has a bucket and a task of its own.
    """

    def __init__(self, store: Store, writes: Writes, config: Config) -> None:
        self._nodes = config.probe
        self._period = config.probe_seconds
        numbers = store.shards if isinstance(store, ShardedStore) else [CONTROL]
        self._visible = Histogram()
        self._canaries = {
            f"probe-{number}" if number else "probe": _Canary(
                store, writes, config, number, self._visible
            )
            for number in numbers
        }

    @property
    def stale_at(self) -> float | None:
        """When a read was last stale, in seconds since 1970."""
        seen = [each.stale_at for each in self._canaries.values() if each.stale_at]
        return max(seen, default=None)

    def start(self, background: Background) -> None:
        """Probe from now on."""
        if self._nodes:
            for task, canary in self._canaries.items():
                background.add(task, canary.run, period=self._period)

    def figures(self) -> Figures:
        """What was seen, by name."""
        return {
            "probe_reads": Figure(
                "Canaries read through a cache: fresh, stale or failed.",
                lambda: self._sum(lambda each: each.reads),
                "counter",
                "node outcome",
            ),
            "probe_stale": Figure(
                "Canaries that were older than an acknowledged write when the read began. 0 is the"
                " promise.",
                lambda: self._sum(lambda each: each.stale),
                "counter",
                "node",
            ),
            "probe_writes": Figure(
                "Canaries written: acknowledged or failed.",
                lambda: self._sum(lambda each: each.written),
                "counter",
                "outcome",
            ),
            "probe_visible_seconds": Figure(
                "Time from the beginning of a write until a read through the cache returned it.",
                lambda: self._visible,
                "histogram",
                "node",
            ),
        }

    def _sum(self, counter: Callable[["_Canary"], Counter[Any]]) -> Counter[Any]:
        total: Counter[Any] = Counter()
        for each in self._canaries.values():
            total.update(dict(counter(each)))
        return total


class _Canary:
    """A canary in one database, under a key of this instance's own.

    It is a number that grows; what an earlier process of this name wrote is smaller.
    """

    def __init__(
        self, store: Store, writes: Writes, config: Config, shard: int, visible: Histogram
    ) -> None:
        self._store = store
        self._writes = writes
        self._nodes = config.probe
        self._patience = config.lease_seconds + _WRITE_SECONDS
        self._shard = shard
        self._bucket = f"{config.probe_bucket}-{shard}" if shard else config.probe_bucket
        self._key = f"canary.{config.instance}"
        self._number = time.time_ns()
        self._acknowledged = 0
        self._has_bucket = False
        self._connections: dict[str, http.client.HTTPConnection] = {}
        self.reads: Counter[tuple[str, str]] = Counter()
        self.stale: Counter[str] = Counter({_name(node): 0 for node in self._nodes})
        self.written: Counter[str] = Counter()
        self._visible = visible
        self.stale_at: float | None = None  #: when a read was last stale, in seconds since 1970
        self._failures: dict[str, str] = {}

    def run(self) -> None:
        """Read the last canary through every cache, write the next one, and read that."""
        if not self._has_bucket:
            if isinstance(self._store, ShardedStore):
                self._store.ensure_bucket(self._bucket, self._shard)
            else:
                self._store.ensure_bucket(self._bucket)
            self._has_bucket = True
        for node in self._nodes:
            self._read(node)  # so that there is a copy, which the write must make unusable
        began = time.monotonic()
        self._write()
        for node in self._nodes:
            for number in range(_READS):
                if self._read(node) and not number:
                    self._visible.observe(_name(node), time.monotonic() - began)

    def _write(self) -> None:
        self._number += 1
        done = threading.Event()
        outcomes: list[Put | Exception] = []

        def tell(outcome: Put | Exception) -> None:
            outcomes.append(outcome)
            done.set()

        value = Value(str(self._number).encode())
        write = Write(self._bucket, self._key, value, "text/plain", None, None, None)
        self._writes.add(Writing(write, None, tell))
        self._writes.after_turn(False)
        if not done.wait(self._patience):
            outcomes.append(
                StoreError(503, "A canary was not acknowledged.", code="outcome_unknown")
            )
        outcome = outcomes[0]
        if isinstance(outcome, Exception) or outcome.outcome not in ("inserted", "updated"):
            self.written["failed"] += 1
            self._has_bucket = False  # it may have been dropped
            if isinstance(outcome, Exception):
                raise outcome
        else:
            self.written["acknowledged"] += 1
            self._acknowledged = self._number

    def _read(self, node: CacheNode) -> bool:
        """Whether a read through the cache returned an acknowledged canary that is not stale."""
        name, least = _name(node), self._acknowledged
        try:
            seen = self._get(node)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connections.pop(name, None)
            self.reads[name, "failed"] += 1
            reason = f"{error}" or type(error).__name__
            if self._failures.get(name) != reason:
                log.info("a canary could not be read through %s: %s", name, reason)
            self._failures[name] = reason
            return False
        self._failures.pop(name, None)
        if seen >= least:
            self.reads[name, "fresh"] += 1
            return least > 0
        self.reads[name, "stale"] += 1
        self.stale[name] += 1
        self.stale_at = time.time()
        log.error("a read through %s was stale: canary %d, not %d", name, seen, least)
        return False

    def _get(self, node: CacheNode) -> int:
        """The canary that a read returns; 0: there is none."""
        name = _name(node)
        connection = self._connections.get(name)
        if connection is None:
            parts = urlsplit(node.url)
            connection = http.client.HTTPConnection(
                parts.hostname or "", parts.port, timeout=_READ_SECONDS
            )
        try:
            answer, body = self._ask(connection)
        except (OSError, http.client.HTTPException):
            if name not in self._connections:
                raise
            connection.close()  # an idle one, which the cache has closed
            answer, body = self._ask(connection)
        self._connections[name] = connection
        if answer.status == 404 and not body:
            return 0
        if answer.status == 404:
            self._acknowledged = 0  # the bucket was dropped, and the canaries with it
            self._has_bucket = False
        if answer.status != 200:
            raise ValueError(f"it answered {answer.status}")
        return int(body)

    def _ask(
        self, connection: http.client.HTTPConnection
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection.request("GET", f"/kv/{self._bucket}/{self._key}")
        answer = connection.getresponse()
        return answer, answer.read()


def _name(node: CacheNode) -> str:
    return node.name or node.url
