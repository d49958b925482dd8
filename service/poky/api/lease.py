"""/lease: a cache asks how long it may use its copies, and under which generation."""

from poky.api.services import Services
from poky.http import Answer, Environ


def get_lease(services: Services, environ: Environ) -> Answer:
    """A lease for the node that Poky-Node names; 403 is no.

    A node that gets neither 200 nor 403 may use the lease that it has to its end.
    """
    lease = services.caches.lease(environ.get("HTTP_POKY_NODE", ""))
    if lease is None:
        return Answer("403 Forbidden", [])
    return Answer(
        "200 OK",
        [("Poky-Generation", lease.generation), ("Poky-Lease", f"{lease.seconds:.3f}")],
    )
