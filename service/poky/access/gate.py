"""The gate: decides from a request's Authorization whether a right in a bucket is granted.

A decision holds under one *policy*, the tag that every change of a token or of a public bucket
replaces. The store sends the tag along with the request's own statement, which PostgreSQL refuses
under any other (``PolicyChanged``); so a decision may be kept as long as the tag stays, and a
revoked token is refused from the revocation's commit on, at every instance.
"""

import enum
import threading
import time
from typing import NamedTuple

from poky.access.grants import Grants
from poky.access.tokens import Token
from poky.store import Store

_MOST_KEPT = 10_000
_TOUCH_IDS = 10_000
_KEPT_SECONDS = 3600.0


class Verdict(enum.Enum):
    """What a gate says."""

    GRANTED = "granted"
    UNKNOWN = "unknown"  # no token, or none that is valid: 401
    REFUSED = "refused"  # a valid token without the right: 403


class Decision(NamedTuple):
    """A verdict, the policy that it holds under, and until when (time.monotonic)."""

    verdict: Verdict
    policy: str
    grants: Grants | None  # None: without a token
    until: float

    def seconds_left(self) -> float | None:
        """How long the token is valid still; None: it has no end."""
        return None if self.until == float("inf") else max(self.until - time.monotonic(), 0.0)


#: a field Authorization (empty: none), a right, and a bucket (None: any)
Place = tuple[str, str, str | None]


class Gate:
    """Decides for one service process; keeps what it has granted under the policy of now."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._policy = ""
        self._decisions: dict[Place, Decision] = {}
        self._used: set[str] = set()
        self._anew = time.monotonic() + _KEPT_SECONDS
        self._lock = threading.Lock()
        #: requests without the token (unknown) or the right (refused) that they need
        self.refusals = {"unknown": 0, "refused": 0}

    def decide(self, authorization: str, right: str, bucket: str | None) -> Decision:
        """Decide for the field Authorization (empty: none). Raises StoreError."""
        place = (authorization, right, bucket)
        decision = self.kept(place)
        if decision is None:
            decision = self.ask(authorization, right, bucket)
            self._keep(place, decision)
        if decision.verdict is not Verdict.GRANTED:
            self.refusals[decision.verdict.value] += 1
        return decision

    def kept(self, place: Place) -> Decision | None:
        """The decision that grants it, if there is one already; PostgreSQL is not asked."""
        decision = self._decisions.get(place)
        return decision if decision is not None and decision.until > time.monotonic() else None

    def forget(self, policy: str) -> None:
        """Drop all decisions made under a policy that is no longer the database's."""
        with self._lock:
            if self._policy == policy:
                self._policy = ""
                self._decisions = {}

    def record_use(self) -> None:
        """Record which tokens were used since the last call. Raises StoreError.

        What is kept is asked again once an hour, so that a token that goes on is noticed each day.
        """
        if time.monotonic() >= self._anew:
            with self._lock:
                self._anew = time.monotonic() + _KEPT_SECONDS
                self._decisions = {}
        used, self._used = self._used, set()
        if used:
            try:
                self.store.touch_tokens(list(used))
            except Exception:
                self._used |= used
                raise

    def ask(self, authorization: str, right: str, bucket: str | None) -> Decision:
        """Decide by what PostgreSQL says now. Raises StoreError."""
        token = Token.from_authorization(authorization) if authorization else None
        asked = time.monotonic()
        found = self.store.credential(token.id if token else "", bucket or "")
        until = float("inf") if found.seconds_left is None else asked + found.seconds_left
        grants = None
        verdict = Verdict.UNKNOWN
        if token is not None and token.is_one_of(found.hashes):
            grants = Grants(tuple(found.grants))
            verdict = Verdict.GRANTED if grants.allow(right, bucket) else Verdict.REFUSED
            if len(self._used) < _TOUCH_IDS:
                self._used.add(token.id)
        # A token that is not valid opens nothing, a public bucket included: its holder is to know.
        if found.public_read and right == "read" and (grants is not None or not authorization):
            verdict = Verdict.GRANTED
        return Decision(verdict, found.policy, grants, until)

    def _keep(self, place: Place, decision: Decision) -> None:
        if decision.verdict is not Verdict.GRANTED:
            return  # no statement follows that would find it outdated; and guesses are many
        with self._lock:
            if decision.policy != self._policy or len(self._decisions) >= _MOST_KEPT:
                self._policy = decision.policy
                self._decisions = {}
            self._decisions[place] = decision
