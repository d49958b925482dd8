"""What the process exports of its parts that know nothing of metrics."""

from collections.abc import Callable

from poky.access import Gate
from poky.config import Config
from poky.http import Budget, Server
from poky.logs import Log
from poky.metrics import Figure, Figures, Sizes
from poky.store import Store


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
    """The pool for the work of clients."""
    counts = store.counts
    return {
        "database_busy": Figure("Busy connections to PostgreSQL.", lambda: store.connections[0]),
        "database_idle": Figure("Idle connections to PostgreSQL.", lambda: store.connections[1]),
        "database_pool_size": Figure(
            "Connections to PostgreSQL at most (POKY_POOL_SIZE).", lambda: store.pool_size
        ),
        "database_waits": Figure(
            "Statements that waited for a connection.", lambda: counts.get("waits"), "counter"
        ),
        "database_wait_seconds": Figure(
            "Time that statements waited for a connection.",
            lambda: counts.get("wait_seconds"),
            "counter",
        ),
        "database_wait_timeouts": Figure(
            "Statements refused: no connection became free in time.",
            lambda: counts.get("timeouts"),
            "counter",
        ),
        "database_connects": Figure(
            "Attempts to connect to PostgreSQL.", lambda: counts.get("connects"), "counter"
        ),
        "database_retries": Figure(
            "Statements tried again.", lambda: counts.get("retries"), "counter"
        ),
        "database_errors": Figure(
            "Errors by SQLSTATE; “connection”: it could not be made, or was lost.",
            lambda: counts.errors,
            "counter",
            "sqlstate",
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
