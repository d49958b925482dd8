"""The process: builds the objects, starts the listeners, handles signals, shuts down gracefully.

The only place where store, caches, contract and listeners meet. Speaks systemd's protocol
(sd_notify(3)); knows nothing of objects and keys.
"""

import contextlib
import ctypes
import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from poky import figures
from poky.access import Gate
from poky.api import (
    ADMIN_ROUTES,
    LEASE_ROUTES,
    ROUTES,
    Origins,
    Services,
    Sight,
    application,
    of_known_host,
)
from poky.background import Background
from poky.cache import Caches
from poky.config import Config, is_path
from poky.feed import Feed
from poky.health import Health, Instances, Shards
from poky.http import Budget, CannotListen, Server
from poky.logs import Log, take_over
from poky.metrics import Metrics, Prometheus, Statsd
from poky.probe import Probe
from poky.reaper import start_reapers
from poky.sharing import BEGIN_SECONDS, Lane, Stages, open_lane, open_sharing
from poky.store import Store, open_store

Environ = dict[str, Any]

log = logging.getLogger("poky.process")

_CONNECTION_HEADROOM = 65_536
_STUCK_SECONDS = 20.0
_LOOK_SECONDS = 5.0  # for instances that come and go
_USE_SECONDS = 5.0  # within which it is recorded that a token was used
_PREFIXES = ("POKY_", "POKY_ADMIN_", "POKY_LEASE_")  # of the listeners' settings, in their order
# What a request's body takes while it is stored, times its length: the body, or instead of it three
# copies of a literal of at most four thirds. `make abuse` measures it.
_BODY_FACTOR = 4
_M_MMAP_THRESHOLD = -3  # malloc.h
_MAPPED_BYTES = 256 * 1024


def _nothing() -> None:
    pass


