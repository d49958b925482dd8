"""The faults that strike while the load runs: each leaves the stack whole again."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from poky.schema import SchemaError
from tests.coherence.gate import Weather
from tests.coherence.stack import Stack
from tests.service import wait_until


@dataclass(frozen=True)
class Fault:
    """A name, a sentence, and one round of it; a round may be repeated."""

    name: str
    says: str
    strike: Callable[[Stack], None]
    alterations: str = ""  # of the service (tests.coherence.instance), while this fault is on
    vcl: str = ""  # what is broken in Varnish (tests.vcl.sabotage)
    stalls: bool = False  # threads are held up anywhere, of the service and of Varnish
    ttl: int = 0  # seconds after which half of the objects expire
    shows: str = ""  # what the admin listener's page says; empty: nothing that an operator minds


def nothing(stack: Stack) -> None:
    time.sleep(1)


def purges_lost(stack: Stack) -> None:
    for gate in stack.purge_gates:
        gate.weather = Weather(lost=0.02)
    time.sleep(2 * stack.lease_seconds)
    _clear_up(stack)


def purges_dropped(stack: Stack) -> None:
    gate = random.choice(stack.purge_gates)
    gate.weather = Weather(lost=1.0)
    time.sleep(2 * stack.lease_seconds)
    _clear_up(stack)


def purges_late(stack: Stack) -> None:
    """In good time, but long after the change was made."""
    for gate in stack.purge_gates:
        gate.weather = Weather(late=0.2)
    time.sleep(2 * stack.lease_seconds)
    _clear_up(stack)


def purges_refused(stack: Stack) -> None:
    for gate in stack.purge_gates:
        gate.weather = Weather(refused=True)
    time.sleep(2 * stack.lease_seconds)
    _clear_up(stack)


def leases_slow(stack: Stack) -> None:
    """Near the limit, over it, and so late that the lease has run out; purges fail meanwhile."""
    for share in (0.3, 0.6, 1.2):
        for gate in stack.lease_gates:
            gate.weather = Weather(delay=share * stack.lease_seconds)
        time.sleep(stack.lease_seconds)
        random.choice(stack.purge_gates).weather = Weather(lost=1.0)
        time.sleep(stack.lease_seconds)
        for gate in stack.purge_gates:
            gate.fair()
    _clear_up(stack)


def leases_late(stack: Stack) -> None:
    """Granted long before it arrives; and when then all fails, the grant is what counts."""
    for gate in stack.lease_gates:
        gate.weather = Weather(delay=0.25 * stack.lease_seconds)
    # At any moment between two grants: the stack that has just become whole keeps time with us.
    time.sleep((1 + random.random()) * stack.lease_seconds)
    for gate in [*stack.purge_gates, *stack.lease_gates]:
        gate.weather = Weather(refused=True)
    time.sleep(stack.lease_seconds + 1)
    _clear_up(stack)


def leases_cut(stack: Stack) -> None:
    for gate in stack.lease_gates:
        gate.weather = Weather(refused=True)
    time.sleep(2 * stack.lease_seconds)
    _clear_up(stack)


def varnish_paused(stack: Stack) -> None:
    cache = random.choice(stack.caches)
    cache.pause()
    time.sleep(stack.lease_seconds + 2)
    cache.resume()
    _clear_up(stack)


def varnish_restarted(stack: Stack) -> None:
    cache = random.choice(stack.caches)
    cache.stop()
    time.sleep(1)
    cache.start()
    _clear_up(stack)


def vcl_reloaded(stack: Stack) -> None:
    for cache in stack.caches:
        cache.reload()
    time.sleep(1)


def instance_killed(stack: Stack) -> None:
    service = random.choice(stack.services)
    service.stop(signal.SIGKILL)
    time.sleep(1)
    service.start()
    time.sleep(1)


def instances_restarted(stack: Stack) -> None:
    for service in stack.services:
        service.stop()
        service.start()
        time.sleep(1)


def database_killed(stack: Stack) -> None:
    killed = stack.database.pid
    os.kill(killed, signal.SIGQUIT)
    wait_until(lambda: stack.database.pid != killed, 60, "PostgreSQL is started again")
    wait_until(lambda: all(service.is_ready() for service in stack.services), 60, "database is up")
    _clear_up(stack)


def node_removed(stack: Stack) -> None:
    """Removed by the operator's command while clients still read through it; then added again."""
    stack.poky("cache", "remove", stack.caches[-1].name)
    time.sleep(stack.lease_seconds)
    instances_restarted(stack)
    _clear_up(stack)


