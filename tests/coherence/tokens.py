"""Tokens that come and go under readers: one whose revocation was acknowledged opens nothing.

A *pass* is a token, or a public bucket (no token at all). One thread grants and ends passes, as
the command does; readers use those that are valid and those that were ended a moment ago, at every
node, through nginx and at the instances. A read that starts after the end was acknowledged and is
answered is *admitted*; one that is refused although its pass was valid all along is *refused*.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field

from poky.access import Token
from poky.background import Background
from poky.cache import Caches
from poky.config import Config
from poky.store import Store, StoreError
from tests.coherence.faults import Fault
from tests.coherence.stack import Stack
from tests.service import Client

NEVER = float("inf")
KEYS = 20
KEPT = 12  # passes in use, half of them ended
_phases = itertools.count(1)


@dataclass(eq=False)
class Pass:
    """A way in; times are those of time.monotonic()."""

    bucket: str
    token: Token | None
    granted: float = NEVER  # acknowledged
    ending: float = NEVER  # begun
    ended: float = NEVER  # acknowledged
    is_void: bool = False  # its bucket is about to be published again: it says nothing any more

    @property
    def kind(self) -> str:
        return "token" if self.token else "public bucket"

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass
class Result:
    """What a phase came to."""

    name: str
    reads: int = 0
    hits: int = 0
    after_end: int = 0  # reads that started after an acknowledged end
    admitted: int = 0
    refused: int = 0
    changes: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.admitted and not self.refused


class Passes:
    """Grants and ends passes, one at a time, and knows which to try."""

    def __init__(self, dsn: str, name: str, lease_seconds: float, purge_timeout: float) -> None:
        self._store = Store(dsn, pool_size=2, statement_timeout=30)
        config = Config.from_env(
            {
                "POKY_LEASE_SECONDS": str(lease_seconds),
                "POKY_PURGE_TIMEOUT": str(purge_timeout),
                "POKY_DSN": dsn,
            }
        )
        self._caches = Caches(self._store, config, Background(self._store))
        self._name = name
        self._numbers = itertools.count(1)
        self.current: list[Pass] = []
        self._public: list[Pass] = []  # of the bucket that is published again and again
        self.changes = 0

    def turn(self, bucket: str, public: str) -> None:
        """Grant another pass and end the oldest valid one."""
        number = next(self._numbers)
        if number % 3:
            token = Token.create()
            made = Pass(bucket, token)
            grants = [f"read:{bucket}"]
            name = f"{self._name}-{number}"
            if self._do(lambda: self._store.create_token(token.id, name, token.hash, grants, None)):
                made.granted = time.monotonic()
                self._add(made)
        elif not any(each.token is None and each.ending == NEVER for each in self.current):
            made = Pass(public, None)
            for each in self._public:  # a reader may hold one that is not in use any more
                each.is_void = True
            self._public = [made]
            if self._do(lambda: self._store.publish_bucket(public, True)):
                made.granted = time.monotonic()
                self._add(made)
        valid = [each for each in self.current if each.ending == NEVER]
        if len(valid) > KEPT // 2:
            self._end(random.choice(valid))

    def _end(self, chosen: Pass) -> None:
        chosen.ending = time.monotonic()
        if chosen.token is None:
            done = self._do(lambda: self._store.publish_bucket(chosen.bucket, False))
        else:
            (name,) = [e.name for e in self._store.tokens() if e.id == chosen.token.id]
            done = self._do(lambda: self._store.revoke_token(name))
        if done:
            chosen.ended = time.monotonic()

    def _do(self, change: object) -> bool:
        """Whether the change was acknowledged, as the command does it."""
        try:
            outbox_id = change()  # type: ignore[operator]
            if outbox_id is not None:
                self._caches.forget_policy(outbox_id)
                self._store.confirm([outbox_id])
        except StoreError:
            return False
        self.changes += 1
        return True

    def _add(self, made: Pass) -> None:
        """Keep all that are valid: one that is forgotten would stay so after its bucket's end."""
        kept = [each for each in self.current if not each.is_void]
        ended = [each for each in kept if each.ending != NEVER]
        dropped = ended[: max(len(kept) + 1 - KEPT, 0)]
        self.current = [*(each for each in kept if each not in dropped), made]

    def close(self) -> None:
        self._caches.stop()
        self._store.close()


def run(stack: Stack, fault: Fault, *, reads: int, seconds: float = 0) -> Result:
    """Strike until there are so many reads and so many seconds have passed."""
    phase = next(_phases)
    result = Result(fault.name)
    bucket, public, foreign = (
        stack.create_bucket(f"{kind}-{phase}") for kind in ("private", "public", "foreign")
    )
    writer = stack.services[0].client()
    for name in (bucket, public, foreign):
        for key in range(KEYS):
            assert writer.put(f"/kv/{name}/{key}", "v", **stack.authorization).status == 200
    ports = [
        *(cache.port for cache in stack.caches for _ in range(3)),
        *[stack.nginx_port] * 2,
        *(service.port for service in stack.services),
    ]
    stopping = threading.Event()
    lock = threading.Lock()
    with closing(
        Passes(stack.database.dsn_owner, f"phase{phase}", stack.lease_seconds, stack.purge_timeout)
    ) as passes:

        def change() -> None:
            while not stopping.is_set():
                # The database may be away, or a change of before may have been made after all.
                with suppress(StoreError, ValueError):
                    passes.turn(bucket, public)
                time.sleep(random.random() * 0.1)

        def read(port: int) -> None:
            client: Client | None = None
            while not stopping.is_set():
                seen = list(passes.current)
                if not seen:
                    time.sleep(0.01)
                    continue
                chosen = random.choice(seen)
                start = time.monotonic()
                before = chosen.granted, chosen.ended
                trespasses = chosen.token is not None and random.random() < 0.2
                path = f"/kv/{foreign if trespasses else chosen.bucket}/{random.randrange(KEYS)}"
                try:
                    client = client or Client(port, timeout=15)
                    if trespasses:  # of what others have just read there
                        client.get(path, **stack.authorization)
                    answer = client.get(path, **chosen.headers)
                except Exception:
                    client = None
                    continue
                is_hit = answer.headers["X-Cache"] == "HIT"
                with lock:
                    result.reads += 1
                    result.hits += is_hit
                    if trespasses and answer.status == 200:
                        result.admitted += 1
                        result.findings.append(f"port {port} admitted a token of another bucket")
                    if not trespasses:
                        place = f"port {port} ({answer.headers['X-Cache'] or 'an instance'})"
                        _judge(result, chosen, start, before, answer.status, place)

        threads = [threading.Thread(target=change)]
        threads += [threading.Thread(target=read, args=(port,)) for port in ports]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        try:
            while result.reads < reads or time.monotonic() < began + seconds:
                fault.strike(stack)
        finally:
            stopping.set()
            for thread in threads:
                thread.join(60)
        result.changes = passes.changes
    return result


def _judge(
    result: Result,
    chosen: Pass,
    start: float,
    before: tuple[float, float],
    status: int,
    place: str,
) -> None:
    granted, ended = before
    if chosen.is_void:
        return
    if start >= ended:
        result.after_end += 1
        if status == 200:
            result.admitted += 1
            took = time.monotonic() - start
            result.findings.append(
                f"{place} answered in {took:.3f} s what was asked"
                f" {1000 * (start - ended):.1f} ms after the end of a {chosen.kind}"
            )
    elif start >= granted and chosen.ending == NEVER and status in (401, 403):
        result.refused += 1
        age = time.monotonic() - granted
        result.findings.append(f"{place}: {status} for a valid {chosen.kind}, {age:.1f} s old")
