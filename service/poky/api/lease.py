"""/lease: how long a cache may use its copies, and under which generation; or that it has ended."""

from poky.api.guard import require
from poky.api.services import Services
from poky.http import Answer, Environ, refuse
from poky.store import StoreError

_AWAY = ("database_unavailable", "outcome_unknown")


def get_lease(services: Services, environ: Environ) -> Answer:
    """A lease for the node that Poky-Node names; 403 is no.

    A node that gets neither 200 nor 403 may use the lease that it has to its end. It is told if
    that is because PostgreSQL is away (Poky-Database: away).
    """
    try:
        lease = services.caches.lease(environ.get("HTTP_POKY_NODE", ""))
    except StoreError as error:
        if error.code not in _AWAY:
            raise
        raise refuse(error.status, error.code, error.detail, [("Poky-Database", "away")]) from error
    if lease is None:
        return Answer("403 Forbidden", [])
    return Answer(
        "200 OK",
        [("Poky-Generation", lease.generation), ("Poky-Lease", f"{lease.seconds:.3f}")],
    )


def delete_lease(services: Services, environ: Environ) -> Answer:
    """The node that Poky-Node names has ended: no change has to wait for its lease.

    Said twice, because a request may be late. The first one suspends the node, which is safe at
    any time, and answers Poky-Generation; the second one brings that back, and ends no lease that
    was granted since. 403 is no.
    """
    generation = services.caches.leave(
        environ.get("HTTP_POKY_NODE", ""), environ.get("HTTP_POKY_GENERATION", "")
    )
    if generation is None:
        return Answer("403 Forbidden", [])
    return Answer("200 OK", [("Poky-Generation", generation)])


def get_access(services: Services, environ: Environ, bucket: str) -> Answer:
    """Whether the bucket's objects may be read with this Authorization: 200, 401 or 403.

    Asked of PostgreSQL each time: the cache keeps it until the policy or the token ends
    (Poky-Access, in seconds; absent: no end).
    """
    if services.gate is None:
        # A cache asks already, so a deploy is under way: not to be kept until all instances ask.
        return Answer("200 OK", [("Poky-Access", "0")])
    decision = services.gate.ask(environ.get("HTTP_AUTHORIZATION", ""), "read", bucket)
    require(decision, "read", bucket)
    seconds = decision.seconds_left()
    return Answer("200 OK", [] if seconds is None else [("Poky-Access", f"{seconds:.3f}")])
