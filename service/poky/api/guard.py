"""The guard: asks the gate before a handler, and lets its statements hold under that decision only.

A route's row names the right; the bucket is in its path. What is refused here says nothing of
whether a bucket or an object exists. What the gate has not granted yet it asks of PostgreSQL, which
a lane does: a thread that serves clients would have others wait.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from poky.access import Decision, Gate, Place, Verdict
from poky.api.later import in_lane
from poky.api.services import Services
from poky.http import Answer, Environ, Later, Refused, problem
from poky.sharing import Lane

_CHALLENGE = ("WWW-Authenticate", 'Bearer realm="poky"')

Handler = Callable[..., Answer | Later]


def guarded(handler: Handler, right: str, gate: Gate) -> Handler:
    """The handler behind a gate: 401 without a valid token, 403 without the right.

    Several rights, joined by commas, are needed all.
    """
    first, _, others = right.partition(",")
    if others:
        return guarded(guarded(handler, others, gate), first, gate)

    def guarding(services: Services, environ: Environ, **names: Any) -> Answer | Later:
        place = environ.get("HTTP_AUTHORIZATION", ""), right, names.get("bucket")
        policy = _decide(gate, place, environ)
        with gate.store.under(policy, partial(_renew, gate, place, environ)):
            return handler(services, environ, **names)

    return guarding


def asked_ahead(handler: Handler, right: str, gate: Gate, lane: Lane) -> Handler:
    """The same for threads that serve clients: what the gate has not granted yet, a lane asks."""
    first, _, others = right.partition(",")
    if others:
        return asked_ahead(asked_ahead(handler, others, gate, lane), first, gate, lane)

    def asking(services: Services, environ: Environ, **names: Any) -> Answer | Later:
        place = environ.get("HTTP_AUTHORIZATION", ""), right, names.get("bucket")
        decision = gate.kept(place)
        if decision is not None:
            environ["poky.grants"] = decision.grants
            with gate.store.under(decision.policy, partial(_renew, gate, place, environ)):
                return handler(services, environ, **names)
        since = time.monotonic()

        def ask(environ: Environ) -> None:
            with gate.store.under(None, since=since):
                require(gate.decide(*place), *place[1:])

        return in_lane(lane, ask, environ)

    return asking


def _decide(gate: Gate, place: Place, environ: Environ) -> str:
    """The policy under which the gate grants it; 401 or 403 if it does not."""
    decision = gate.decide(*place)
    require(decision, *place[1:])
    environ["poky.grants"] = decision.grants
    return decision.policy


def _renew(gate: Gate, place: Place, environ: Environ, policy: str) -> str:
    gate.forget(policy)
    return _decide(gate, place, environ)


def require(decision: Decision, right: str, bucket: str | None) -> None:
    """Raise 401 or 403 unless the gate granted it."""
    if decision.verdict is Verdict.UNKNOWN:
        raise Refused(
            problem(
                401,
                "token_needed",
                "Send a valid token: Authorization: Bearer poky_….",
                [_CHALLENGE],
            )
        )
    if decision.verdict is Verdict.REFUSED:
        where = "any bucket" if bucket is None else "this bucket"
        raise Refused(
            problem(
                403,
                "right_needed",
                f"Ask the operator for the right {right} in {where}: this token does not have it.",
            )
        )
