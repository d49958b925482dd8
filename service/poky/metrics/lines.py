"""The line of a request in the log. It has no query, which may hold what must not be seen."""

import re
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

_REQUEST_ID: Final = re.compile("[A-Za-z0-9._:+/=-]+")
# W3C Trace Context: version, trace, parent, flags.
_TRACEPARENT: Final = re.compile("[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")
_MOST_PATH: Final = 2048
_MOST_ID: Final = 64


class Seen(NamedTuple):
    """What is known of an answered request.

    On its way it is a plain tuple: a named one takes three times as long to make.
    """

    method: str
    route: str
    status: int
    sent: int  #: bytes of the body
    seconds: float
    target: str
    outcome: str
    client: str
    request_id: str
    received: str | None  #: Content-Length
    items: int | None  #: of a batch
    traceparent: str | None


def key_value(seen: Seen, now: float) -> str:
    """The line as key=value; the journal has the time."""
    method, _, status, sent, seconds, target, outcome, client, request_id, _, _, parent = seen
    trace = f" trace={_trace(parent)}" if parent else ""
    return (
        f"method={method} path={_path(target)} status={status} bytes={sent}"
        f" ms={seconds * 1000:.2f} outcome={outcome} client={client} id={_id(request_id)}{trace}\n"
    )


def as_json(seen: Seen, now: float) -> str:
    """The line as JSON; the time is that of the turn in which it was counted, within 0.1 s."""
    method, _, status, sent, seconds, target, outcome, client, request_id, _, _, parent = seen
    fields = {
        "time": _time(now),
        "method": method,
        "path": _path(target),
        "status": status,
        "bytes": sent,
        "ms": round(seconds * 1000, 2),
        "outcome": outcome,
        "client": client,
        "id": _id(request_id),
    }
    if parent:
        fields["trace"] = _trace(parent)
    return msgspec.json.encode(fields).decode() + "\n"


LINES: Final = {"keyvalue": key_value, "json": as_json}


def _path(target: str) -> str:
    return target.partition("?")[0][:_MOST_PATH]


def _id(request_id: str) -> str:
    # Anything else could be taken for another field.
    return request_id[:_MOST_ID] if _REQUEST_ID.fullmatch(request_id) else "-"


def _trace(parent: str) -> str:
    found = _TRACEPARENT.fullmatch(parent)
    return found[1] if found else "-"


def _time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