def serve(config: Config, on_ready: Callable[[], None] = _nothing) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; returns the exit status: 0 if all requests finished.

    Starts and stays up while the database is away. Calls ``on_ready`` once all listeners accept.
    """
    schedule(config.cpu)  # before any thread starts
    lines = Log()
    handler = take_over(lines, config.log_format)
    return_large_memory()
    store, house = _open_stores(config)
    shards = Shards(house)
    background = Background(house)
    background.add("instances", (instances := Instances(house)).look, period=_LOOK_SECONDS)
    caches = Caches(house, config, background)
    stages = Stages() if config.server_timing == "on" else None
    reads, writes = open_sharing(store, caches, config.threads, stages)
    feed = Feed(house, background, config.max_followers)
    probe = Probe(house, writes, config)

    def after_turn(alone: bool) -> None:
        writes.after_turn(alone)
        reads.after_turn(alone)

    budget = Budget(config.max_inflight_bytes, _BODY_FACTOR)
    gate = Gate(store) if config.access == "tokens" else None
    if gate is not None:
        background.add("tokens", gate.record_use, period=_USE_SECONDS)
    metrics = Metrics(
        {
            **figures.of_process(config, lines),
            **figures.of_listener(lambda: listeners[0], budget),
            **figures.of_store(store),
            **figures.of_gate(gate),
            **figures.of_shared("reads", reads.sizes),
            **figures.of_shared("writes", writes.sizes),
            **caches.figures(),
            **background.figures(),
            **feed.figures(),
            **probe.figures(),
            **start_reapers(house, background),
            **figures.of_shards(shards),
        },
        Statsd(config.statsd_host, config.statsd_key_base) if config.statsd_host else None,
        access_log=lines if config.log_level in ("debug", "info") else None,
        log_format=config.log_format,
        buckets=config.metrics_buckets,
        writes=writes.sizes,
    )
    services = Services(
        store,
        caches,
        config,
        Health(house),
        lambda: listeners[0].in_flight,
        metrics.expose,
        background.status,
        gate,
        reads,
        writes,
        stages,
        {
            "batch": open_lane(store, "batch", max(config.threads // 2, 1)),
            "changes": open_lane(store, "changes", max(config.threads // 2, 1), 30),
            "status": Lane("status", 2),
            "admin": Lane("admin", 2),
            "page": Lane("page", 2),
            "access": Lane("access", max(config.threads // 2, 1), BEGIN_SECONDS),
        },
        Sight(
            history=lambda: tuple(metrics.history.samples),
            events=lambda: tuple(handler.recent),
            nodes=lambda: caches.seen,
            stale_at=lambda: probe.stale_at,
            failing_since=lambda: house.counts.failing_since,
            memory=lambda: (budget.used(), budget.limit),
            groups=lambda: (writes.sizes.count, writes.sizes.sum),
            purge_seconds=caches.purge_seconds,
            recent=metrics.recent,
            note=instances.note,
            gone=instances.gone,
            shards=shards.check,
            prometheus=Prometheus(config.prometheus_url) if config.prometheus_url else None,
            started_at=time.time(),
        ),
        house,
        feed=feed,
    )
    app = application(ROUTES, services, services.gate, origins=Origins(config.cors_origins))
    listeners = [
        Server(
            (config.listen, config.port),
            app,
            threads=max(config.threads, 2),
            max_body_bytes=max(config.max_value_bytes, config.max_batch_bytes),
            shutdown_timeout=config.shutdown_timeout,
            check=app.check,
            budget=budget,
            on_response=metrics.observe,
            after_turn=after_turn,
            late=writes.late,
        ),
        Server(
            config.admin_listen
            if is_path(config.admin_listen)
            else (config.admin_listen, config.admin_port),
            application(
                ADMIN_ROUTES, services._replace(stages=None), door=partial(of_known_host, config)
            ),
            threads=2,
            max_body_bytes=_CONNECTION_HEADROOM,
            shutdown_timeout=config.shutdown_timeout,
            on_response=metrics.observe,
        ),
    ]
    if config.caches:
        listeners.append(
            Server(
                (config.lease_listen, config.lease_port),
                application(LEASE_ROUTES, services._replace(stages=None)),
                threads=2,
                max_body_bytes=0,
                shutdown_timeout=1,
                server_name="poky-lease",
            )
        )
    stopping = Stopping()
    _stop_by_signals(stopping)
    if not _listen(listeners):
        return 1
    caches.start()
    probe.start(background)
    _accept(listeners, stopping)
    # Loaded modules live as long as the process: exclude them from garbage collection.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.001)
    log.info(
        "release %s serves http://%s:%d, admin on %s",
        config.release,
        config.listen,
        config.port,
        config.admin_listen if is_path(config.admin_listen) else f"port {config.admin_port}",
    )
    notify(f"READY=1\nSTATUS=serving on {config.listen}:{config.port}")
    # On a thread of its own: it writes, and a terminal may be held.
    threading.Thread(target=on_ready, daemon=True).start()
    _watch(listeners, stopping)
    notify("STOPPING=1\nSTATUS=finishing what runs")
    log.info("stopping: %d requests are running", listeners[0].in_flight)
    unfinished = _stop(listeners, config.shutdown_timeout)
    background.stop()
    caches.stop()
    metrics.close()
    store.close()
    house.close()
    if unfinished:
        log.error("%d requests were cut off at the deadline", unfinished)
    return 1 if unfinished else 0


def _open_stores(config: Config) -> tuple[Store, Store]:
    """Connections for the work of clients, and others for what must not wait for it."""
    name = f"poky {config.instance}"  # as PostgreSQL shows our sessions
    shards = {each.number: each.dsn for each in config.shards}
    store = open_store(
        config.dsn,
        shards,
        pool_size=config.pool_size,
        pool_timeout=config.pool_timeout,
        statement_timeout=config.statement_timeout,
        lock_timeout=config.lock_timeout,
        name=name,
    )
    house = open_store(config.dsn, shards, pool_size=4, pool_timeout=config.pool_timeout, name=name)
    return store, house


class Stopping:
    """An event that a signal's handler may set.

    threading.Event.set() waits for a lock, which Event.wait() may hold when it is interrupted.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._event = os.eventfd(0)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)

    def set(self) -> None:
        """Have the process end."""
        self.is_set = True
        os.eventfd_write(self._event, 1)

    def wait(self, seconds: float) -> bool:
        """Wait for that; whether it is set."""
        return bool(self._poll.poll(seconds * 1000))


def _stop_by_signals(stopping: Stopping) -> None:
    """End gracefully on SIGTERM, Ctrl-C and a terminal that closes; at once on a second Ctrl-C."""

    def stop(number: int, _: object) -> None:
        if number == signal.SIGINT and stopping.is_set:
            os._exit(1)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup(1)
            signal.signal(number, stop)


