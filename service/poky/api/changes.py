"""/changes: the changes of a bucket, page by page, as they come, or as a stream of events."""

import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from poky.api.conditions import format_date, format_tag
from poky.api.guard import require
from poky.api.later import show_failure
from poky.api.request import prefers, read_query, require_bucket, require_prefix
from poky.api.services import Services
from poky.feed import Cursor, Follower
from poky.http import Answer, Environ, Later, Refused, Reply, Stream, json, refuse
from poky.store import Changed, ChangesElsewhere, ChangesPage, ShardedStore, StoreError

MOST_WAIT: Final = 60  # seconds
COMMENT_SECONDS: Final = 15.0
_EVENTS = "text/event-stream"
_STREAM_HEADERS = [
    ("Content-Type", _EVENTS),
    ("Cache-Control", "no-store"),
    ("X-Accel-Buffering", "no"),
]
_RIGHTS = ("list", "read")
_SCAN_SECONDS = 1.0  # how long a page looks for a key with the prefix


def get_changes(services: Services, environ: Environ, bucket: str) -> Later:
    """A page of changes after a cursor; with ``wait`` as soon as there are any; or a stream."""
    require_bucket(bucket)
    query = read_query(environ, "after", "prefix", "limit", "wait")
    require_prefix(query.get("prefix", ""), "prefix")
    if not re.fullmatch("[0-9]{1,4}", limit_text := query.get("limit", "100")) or not (
        1 <= (limit := int(limit_text)) <= 1000
    ):
        raise refuse(400, "bad_query", "limit is a whole number from 1 to 1000.")
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,3})?", wait_text := query.get("wait", "0")) or not (
        (wait := float(wait_text)) <= MOST_WAIT
    ):
        raise refuse(400, "bad_query", f"wait is a number of seconds from 0 to {MOST_WAIT}.")
    is_head = environ["REQUEST_METHOD"] == "HEAD"
    after = query.get("after", "")
    waiting: _Waiting
    if prefers(environ, _EVENTS, "application/json"):
        after = environ.get("HTTP_LAST_EVENT_ID") or after
        waiting = _Events(services, environ, bucket, query.get("prefix", ""), after, limit)
        waiting.is_head = is_head
    else:
        waiting = _Poll(services, environ, bucket, query.get("prefix", ""), after, limit)
        waiting.wait = 0.0 if is_head else wait
    return Later(waiting.begin, watched=True, cancel=waiting.leave, stop=waiting.stop)


def _shown(change: Changed) -> dict[str, Any]:
    shown: dict[str, Any] = {"key": change.key, "result": change.result}
    if change.hash is not None and change.modified_at is not None:
        shown["etag"] = format_tag(change.revision, change.hash)
        shown["modified_at"] = format_date(change.modified_at)
    return shown


class _Turn(Exception):
    """The next page is in another database: of a former stay, or where the bucket is now (None)."""

    def __init__(self, former: Mapping[str, Any] | None = None) -> None:
        self.former = former


