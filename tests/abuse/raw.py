"""The corpus of raw requests: what comes back, what is stored, and that nothing is smuggled."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tests.abuse.client import Broken, Connection, request
from tests.abuse.corpus import CASES, Case
from tests.abuse.report import DIRECT, Row
from tests.support.chain import Chain

BUCKET = "abuse-raw"
QUIET = 1.5  # seconds without an answer after which there will be none
# Cases at a time: fewer than the bodies of unknown length that nginx takes from one address.
TOGETHER = 6
CANARY = b"the canary's own value"
HEAD_ONLY = {"HEAD"}


def prepare(chain: Chain) -> None:
    """The bucket, and an object that every client must get as it is."""
    chain.poky("bucket", "create", BUCKET)
    stored = request(chain.instances[0].port, "PUT", f"/kv/{BUCKET}/canary", CANARY)
    assert stored.status == 200


def run(chain: Chain, door: str, *, short: bool = False, only: str = "") -> list[Row]:
    """All cases, a row for each kind."""
    prepare(chain)
    kinds = dict.fromkeys(case.kind for case in CASES)
    rows = {kind: Row("raw", kind, door, "answers as listed, 0 smuggled") for kind in kinds}
    chosen = [
        (number, case) for number, case in enumerate(CASES) if only in f"{case.kind} {case.name}"
    ]
    with ThreadPoolExecutor(TOGETHER) as pool:
        seen = list(pool.map(lambda each: _try(chain, *each), chosen))
    time.sleep(0.5)  # the log's last lines
    log = "".join(instance.log.read_text(errors="replace") for instance in chain.instances)
    for (number, case), statuses in zip(chosen, seen, strict=True):
        row = rows[case.kind]
        row.count += 1
        for sentence in _violations(chain, door, number, case, statuses, log):
            row.violations.append(f"{case.name}: {sentence}")
    poisoned = _poisoned(chain)
    found = [row for row in rows.values() if row.count]
    smuggled = sum("smuggled" in each for row in found for each in row.violations)
    for row in found:
        row.seen = f"{row.count - len(row.violations)} of {row.count} as expected"
    summary = Row("raw", "smuggled or poisoned", door, "0", count=len(chosen))
    summary.seen = f"{smuggled} smuggled, {poisoned} poisoned"
    if poisoned:
        summary.violations.append(f"{poisoned} clients were given another one's answer")
    return [*found, summary]


def fill(number: int, case: Case) -> bytes:
    """The bytes of a case, with its own key and its own next request."""
    smuggled = following(str(number))
    for name, text in {
        b"{bucket}": BUCKET.encode(),
        b"{key}": b"key-%d" % number,
        b"{next_length}": b"%d" % len(smuggled),
        b"{next_size}": b"%x" % len(smuggled),
        b"{next}": smuggled,
    }.items():
        case = Case(case.kind, case.name, case.data.replace(name, text))
    return case.data


def following(name: str) -> bytes:
    """A whole request for a path that only the case of this name has."""
    return f"GET /kv/{BUCKET}/smuggled-{name}- HTTP/1.1\r\nHost: poky\r\n\r\n".encode()


def _try(chain: Chain, number: int, case: Case) -> str:
    """The statuses that came back, "close" for an end without any, "silence" for none."""
    data = fill(number, case)
    statuses: list[str] = []
    connection = Connection(chain.port, timeout=QUIET)
    try:
        try:
            connection.send(data)
            if case.finish:
                connection.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # refused before all of it was sent
        head_only = data.split(b" ", 1)[0].decode("latin-1") in HEAD_ONLY
        for answer in connection.answers(head_only=head_only):
            statuses.append(str(answer.status) if answer.whole else f"{answer.status} cut short")
        return " ".join(statuses) or "close"
    except Broken as broken:
        ending = "silence" if "in time" in str(broken) else "close"
        return " ".join(statuses) or ending
    except OSError:
        return " ".join(statuses) or "close"
    finally:
        connection.close()


def _violations(
    chain: Chain, door: str, number: int, case: Case, statuses: str, log: str
) -> Iterable[str]:
    expected = case.direct if door == DIRECT else case.chain
    if not re.fullmatch(expected, statuses):
        yield f"answered {statuses!r}, not {expected!r}"
    if f"/smuggled-{number}-" in log and not statuses.endswith(" 404"):
        yield "smuggled: the service saw a request that the client did not know it sent"
    stored = request(chain.instances[0].port, "GET", f"/kv/{BUCKET}/key-{number}")
    allowed = {None, case.leaves} if statuses != "200" else {case.leaves, case.leaves}
    content = stored.body if stored.status == 200 else None
    if case.data.startswith(b"PUT /kv/{bucket}/{key}") and content not in allowed:
        yield f"left {content!r}, not {case.leaves!r}"


def _poisoned(chain: Chain) -> int:
    """How many of a hundred other clients get an answer that is not theirs."""
    count = 0
    for _ in range(100):
        answer = request(chain.port, "GET", f"/kv/{BUCKET}/canary")
        count += (answer.status, answer.body) != (200, CANARY)
    return count
