"""What the process exports of its parts that know nothing of metrics."""

from collections.abc import Callable, Mapping
from typing import Any

from poky.access import Gate
from poky.config import Config
from poky.health import Shards
from poky.http import Budget, Server
from poky.logs import Log
from poky.metrics import Figure, Figures, Sizes
from poky.store import ShardedStore, ShardState, Store


def of_process(config: Config, lines: Log) -> Figures:
    """Its release and its log."""
    return {
        "build_info": Figure(
            "1; the label is the release.", lambda: {config.release: 1.0}, label="release"
        ),
        "log_dropped_lines": Figure(
            "Lines of the log that could not be written.", lambda: lines.dropped, "counter"
        ),
    }


def of_listener(listener: Callable[[], Server], budget: Budget) -> Figures:
    """The main listener's requests, connections and memory."""
    return {
        "inflight": Figure("Requests being answered.", lambda: listener().in_flight),
        "connections": Figure("Client connections.", lambda: len(listener().connections)),
        "refused_connections": Figure(
            "Client connections refused: there were too many.",
            lambda: listener().refused,
            "counter",
        ),
        "inflight_bytes": Figure("Memory of requests and answers.", budget.used),
        "inflight_bytes_limit": Figure(
            "The budget for that memory (POKY_MAX_INFLIGHT_BYTES).", lambda: budget.limit
        ),
        "inflight_refusals": Figure(
            "Requests and answers refused: the budget had no room.",
            lambda: budget.refused,
            "counter",
        ),
    }


def of_store(store: Store) -> Figures:
    """The pool for the work of clients; of several databases that of each, by ``shard``."""
    label = ""
    stores: dict[str, Store] = {}
    if isinstance(store, ShardedStore):
        label = "shard"
        stores = {f"{number}": store.of_shard(number) for number in store.shards}

    def of_each(read: Callable[[Store], float]) -> Callable[[], float | Mapping[str, float]]:
        if not stores:
            return lambda: read(store)
        return lambda: {number: read(each) for number, each in stores.items()}

    def of_counts(name: str) -> Callable[[], float | Mapping[str, float]]:
        return of_each(lambda each: each.counts.get(name))

    def errors() -> Mapping[Any, float]:
        if not stores:
            return store.counts.errors
        return {
            (number, sqlstate): count
            for number, each in stores.items()
            for sqlstate, count in dict(each.counts.errors).items()
        }

    return {
        "database_busy": Figure(
            "Busy connections to PostgreSQL.",
            of_each(lambda each: each.connections[0]),
            label=label,
        ),
        "database_idle": Figure(
            "Idle connections to PostgreSQL.",
            of_each(lambda each: each.connections[1]),
            label=label,
        ),
        "database_pool_size": Figure(
            "Connections to PostgreSQL at most (POKY_POOL_SIZE).",
            of_each(lambda each: each.pool_size),
            label=label,
        ),
        "database_waits": Figure(
            "Statements that waited for a connection.", of_counts("waits"), "counter", label
        ),
        "database_wait_seconds": Figure(
            "Time that statements waited for a connection.",
            of_counts("wait_seconds"),
            "counter",
            label,
        ),
        "database_wait_timeouts": Figure(
            "Statements refused: no connection became free in time.",
            of_counts("timeouts"),
            "counter",
            label,
        ),
        "database_connects": Figure(
            "Attempts to connect to PostgreSQL.", of_counts("connects"), "counter", label
        ),
        "database_retries": Figure(
            "Statements tried again.", of_counts("retries"), "counter", label
        ),
        "database_errors": Figure(
            "Errors by SQLSTATE; “connection”: it could not be made, or was lost.",
            errors,
            "counter",
            f"{label} sqlstate".strip(),
        ),
    }


def of_shards(shards: Shards) -> Figures:
    """Each database of several, asked when they are read; nothing where there is one."""
    if not shards.numbers:
        return {}

    def of_held(read: Callable[[ShardState], float]) -> Callable[[], Mapping[str, float]]:
        return lambda: {f"{each.number}": read(each.held) for each in shards.seen if each.held}

    return {
        "shard_up": Figure(
            "Whether a database of several answers and suits this release.",
            lambda: {f"{each.number}": float(each.state.ok) for each in shards.check()},
            label="shard",
        ),
        "shard_bytes": Figure(
            "The size of a database of several, within a minute.",
            of_held(lambda held: held.bytes),
            label="shard",
        ),
        "shard_buckets": Figure(
            "Buckets in a database of several, within a minute.",
            of_held(lambda held: held.buckets),
            label="shard",
        ),
    }


def of_gate(gate: Gate | None) -> Figures:
    """What was refused for want of a token or a right."""
    return {
        "tokens_refused": Figure(
            "Requests refused: no valid token (unknown), or one without the right (refused).",
            lambda: gate.refusals if gate else {},
            "counter",
            "verdict",
        ),
    }


def of_shared(verb: str, sizes: Sizes) -> Figures:
    """Statements that requests share."""
    return {
        f"shared_{verb}_statements": Figure(
            f"Statements for {verb} of objects.", lambda: sizes.count, "counter"
        ),
        f"shared_{verb}_objects": Figure(
            f"Objects in the statements for {verb}.", lambda: sizes.sum, "counter"
        ),
        f"shared_{verb}_group_objects": Figure(
            f"Statements for {verb} by how many objects they share.", lambda: sizes, "histogram"
        ),
    }