class _Waiting(Follower):
    """A request for changes: read in a lane as long as there are any, then told by the feed."""

    def __init__(
        self,
        services: Services,
        environ: Environ,
        bucket: str,
        prefix: str,
        after: str,
        limit: int,
    ) -> None:
        super().__init__(bucket)
        self._services = services
        self._environ = environ
        self._prefix = prefix
        self._after = after
        self._limit = limit
        self._replies: list[Reply] = []
        self._lock = threading.Lock()
        self._page_of: Mapping[str, Any] | None = None  # of which the next page is
        self._is_former = False  # whether this thread may wait for a former database alone
        self.policy = (services.store.held_policy() or (None,))[0]
        if services.gate is not None and self.policy is not None:
            self.check = self._decide

    def begin(self, reply: Reply) -> None:
        """Read what there is."""
        self._replies.append(reply)
        if self._is_waiting():
            try:
                self._services.feed.admit(self)
            except StoreError as error:
                raise Refused(show_failure(error, self._environ)) from None
        self._submit()

    def leave(self) -> None:
        """The request is over."""
        self._services.feed.release(self)

    def stop(self) -> None:
        """The server stops."""
        raise NotImplementedError

    def fail(self, error: Exception) -> None:
        """Answer with a refusal."""
        self._answer(show_failure(error, self._environ))

    def _is_waiting(self) -> bool:
        raise NotImplementedError

    def _read(self) -> None:
        """Read on, in a lane."""
        raise NotImplementedError

    def _submit(self, former: Mapping[str, Any] | None = None) -> None:
        """Read on. ``former``: a stay of the bucket in another database, of which a page is next.

        Each database is asked in a lane of its own: who waits for one does not hold up the others.
        """

        def work() -> None:
            self._page_of, self._is_former = former, former is not None
            try:
                self._read()
            except _Turn as turn:
                self._submit(turn.former)
            except Exception as error:
                self.fail(error)

        shard = None if former is None else former["shard"]
        self._services.lanes["changes"].submit(work, self._busy, self.bucket, shard)

    def _busy(self, error: Exception) -> None:
        """The lane has no thread for it in time."""
        self.fail(error)

    def _page(self, limit: int) -> ChangesPage:
        """The next page, under the policy that the request was decided under.

        _Turn: another database has it.
        """
        store, place = self._services.store, (self._after, self._prefix, limit)
        with store.under(self.policy, self.check):
            if not isinstance(store, ShardedStore):
                return store.changes(self.bucket, *place)
            former, self._page_of = self._page_of, None
            if former is not None:
                return store.changes_of(former, *place)
            if self._is_former:
                raise _Turn
            try:
                return store.present_changes(self.bucket, *place)
            except ChangesElsewhere as error:
                raise _Turn(error.stay) from None

    def _answer(self, answer: Answer) -> None:
        """Answer, once."""
        self.leave()
        try:
            reply = self._replies.pop()
        except IndexError:
            return
        reply(answer)

    def _decide(self, policy: str | None) -> str:
        """Whether the token still has the rights: the policy of the decision. Raises Refused."""
        gate = self._services.gate
        assert gate is not None
        decided = ""
        for right in _RIGHTS:
            place = self._environ.get("HTTP_AUTHORIZATION", ""), right, self.bucket
            decision = gate.decide(*place)
            if policy is not None and decision.policy != policy:
                gate.forget(decision.policy)
                decision = gate.decide(*place)
            require(decision, right, self.bucket)
            decided = decision.policy
        return decided

    def _matching(self, changes: Sequence[Changed]) -> list[Changed]:
        return [each for each in changes if each.key.startswith(self._prefix)]


class _Poll(_Waiting):
    """One page: at once, or when there is something for it."""

    wait = 0.0
    _until = 0.0
    _scan_until = 0.0

    def _is_waiting(self) -> bool:
        self._until = time.monotonic() + self.wait
        return self.wait > 0

    def _read(self) -> None:
        self._scan_until = until = self._scan_until or max(
            self._until, time.monotonic() + _SCAN_SECONDS
        )
        while True:
            page = self._page(self._limit)
            self._after = page.next
            if page.changes:
                self._show(page.changes, page.next)
                return
            if page.is_last and self.wait:
                self.cursor = Cursor.parse(page.next)
                self._services.feed.join(self)
                return
            if page.is_last or time.monotonic() > until:
                self._show([], page.next)
                return

    def take(self, changes: list[Changed], page: Cursor) -> None:
        """Answer with those that match."""
        matching = self._matching(changes)
        if len(matching) > self._limit:
            matching = matching[: self._limit]
            page = Cursor.parse(matching[-1].next)
        self.cursor = self.cursor.after(page)
        if matching:
            self._show(matching, str(self.cursor))

    def tick(self, now: float) -> None:
        """Answer with nothing when the time is over."""
        if now >= self._until:
            self._show([], str(self.cursor))

    def stop(self) -> None:
        """Answer with nothing: the client goes on at another instance."""
        if hasattr(self, "cursor"):
            self._show([], str(self.cursor))

    def _show(self, changes: Sequence[Changed], following: str) -> None:
        self._answer(json({"changes": list(map(_shown, changes)), "next": following}))