def node_suspended(stack: Stack) -> None:
    name = stack.caches[0].name
    stack.poky("cache", "suspend", name)
    time.sleep(1)
    stack.poky("cache", "resume", name)
    _clear_up(stack)


def caches_emptied(stack: Stack) -> None:
    stack.poky("cache", "purge", "--all")
    time.sleep(1)


def bucket_moved(stack: Stack) -> None:
    stack.move_bucket()
    time.sleep(0.5)


def bucket_moved_instance_killed(stack: Stack) -> None:
    """While it moves, an instance is killed, and started again."""
    with _moving(stack):
        service = random.choice(stack.services)
        service.stop(signal.SIGKILL)
        service.start()


def bucket_moved_database_killed(stack: Stack) -> None:
    """While it moves, PostgreSQL crashes: the move goes on by itself, or when it is asked again."""
    with _moving(stack):
        database_killed(stack)


@contextmanager
def _moving(stack: Stack) -> Iterator[None]:
    """The bucket moves inside, or has just moved; at the end it has."""
    move = stack.next_move()

    def has_moved() -> bool:
        with suppress(SchemaError):
            move()
            return True
        return False

    thread = threading.Thread(target=wait_until, args=(has_moved, 60))
    thread.start()
    time.sleep(random.random())
    yield
    thread.join()


def _clear_up(stack: Stack) -> None:
    for gate in [*stack.purge_gates, *stack.lease_gates]:
        gate.fair()
    stack.wait_until_whole()
    stack.forgive()  # another strike soon is no relapse, for which a node would pause for longer


NONE = Fault("none", "No fault.", nothing)

FAULTS = (
    Fault("slow-reads", "The service answers long after it has read.", nothing, "slow_reads"),
    Fault("stalls", "Any thread may be held up between any two steps.", nothing, stalls=True),
    Fault("purges-lost", "One purge in fifty gets no answer.", purges_lost, shows="is suspended"),
    Fault(
        "purges-dropped",
        "One node hears no purge (a firewall drops).",
        purges_dropped,
        shows="is suspended",
    ),
    Fault(
        "purges-late",
        "Purges arrive late at all nodes, but in time.",
        purges_late,
        shows="to confirm a purge",
    ),
    Fault("purges-refused", "No node accepts a purge.", purges_refused, shows="is suspended"),
    Fault(
        "leases-slow",
        "Leases arrive late or too late, and purges are lost.",
        leases_slow,
        shows="is suspended|no lease|not renew its lease",
    ),
    Fault("leases-cut", "No lease arrives.", leases_cut, shows="not renew its lease|no lease"),
    Fault(
        "varnish-paused",
        "A node is stopped (SIGSTOP) for longer than a lease.",
        varnish_paused,
        shows="is suspended|not renew its lease",
    ),
    Fault(
        "varnish-restarted",
        "A node is killed and started.",
        varnish_restarted,
        shows="is suspended|not renew its lease",
    ),
    Fault("vcl-reloaded", "The VCL is loaded again, all the time.", vcl_reloaded),
    Fault(
        "instance-killed",
        "An instance is killed (SIGKILL) and started.",
        instance_killed,
        shows="instance .* is gone",
    ),
    Fault(
        "rolling-restart",
        "The instances restart in turn, as in a deploy.",
        instances_restarted,
        shows="instance .* is gone",
    ),
    Fault(
        "database-killed",
        "PostgreSQL crashes and recovers.",
        database_killed,
        shows="database does not answer",
    ),
    Fault(
        "node-removed",
        "A node is removed by command and added again.",
        node_removed,
        shows="does not take part|suspended by command",  # until its lease has ended
    ),
    Fault(
        "node-suspended",
        "A node is suspended by command and resumed.",
        node_suspended,
        shows="is suspended by command",
    ),
    Fault("caches-emptied", "All caches are told to forget everything.", caches_emptied),
    Fault("expiring", "Half of the objects expire after a second.", nothing, ttl=1),
    Fault(
        "expiring-slow-reads",
        "They do, and the service answers long after it has read.",
        nothing,
        "slow_reads",
        ttl=1,
    ),
)

# With several databases (SHARDS=3).
MOVES = (
    Fault("bucket-moved", "The bucket moves from database to database.", bucket_moved),
    Fault(
        "bucket-moved-slow-reads",
        "It does, and the service answers long after it has read.",
        bucket_moved,
        "slow_reads",
    ),
    Fault(
        "bucket-moved-instance-killed",
        "An instance is killed (SIGKILL) while the bucket moves.",
        bucket_moved_instance_killed,
    ),
    Fault(
        "bucket-moved-database-killed",
        "PostgreSQL crashes while the bucket moves.",
        bucket_moved_database_killed,
    ),
)
