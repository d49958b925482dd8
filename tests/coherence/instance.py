"""``poky serve`` with something altered: how slow reads are made, and how the service is sabotaged.

``python -m tests.coherence.instance serve``; the environment names the alterations. Production code
has no switch for any of this.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from poky import cache, cli, sharing, store
from poky.api import batches
from poky.store import pool


def slow_reads() -> None:
    """Between the database's answer and ours there passes time, in which much can be written."""

    add = sharing.Reads.add

    def add_slow(self: sharing.Reads, read: sharing.Read) -> None:
        if random.random() < 0.2:
            read = read._replace(done=lambda found, done=read.done: tell_later(done, found))
        add(self, read)

    def tell_later(done: Callable[[Any], None], found: Any) -> None:
        threading.Timer(random.random() * 0.2, done, [found]).start()

    sharing.Reads.add = add_slow  # type: ignore[method-assign]


def stalls() -> None:
    """Before and after whatever is asked of the database or of the caches there may pass time."""
    verbs = ("get", "get_each", "change_each", "put_many", "delete_many", "nodes", "lease")
    for verb in (*verbs, "suspend_node", "drain_node", "reinstate_node", "unconfirmed", "confirm"):
        _hold_up(store.Store, verb)
    _hold_up(cache.PurgeClient, "purge")


def _hold_up(owner: type, verb: str) -> None:
    original = getattr(owner, verb)

    def held_up(*arguments: Any, **named: Any) -> Any:
        _stall()
        result = original(*arguments, **named)
        _stall()
        return result

    setattr(owner, verb, held_up)


def _stall() -> None:
    if random.random() < 0.02:
        time.sleep(random.random() * 0.05)


def purge_before_commit() -> None:
    """The caches hear of a change before it is made."""
    made = cache.Caches.__init__
    caches: list[cache.Caches] = []

    def init(self: cache.Caches, *arguments: Any) -> None:
        made(self, *arguments)
        caches.append(self)

    def purge_each(self: cache.Caches, _objects: Any, ids: Any, done: Any) -> None:
        self._confirmed.extend(ids)
        done(None)

    cache.Caches.__init__ = init  # type: ignore[method-assign]
    cache.Caches.purge = lambda self, _bucket, _keys, ids: self._confirmed.extend(ids)  # type: ignore[method-assign]
    cache.Caches.purge_each = purge_each  # type: ignore[method-assign]
    for verb in ("put_many", "delete_many"):
        _before(verb, lambda bucket, keys, *_: caches[0].purge_keys(bucket, keys))
    _before("change_each", lambda writes, *_: _purge_writes(caches[0], writes))


def _purge_writes(caches: cache.Caches, writes: Sequence[store.Write]) -> None:
    for write in writes:
        caches.purge_keys(write.bucket, [write.key])


def _before(verb: str, purge: Callable[..., None]) -> None:
    original = getattr(store.Store, verb)

    def told_first(self: Any, *arguments: Any) -> Any:
        purge(*arguments)
        return original(self, *arguments)

    setattr(store.Store, verb, told_first)


def nodes_before_commit() -> None:
    """A write reads the nodes before its commit, and then takes its time."""
    early = threading.local()
    nodes = store.Store.nodes
    store.Store.nodes = lambda self: early.__dict__.pop("nodes", None) or nodes(self)  # type: ignore[method-assign]
    for verb in ("change_each", "put_many", "delete_many"):
        original = getattr(store.Store, verb)

        def looks_first(self: Any, *arguments: Any, _original: Any = original) -> Any:
            found = nodes(self)
            if random.random() < 0.2:
                time.sleep(random.random() * 2)
            outcome = _original(self, *arguments)
            early.nodes = found
            return outcome

        setattr(store.Store, verb, looks_first)


def no_purge_on_insert() -> None:
    """An insert assumes that no cache can have a copy."""
    _forget_outbox("change_each", lambda outcome: outcome.outcome == "inserted")
    _forget_outbox("put_many", lambda outcome: outcome.outcome == "inserted")


def no_purge_for_batches() -> None:
    """Only single writes are purged."""
    _forget_outbox("put_many", lambda _: True)
    _forget_outbox("delete_many", lambda _: True)


def refusals_first() -> None:
    """A refusal is answered at once, whatever caches know of what it tells."""
    change_each = store.Store.change_each

    def untold(self: store.Store, *arguments: Any) -> Any:
        outcomes = change_each(self, *arguments)
        return [o._replace(outbox_id=None) if o.outbox_id == 0 else o for o in outcomes]

    def tell_of_changes(services: Any, bucket: str, keys: Sequence[str], outcomes: Any) -> None:
        changed = [(key, o) for key, o in zip(keys, outcomes, strict=True) if o.outbox_id]
        if changed:
            ids = [o.outbox_id for _, o in changed]
            services.caches.purge(bucket, [key for key, _ in changed], ids)

    store.Store.change_each = untold  # type: ignore[method-assign]
    batches._tell_caches = tell_of_changes


def stays_skipped() -> None:
    """What was recorded before a bucket moved is left out: its followers go on where it is now."""

    def skip(self: store.ShardedStore, stay: Any, *_: Any) -> store.ChangesPage:
        return store.ChangesPage([], stay["next"], False, self.policy_tag()[0])

    store.ShardedStore.changes_of = skip  # type: ignore[method-assign]


def stays_repeated() -> None:
    """Who goes on after a stay begins it again once in a while."""
    changes_of = store.ShardedStore.changes_of

    def again(self: store.ShardedStore, stay: Any, after: str, *place: Any) -> store.ChangesPage:
        return changes_of(self, stay, after if random.random() < 0.8 else "0", *place)

    store.ShardedStore.changes_of = again  # type: ignore[method-assign]


def decisions_kept() -> None:
    """A decision is kept, and no statement asks whether it still holds."""
    pool._guarded = lambda policy, statement: statement


def _forget_outbox(verb: str, chosen: Callable[[Any], bool]) -> None:
    original = getattr(store.Store, verb)

    def forgetful(self: Any, *arguments: Any) -> Any:
        result = original(self, *arguments)
        return [o._replace(outbox_id=None) if chosen(o) else o for o in result]

    setattr(store.Store, verb, forgetful)


ALTERATIONS = {
    each.__name__: each
    for each in (
        *(slow_reads, stalls, purge_before_commit, nodes_before_commit),
        *(no_purge_on_insert, no_purge_for_batches, refusals_first, decisions_kept),
        *(stays_skipped, stays_repeated),
    )
}

if __name__ == "__main__":
    for name in os.environ["COHERENCE_ALTERATIONS"].split():
        ALTERATIONS[name]()
    cli.main()