class _Events(_Waiting):
    """Server-sent events: page by page, then as the feed tells; no faster than they are sent."""

    is_head = False
    _READING, _SENDING, _FOLLOWING, _OVER = range(4)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._state = self._READING
        self._stream: Stream | None = None
        self._is_stopping = False
        self._is_caught_up = False  # whether nothing followed after what was read last
        self._next_comment = 0.0

    def _is_waiting(self) -> bool:
        return not self.is_head

    def _read(self) -> None:
        while True:
            page = self._page(self._limit)
            self._after, self._is_caught_up = page.next, page.is_last
            if self._stream is None or page.changes:
                break
            if page.is_last:
                self._follow(page.next)
                return
        if self.is_head:
            self._answer(Answer("200 OK", _STREAM_HEADERS))
            return
        events = _events([(each, each.next) for each in page.changes], page.next)
        if self._stream is None:
            self._open(b"retry: 1000\n" + events)
        else:
            self._send(events)

    def _open(self, events: bytes) -> None:
        self._stream = Stream(self._drained, self._closed, self.stop)
        self._state = self._SENDING
        self._stream.write(events)
        for reply in self._replies:
            reply(Answer("200 OK", _STREAM_HEADERS, self._stream))
        if self._is_stopping:
            self.stop()

    def _send(self, events: bytes) -> None:
        assert self._stream is not None
        with self._lock:
            if self._state == self._OVER:
                return
            self._state = self._SENDING
        self._stream.write(events)

    def _drained(self) -> None:
        with self._lock:
            if self._state != self._SENDING:
                return
            self._state = self._READING
        if self._is_caught_up:
            self._follow(self._after)
        else:
            self._submit()

    def _busy(self, error: Exception) -> None:
        """The lane is busy: what has begun tries again."""
        if self._stream is None:
            self.fail(error)
        else:
            self._submit()

    def _follow(self, cursor: str) -> None:
        with self._lock:
            if self._state == self._OVER:
                return
            self._state = self._FOLLOWING
            self.cursor = Cursor.parse(cursor)
            self._next_comment = time.monotonic() + COMMENT_SECONDS
            self._services.feed.join(self)

    def take(self, changes: list[Changed], page: Cursor) -> None:
        """Send those that match, unless the client has yet to take what was sent before."""
        assert self._stream is not None
        matching = self._matching(changes)
        with self._lock:
            if self._state != self._FOLLOWING:
                return
            if matching and self._stream.unsent:
                self._state = self._SENDING
                self._after, self._is_caught_up = str(self.cursor), False
                self._services.feed.leave(self)
                return
            before, self.cursor = self.cursor, self.cursor.after(page)
        if matching:
            places = [(each, str(before.after(Cursor.parse(each.next)))) for each in matching]
            self._stream.write(_events(places, str(self.cursor)))
            self._next_comment = time.monotonic() + COMMENT_SECONDS

    def tick(self, now: float) -> None:
        """Show now and then that the connection lives, and where it is."""
        assert self._stream is not None
        if now >= self._next_comment and not self._stream.unsent:
            self._next_comment = now + COMMENT_SECONDS
            self._stream.write(b": \n" + _events([], str(self.cursor)))

    def fail(self, error: Exception) -> None:
        """Refuse, or end what has begun: the next request learns why."""
        if self._stream is None:
            super().fail(error)
        else:
            self.stop()

    def stop(self) -> None:
        """End the stream: its client goes on with the last event's id."""
        self._is_stopping = True
        if self._stream is not None:
            self._closed()
            self._stream.end()

    def _closed(self) -> None:
        with self._lock:
            self._state = self._OVER
        self.leave()


def _events(changes: Sequence[tuple[Changed, str]], end: str) -> bytes:
    """Events, each with the cursor after it; without any, only where their reader is."""
    shown = [
        b"id: %b\ndata: %b\n\n" % (place.encode(), msgspec.json.encode(_shown(change)))
        for change, place in [*changes[:-1], *((change, end) for change, _ in changes[-1:])]
    ]
    return b"".join(shown) or b"id: %b\n\n" % end.encode()
