"""The caches: why a read that starts after a change was acknowledged never gives an older value.

A cache node may use its copies while it holds a lease, granted here under the node's *generation*.
A change is purged at every node after its commit and before its answer. A node that does not
confirm is *suspended*: no lease any more, and a new generation, so that its copies are never used
again. The change is acknowledged when the leases granted before have run out: the node is *drained*
then, no other change waits for it, and it takes part again once it answers.

The rows of ``poky.cache_node`` alone say which nodes there are, so an instance that was not told
of any keeps the promise as well. The reasons, step by step: docs/cache.md. Knows the store and the
purge client; knows nothing of how a request looks.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import NamedTuple, NoReturn

from poky.background import Background
from poky.cache.purge import NotConfirmed, PurgeClient
from poky.cache.waits import LeaseWaits
from poky.config import Config
from poky.forms import CacheNode
from poky.metrics import Figure, Figures, Histogram
from poky.store import Node, Store, StoreError

log = logging.getLogger("poky.cache")

_TICK_SECONDS = 0.25
_RECENT_SECONDS = 10.0
_MOST_RECENT = 50  # purges of a cache
_ENOUGH = 5
_GOOD_PROBES = 3  # in a row, a tick apart, before a node takes part again
_SWEEP_SECONDS = 3.0  # the age at which a change counts as left behind by its writer
_SWEEP_CHANGES = 1000

#: what is purged at a node when tokens or public buckets have changed
POLICY_PATH = "/policy"
_MOST_WAITING = 1000  # changes that wait for leases: each keeps its request in memory

_ADMITTED = nullcontext()


class Lease(NamedTuple):
    """A node may use its copies of this generation for these seconds from when it asked."""

    generation: str
    seconds: float


class Caches:
    """All cache nodes, as this instance sees them. Costs nothing where there are none.

    ``purge`` and ``forget_bucket`` return when the promise holds, or raise StoreError 503 with
    ``unknown``: the change is made, but may not be acknowledged.
    """

    def __init__(self, store: Store, config: Config, background: Background) -> None:
        self._store = store
        self._background = background
        self._purges = Histogram()
        self._recent: dict[str, deque[tuple[float, float]]] = {}
        self._client = PurgeClient(
            config.purge_timeout,
            self._observe,
        )
        self._may_wait = config.cache_mode != "bounded"
        # A cut-off node delays a change by the purge's timeout and by the lease it was granted:
        # together by lease_seconds at most. (Clocks that run at different rates are the node's
        # business: poky.vcl uses nine tenths of a lease.)
        self._grant = config.lease_seconds - config.purge_timeout
        # A cache that revalidates every read has no copy that would have to be purged.
        self._unregistered = list(config.caches) if config.cache_mode != "revalidate" else []
        self._are_ours = bool(config.caches)
        self._waits = LeaseWaits(store)
        self._lock = threading.Lock()
        self._confirmed: deque[int] = deque()
        self._has_tasks = False
        self._seen: Sequence[Node] = ()
        self._lease_ends: dict[str, float] = {}  # by generation
        self._good_probes: dict[str, int] = {}
        self._failures: dict[str, str] = {}
        self._counts = dict.fromkeys(("purges", "failures", "waits", "refusals", "swept"), 0)
        self._leases = dict.fromkeys(("granted", "refused", "failed"), 0)

    def start(self) -> None:
        """Register the nodes of the configuration; the background work begins."""
        if self._unregistered:
            self._start_tasks()

    def stop(self) -> None:
        """Write what is not written yet; to be called after the background work has stopped."""
        with suppress(StoreError):
            self._write_confirmed()
        self._client.close()

    # The way of a change.

    def admit(self) -> AbstractContextManager[None]:
        """Enter before a change; StoreError 503 when many changes wait for leases already."""
        if len(self._waits) >= _MOST_WAITING:
            self._refuse()
        return _ADMITTED

    def _require_place(self) -> None:
        if len(self._waits) >= _MOST_WAITING:
            self._refuse()
        self._counts["waits"] += 1

    def _refuse(self) -> NoReturn:
        self._counts["refusals"] += 1
        raise StoreError(
            503,
            "A cache is cut off, and enough changes wait for it. Try again shortly.",
            code="cache_cut_off",
        )

    def purge(self, bucket: str, keys: Sequence[str], outbox_ids: Sequence[int]) -> None:
        """Return when no cache can give an older value of these keys any more.

        To be called after the commit of the change and before its answer; also when nothing was
        changed, but the answer tells of what another change did.
        """
        if not outbox_ids and not self._store.nodes():
            return
        if not self._has_tasks:
            self._start_tasks()
        with _unacknowledged():
            self.purge_keys(bucket, keys)
        self._confirmed.extend(outbox_ids)

    def purge_each(
        self,
        objects: Sequence[tuple[str, str]],
        outbox_ids: Sequence[int],
        done: Callable[[StoreError | None], None],
    ) -> None:
        """The same for objects (bucket, key) of several changes: then ``done`` is called.

        Waits for the caches' answers, but not for leases: ``done`` may be called later, in another
        thread.
        """
        paths = [f"/kv/{bucket}/{key}" for bucket, key in dict.fromkeys(objects)]

        def confirm() -> None:
            self._confirmed.extend(outbox_ids)
            done(None)

        try:
            with _unacknowledged():
                # Read after the commit: a node that joined since must be purged as well.
                nodes = self._store.nodes()
                if nodes and not self._has_tasks:
                    self._start_tasks()
                pending = self._purge_nodes(nodes, paths) if nodes else []
                if pending and self._may_wait:
                    self._require_place()
        except StoreError as error:
            done(error)
            return
        if pending and self._may_wait:
            self._waits.begin(pending, confirm)
        else:
            confirm()

    def forget_bucket(self, outbox_id: int) -> None:
        """Return when no cache can give any value of the bucket that was dropped any more.

        The caches forget everything: a new generation costs the same for any number of keys.
        """
        if not self._has_tasks:
            self._start_tasks()
        with _unacknowledged():
            self.purge_all()
        self._confirmed.append(outbox_id)

    def forget_policy(self, *outbox_ids: int) -> None:
        """Return when no cache decides by the tokens and public buckets of before any more.

        To be called after the commit of the changes and before their acknowledgement.
        """
        with _unacknowledged():
            pending = self._purge_nodes(self._store.nodes(), [POLICY_PATH])
            if pending and self._may_wait:
                self._await_leases(pending)
        self._confirmed.extend(outbox_ids)

    def purge_keys(self, bucket: str, keys: Sequence[str]) -> None:
        """Purge these keys everywhere, and wait for the leases of nodes that do not confirm."""
        # Read after the commit: a node that joined since must be purged as well.
        pending = self._purge_nodes(self._store.nodes(), _paths(bucket, keys))
        if pending and self._may_wait:
            self._require_place()
            self._await_leases(pending)

    def purge_all(self) -> None:
        """Have every cache forget everything, and return when no old copy is in use any more."""
        seconds = self._store.renew_generations()
        if self._may_wait:
            time.sleep(seconds)

    def _purge_nodes(self, nodes: Iterable[Node], paths: Sequence[str]) -> list[Node]:
        """Purge at all nodes that take part; those whose leases are still to be waited for."""
        nodes = list(nodes)
        failures = self._client.purge(
            {node.name: node.url for node in nodes if node.suspended_at is None}, paths
        )
        pending = [node for node in nodes if node.suspended_at is not None and not node.drained]
        for name, reason in failures.items():
            log.warning("the cache %s %s: it is suspended", name, reason)
            node = self._store.suspend_node(name)
            # If another instance suspended it long ago, its leases have expired already.
            if node is not None and not node.drained:
                pending.append(node)
        self._counts["purges"] += 1
        self._counts["failures"] += len(failures)
        return pending

    def _await_leases(self, pending: Iterable[Node]) -> None:
        """Return when all leases of these suspended nodes have certainly expired."""
        expired = threading.Event()
        self._waits.begin(pending, expired.set)
        expired.wait()

    # Leases.

    def lease(self, node: str) -> Lease | None:
        """Grant a node a lease; None is no. A node that gets neither may use its lease to the end.

        Raises StoreError while the database does not answer.
        """
        outcome = "failed"
        try:
            generation = self._store.lease(node, self._grant)
            outcome = "refused" if generation is None else "granted"
        finally:
            self._leases[outcome] += 1
        return None if generation is None else Lease(generation, self._grant)

    def leave(self, node: str, generation: str = "") -> str | None:
        """Have no change wait for a node that has ended: suspend it; then, by generation, end it.

        Returns the generation that it was suspended under; None is no. A node that was started
        again since gets no lease before it is reinstated, so a request that is late ends none.
        """
        if generation:
            return generation if self._store.end_node(node, generation) else None
        suspended = self._store.suspend_node(node)
        if suspended is None:
            return None
        log.info("the cache %s has ended", node)
        return suspended.generation

    # For the command poky cache.

    @property
    def seen(self) -> Sequence[Node]:
        """All nodes as they were a moment ago: no query, and the last word while there is none."""
        return self._seen

    def purge_seconds(self) -> dict[str, float]:
        """How long each cache took to confirm a purge, in the middle of the last ten seconds'."""
        begin = time.monotonic() - _RECENT_SECONDS
        found = {}
        for node, times in tuple(self._recent.items()):
            recent = sorted(seconds for at, seconds in tuple(times) if at > begin)
            if len(recent) >= _ENOUGH:
                found[node] = recent[len(recent) // 2]
        return found

    def _observe(self, node: str, outcome: str, seconds: float) -> None:
        self._purges.observe((node, outcome), seconds)
        if outcome == "confirmed":
            times = self._recent.get(node)
            if times is None:
                times = self._recent.setdefault(node, deque(maxlen=_MOST_RECENT))
            times.append((time.monotonic(), seconds))

    def suspend(self, name: str) -> bool:
        """Suspend a node until it is resumed by command, and wait until its leases have expired.

        False if there is no such cache.
        """
        node = self._store.suspend_node(name, hold=True)
        if node is not None and not node.drained:
            self._await_leases([node])
        return node is not None

    def resume(self, name: str) -> bool:
        """Let a node take part again once it answers; False if there is no such cache."""
        return self._store.resume_node(name)

    def remove(self, name: str) -> bool:
        """Remove a node once its leases have expired; False if there is no such cache."""
        return self.suspend(name) and self._store.remove_node(name)

    def figures(self) -> Figures:
        """What to watch, by name."""
        counts = self._counts

        def counter(help: str, count: str) -> Figure:
            return Figure(help, lambda: counts[count], kind="counter")

        return {
            "cache_nodes": Figure("Caches known.", lambda: len(self._seen)),
            "cache_nodes_suspended": Figure(
                "Caches that are suspended.",
                lambda: sum(node.suspended_at is not None for node in self._seen),
            ),
            "cache_node_suspended": Figure(
                "Whether a cache is suspended: reads through it are passed on.",
                lambda: {node.name: float(node.suspended_at is not None) for node in self._seen},
                label="node",
            ),
            "cache_node_suspended_timestamp_seconds": Figure(
                "Since when a cache is suspended; 0: it is not.",
                lambda: {node.name: node.suspended_at or 0.0 for node in self._seen},
                label="node",
            ),
            "cache_node_lease_timestamp_seconds": Figure(
                "When a cache was last granted a lease, by any instance; 0: never.",
                lambda: {node.name: node.leased_at or 0.0 for node in self._seen},
                label="node",
            ),
            "cache_purge_seconds": Figure(
                "Time until a cache confirmed purges, or did not, by node and outcome.",
                lambda: self._purges,
                "histogram",
                "node outcome",
            ),
            "cache_leases": Figure(
                "Requests of caches for leases by outcome: granted, refused, failed.",
                lambda: self._leases,
                "counter",
                "outcome",
            ),
            "cache_purges": counter("Changes purged at the caches.", "purges"),
            "cache_purge_failures": counter("Purges not confirmed.", "failures"),
            "cache_waiting": Figure("Changes that wait for leases now.", lambda: len(self._waits)),
            "cache_waits": counter("Changes that waited for leases.", "waits"),
            "cache_refusals": counter("Changes refused, too many waiting.", "refusals"),
            "cache_swept": counter("Changes purged in place of their writers.", "swept"),
        }

    # Background work. Every instance does all of it, so that none depends on another one;
    # what two of them do at once, the database lets happen once.

    def _start_tasks(self) -> None:
        with self._lock:
            if self._has_tasks:
                return
            self._has_tasks = True
        if not self._are_ours:
            log.warning(
                "caches are registered, but POKY_CACHES is empty here; they are told of every"
                " change all the same. Set it, or remove them with: poky cache remove NAME"
            )
        self._background.add("caches", self._look_after, period=_TICK_SECONDS)
        self._background.add("cache-sweep", self._sweep, period=_SWEEP_SECONDS)

    def _look_after(self) -> None:
        self._write_confirmed()
        self._register()
        self._seen = self._store.nodes()
        self._expire_leases(self._seen)
        self._reinstate(self._seen)

    def _write_confirmed(self) -> None:
        """Remove changes from the outbox; if that fails they are purged once more: no harm."""
        ids = [self._confirmed.popleft() for _ in range(min(len(self._confirmed), 10_000))]
        if ids:
            self._store.confirm(ids)

    def _register(self) -> None:
        if not self._unregistered:
            return
        known = {node.name: node.url for node in self._store.nodes()}
        for given in tuple(self._unregistered):
            name = given.name or self._learn_name(given)
            if not name:
                continue
            try:
                if known.get(name) != given.url and self._store.register_node(name, given.url):
                    log.info("the cache %s at %s is registered", name, given.url)
            except StoreError as error:
                if error.status != 400:
                    raise
                log.error("the cache %s at %s is refused: %s", name, given.url, error.detail)
            known.pop(name, None)
            self._unregistered.remove(given)
        if not self._unregistered and known:
            log.warning("more caches are registered than POKY_CACHES has: %s", ", ".join(known))

    def _learn_name(self, given: CacheNode) -> str:
        with suppress(NotConfirmed, OSError):
            return self._client.name_of(given.url)
        return ""

    def _expire_leases(self, nodes: Iterable[Node]) -> None:
        """Time the leases of suspended nodes, in case the instance that suspended them has died."""
        now = time.monotonic()
        ends = {}
        for node in nodes:
            if node.suspended_at is not None and not node.drained:
                end = self._lease_ends.get(node.generation, now + node.lease_seconds)
                ends[node.generation] = end
                if now >= end:
                    self._store.drain_node(node.name, node.generation)
        self._lease_ends = ends

    def _reinstate(self, nodes: Iterable[Node]) -> None:
        candidates = {node.name: node for node in nodes if node.drained and not node.held}
        failures = self._client.probe({name: node.url for name, node in candidates.items()})
        for name, reason in failures.items():
            if self._failures.get(name) != reason:
                log.info("the cache %s stays suspended: it %s", name, reason)
        self._failures = failures
        good = {}
        for name, node in candidates.items():
            if name in failures:
                continue
            good[name] = self._good_probes.get(name, 0) + 1
            if good[name] >= _GOOD_PROBES and self._store.reinstate_node(name, node.generation):
                log.warning("the cache %s takes part again", name)
        self._good_probes = good

    def _sweep(self) -> None:
        """Purge what a writer that died, or that is not the service, did not purge."""
        while not self._background.is_stopping:
            changes = self._store.unconfirmed(_SWEEP_SECONDS, _SWEEP_CHANGES)
            if not changes:
                return
            if not all(change.key for change in changes):
                self._store.renew_generations()
            # No answer waits for these, so a node that fails need only be suspended.
            self._purge_nodes(
                self._store.nodes(),
                [path for change in changes for path in _paths(change.bucket, [change.key])],
            )
            self._store.confirm([change.id for change in changes])
            self._counts["swept"] += len(changes)
            log.info("purged %d changes in place of their writers", len(changes))
            if len(changes) < _SWEEP_CHANGES:
                return


def _paths(bucket: str, keys: Iterable[str]) -> list[str]:
    """The one cacheable spelling of each object's URL."""
    return [f"/kv/{bucket}/{key}" for key in dict.fromkeys(keys) if key]


@contextmanager
def _unacknowledged() -> Iterator[None]:
    """Say of an error that the change has been made: it came after the commit."""
    try:
        yield
    except StoreError as error:
        raise StoreError(
            503,
            f"The change is made but not acknowledged. {error.detail}",
            code="outcome_unknown",
            unknown=True,
        ) from error