def _listen(listeners: Sequence[Server]) -> bool:
    """Open all listeners; False, after saying why in the log, if one cannot be opened."""
    for listener, prefix in zip(listeners, _PREFIXES, strict=False):
        try:
            listener.prepare()
        except CannotListen as error:
            at = listener.bind_addr
            address, port = (at, 0) if isinstance(at, str) else at
            log.error("%s", why_not(error.__cause__, str(address), int(port), prefix))
            return False
    return True


def why_not(error: BaseException | None, address: str, port: int, prefix: str) -> str:
    """Why a listener cannot be opened, and which setting to change (``prefix``: POKY_ADMIN_…)."""
    listen = f"{prefix}LISTEN"
    number = f"{prefix}PORT" if prefix != "POKY_" else "-p or POKY_PORT"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return (
            f"cannot listen on {address}: no name or address that this machine knows. Set {listen}"
            " to an address of this machine: 127.0.0.1, 0.0.0.0 for all, ::1 without brackets."
        )
    code = error.errno if isinstance(error, OSError) else None
    if is_path(address):
        reason = {
            errno.EADDRINUSE: "another program does",
            errno.EEXIST: "there is a file that is no socket",
        }.get(code or 0) or getattr(error, "strerror", None)
        return f"cannot listen on {address}: {reason or error}. Set {listen} to another path."
    if code == errno.EADDRINUSE:
        return (
            f"cannot listen on port {port} of {address}: another program does. Stop it, or choose"
            f" another port with {number}."
        )
    if code in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return (
            f"cannot listen on {address}: this machine does not have that address. Set {listen} to"
            " one that it has: 127.0.0.1, or 0.0.0.0 for all."
        )
    if code in (errno.EACCES, errno.EPERM):
        return (
            f"cannot listen on port {port}: this user may not. Ports below 1024 are for root,"
            f" mostly. Choose another port with {number}."
        )
    reason = getattr(error, "strerror", None) or error
    return f"cannot listen on port {port} of {address}: {reason}. See {listen} and {prefix}PORT."


def schedule(cpu: int) -> None:
    """Pin this process to one CPU and schedule it as SCHED_BATCH; below 0: change nothing.

    Waking a thread on another CPU costs as much as answering a GET, and the interpreter's lock runs
    one thread at a time anyway. The kernel then wakes PostgreSQL's processes on the same CPU. A
    SCHED_BATCH process does not preempt on wake-up.
    """
    if cpu < 0:
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[cpu % len(allowed)]})
    except OSError as error:
        log.warning("the system does not let us choose a CPU or how to run there: %s", error)


def return_large_memory() -> None:
    """Have malloc map every large buffer by itself, so that freeing it returns it to the system.

    glibc raises this threshold to the largest buffer that was freed, and takes the next ones from
    its heaps: there a few large values stay in memory for good.
    """
    with contextlib.suppress(OSError, AttributeError):  # another libc than glibc
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _accept(listeners: Sequence[Server], stopping: Stopping) -> None:
    for listener in listeners:
        threading.Thread(
            target=_serve_until_stopped, args=(listener, stopping), daemon=True
        ).start()


def _serve_until_stopped(listener: Server, stopping: Stopping) -> None:
    try:
        listener.serve()
    except Exception:
        log.exception("a listener ended")
    finally:
        stopping.set()


def _watch(listeners: list[Server], stopping: Stopping) -> None:
    """Feed systemd's watchdog while the workers poll; systemd restarts a process that hangs.

    An outage of PostgreSQL does not stop the heartbeat: a restart would not help.
    """
    microseconds = int(os.environ.get("WATCHDOG_USEC", "0") or 0)
    pause = microseconds / 3e6 if microseconds else 5.0
    while not stopping.wait(pause):
        quiet = max(time.monotonic() - listener.heartbeat for listener in listeners)
        if quiet < _STUCK_SECONDS:
            notify("WATCHDOG=1")
        else:
            log.error("no worker has looked for work in %.0f s", quiet)


def _stop(listeners: list[Server], timeout: float) -> int:
    """Stop all listeners in parallel; returns how many requests did not finish."""
    stoppers = [threading.Thread(target=listener.stop, daemon=True) for listener in listeners]
    for stopper in stoppers:
        stopper.start()
    deadline = time.monotonic() + timeout + 1
    for stopper in stoppers:
        stopper.join(max(deadline - time.monotonic(), 0))
    return sum(listener.in_flight for listener in listeners)


def notify(message: str) -> None:
    """Send a message to systemd (sd_notify(3)); a no-op without NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as peer,
    ):
        peer.sendto(message.encode(), address)
