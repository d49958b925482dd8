"""A bucket moves to another database while it is used (docs/shards.md).

PostgreSQL's logical replication copies the bucket's partition and follows its changes; then the
source takes no more writes, the last of them arrive, the source refuses reads as well, and only
then the target has the bucket. The whole state is in the databases: what was killed at any point
goes on where it was. Up to the departure a move can be given up, from then on it only goes on.
"""

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psycopg2
from psycopg2.extensions import make_dsn

from poky.schema.one_mover import alone, as_user, end_others
from poky.schema.owner import OwnerConnection, Progress
from poky.schema.plan import SchemaError

STEPS = ("prepare", "copy", "fence", "depart", "arrive", "settle", "clean")

_LAG_BYTES = 400_000  # what may be missing at the target when the source stops taking writes
_MARK_SECONDS = 1.0  # within which it has to arrive, or the source takes writes again
_DEPART_SECONDS = 0.5
_FENCES = 20  # how often that is tried
_QUIET_SECONDS = 60.0  # without a subscriber, after which copying is given up for now
_LOOK_SECONDS = 0.01
_WORKERS_SECONDS = 10.0  # for what replicates to end; after that DROP SUBSCRIPTION ends it
_WORKERS = "SELECT count(*) FROM pg_stat_subscription WHERE subid = %s AND pid IS NOT NULL"
_END_SLOTS = (
    "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
    " WHERE slot_name ~ %s AND active_pid IS NOT NULL"
)
# What a step came to is known only once it cannot be lost, whatever the server's setting.
_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', false)"
    " WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')"
)

_ANEW = Progress("The target cannot go on: copying from the beginning")


class Move(NamedTuple):
    """A bucket on its way from one shard to another, and the step that is under way."""

    name: str
    id: int
    source: int
    target: int
    step: str


class Moved(NamedTuple):
    """What a move came to."""

    name: str
    source: int
    target: int
    seconds: float  #: all of it
    pause_seconds: float | None  #: for how long no write was taken; None: in a former call


def under_way(owners: Mapping[int, str]) -> Move | None:
    """The move that was begun and has not ended. ``owners``: DSNs by shard, or the service's."""
    with OwnerConnection(owners[0]) as control:
        return _noted(control)


def move(
    owners: Mapping[int, str],
    bucket: str,
    target: int,
    progress: Callable[[Progress], None] | None = None,
    after: Callable[[str], None] = lambda step: None,
    among: Mapping[int, str] | None = None,
) -> Moved | None:
    """Move a bucket to a shard, or go on with that; None: it is there.

    ``after`` is told each step that is done; ``among`` has the DSNs by which a database reaches
    others, where they differ from ``owners``. Raises SchemaError; the move can be called again
    then.
    """
    began = time.monotonic()
    until: float | None = None
    while True:
        tried = time.monotonic()
        try:
            return _move(
                owners, {**owners, **(among or {})}, bucket, target, progress, after, began
            )
        except SchemaError as error:
            if not _is_passing(error, has_begun=until is not None):
                raise
            # While a standby takes over.
            if until is None or time.monotonic() - tried > _QUIET_SECONDS:
                until = time.monotonic() + _QUIET_SECONDS
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _is_passing(error: SchemaError, *, has_begun: bool) -> bool:
    """Whether the move may go on by itself: a server went away, or is not back yet."""
    if has_begun and error.code in ("database_unavailable", "busy"):
        return True
    cause = error.__cause__
    if error.code != "database_failed" or not isinstance(cause, psycopg2.Error):
        return False
    return cause.pgcode is None or cause.pgcode.startswith(("57P", "08", "25006"))


def _move(
    owners: Mapping[int, str],
    among: Mapping[int, str],
    bucket: str,
    target: int,
    progress: Callable[[Progress], None] | None,
    after: Callable[[str], None],
    began: float,
) -> Moved | None:
    with alone(owners, progress) as control:
        noted = _noted(control)
        if noted is None:
            _require(owners, target)
            _refusing(control, "SELECT poky._begin_move(%s, %s)", bucket, target)
            noted = _noted(control)
            if noted is None:
                return None
        if (noted.name, noted.target) != (bucket, target):
            raise SchemaError(
                f"The bucket {noted.name} is being moved to shard {noted.target}: first finish that"
                f" (poky bucket move {noted.name} --to {noted.target}), or give it up (--abort).",
                code="busy",
            )
        for number in (noted.source, noted.target):
            _require(owners, number)
        with (
            OwnerConnection(owners[noted.source], progress) as source,
            OwnerConnection(owners[noted.target], progress) as target_owner,
        ):
            end_others(source, target_owner)
            mover = _Mover(noted, control, source, target_owner, among[noted.source], after)
            pause = mover.run()
    return Moved(bucket, noted.source, noted.target, time.monotonic() - began, pause)


def abort(owners: Mapping[int, str]) -> Move | None:
    """Give the move that is under way up; None: there is none. SchemaError if it is too late."""
    with alone(owners, None) as control:
        noted = _noted(control)
        if noted is None:
            return None
        for number in (noted.source, noted.target):
            _require(owners, number)
        with (
            OwnerConnection(owners[noted.source]) as source,
            OwnerConnection(owners[noted.target]) as target,
        ):
            end_others(source, target)
            _Mover(noted, control, source, target, owners[noted.source], lambda _: None).give_up()
    return noted


def _noted(control: OwnerConnection) -> Move | None:
    rows = control.run("SELECT name, id, source, target, step FROM poky.moving()")
    return Move(*rows[0]) if rows else None


def _require(owners: Mapping[int, str], number: int) -> None:
    if number not in owners:
        raise SchemaError(
            f"There is no shard {number}: POKY_OWNER_SHARDS names those that there are.",
            code="no_shard",
        )


def _refusing(owner: OwnerConnection, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """As ``run``; what our functions refuse becomes a SchemaError with their sentence."""
    try:
        return owner.run(statement, *values)
    except psycopg2.Error as error:
        if not (error.pgcode or "").startswith("PK"):
            raise
        raise SchemaError(
            str(error.diag.message_primary), code=error.diag.message_hint or "schema_refused"
        ) from error


class _State(NamedTuple):
    """How far the target is."""

    waiting: int  #: tables that are still being copied
    is_alive: bool  #: whether the target is listening
    there: int  #: bytes
    here: int
    lag: int  #: bytes of the log


class _Mover:
    """The steps, each of which may be repeated."""

    def __init__(
        self,
        noted: Move,
        control: OwnerConnection,
        source: OwnerConnection,
        target: OwnerConnection,
        source_dsn: str,
        after: Callable[[str], None],
    ) -> None:
        self._move = noted
        self._id = noted.id
        self._name = f"poky_move_{noted.id}"
        self._control, self._source, self._target = control, source, target
        self._source_dsn = source_dsn
        self._after = after
        self._fenced_at: float | None = None
        for owner in (control, source, target):
            owner.run(_DURABLE)

    def run(self) -> float | None:
        """Go from the step that is noted to the end; for how long no write was taken."""
        step = self._move.step
        if step in ("fence", "depart") and self._facts() is None:
            self._take_writes_again()
            step = "copy"
        pause = None
        while True:
            self._go_to(step)
            following = getattr(self, f"_{step}")()
            if step == "settle" and self._fenced_at is not None:
                pause = time.monotonic() - self._fenced_at
            self._after(step)
            if step == "clean":
                return pause
            step = following or STEPS[STEPS.index(step) + 1]

    def give_up(self) -> None:
        """Undo what was done, as long as the bucket has not departed."""
        if self._move.step in STEPS[STEPS.index("arrive") :] or self._facts() is not None:
            raise SchemaError(
                f"The bucket {self._move.name} has left shard {self._move.source} already: go on"
                f" with poky bucket move {self._move.name} --to {self._move.target}.",
                code="too_late",
            )
        self._take_writes_again()
        self._end_replication()
        self._source.atomically(
            lambda: self._source.run("SELECT poky._give_up_departure(%s)", self._id)
        )
        self._target.atomically(
            lambda: self._target.run("SELECT poky._give_up_arrival(%s)", self._id)
        )
        self._control.run("SELECT poky._end_move()")

    def _go_to(self, step: str) -> None:
        self._control.run("SELECT poky._go_to_step(%s)", step)

    def _facts(self) -> Any:
        return self._source.value("SELECT poky._departed(%s)::text", self._id)

    def _take_writes_again(self) -> None:
        self._source.atomically(
            lambda: self._source.run("SELECT poky._unfence_bucket(%s)", self._id)
        )

    def _prepare(self) -> None:
        self._control.report(Progress("Preparing"))
        if self._source.value("SELECT current_setting('wal_level')") != "logical":
            raise SchemaError(
                f"PostgreSQL of shard {self._move.source} has to run with wal_level = logical for a"
                " move: set it, and restart it.",
                code="wal_level",
            )
        self._source.atomically(
            lambda: _refusing(self._source, "SELECT poky._prepare_departure(%s)", self._id)
        )
        if self._state() is None:
            self._replicate()

    def _replicate(self) -> None:
        """Have the target follow the source, from the beginning: what it had is dropped."""
        self._end_replication()
        for step in ("_give_up_arrival", "_prepare_arrival"):
            self._target.atomically(
                lambda step=step: self._target.run(f"SELECT poky.{step}(%s)", self._id)  # type: ignore[misc]
            )
        with as_user(self._source):
            # Separately from the subscription, which would wait for itself within one cluster.
            self._source.run(
                "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", self._name
            )
        with as_user(self._target):
            # Nothing is confirmed, nor seen, that a crash could lose at the target, or that its
            # synchronous standby does not have: the source would not send it again.
            self._target.run(
                f"CREATE SUBSCRIPTION {self._name} CONNECTION %s PUBLICATION {self._name}"
                f" WITH (create_slot = false, slot_name = '{self._name}',"
                " synchronous_commit = 'on')",
                # Of several hosts, the one that leads.
                make_dsn(self._source_dsn, target_session_attrs="read-write"),
            )

    def _subscription(self) -> tuple[int, str] | None:
        """Its number at the target, and how the slots are named by which it copies tables."""
        found = self._target.run(
            "SELECT s.oid::bigint,"
            " format('^pg_%%s_sync_[0-9]+_%%s$', s.oid, c.system_identifier)"
            " FROM pg_control_system() AS c, pg_subscription AS s JOIN pg_database AS d"
            " ON d.oid = s.subdbid WHERE s.subname = %s AND d.datname = current_database()",
            self._name,
        )
        return found[0] if found else None

    def _state(self, position: str | None = None) -> _State | None:
        """How far the target is behind this position of the source's log, or behind its end.

        None: it does not follow, for it never did, a server took over that has no slot, or it was
        away for longer than the source keeps its log for it (max_slot_wal_keep_size).
        """
        table = f"poky._o_{self._id}"
        there = self._target.run(
            "SELECT (SELECT count(*) FROM pg_subscription_rel AS r WHERE r.srsubid = s.oid"
            "        AND r.srsubstate <> 'r'),"
            " EXISTS (SELECT FROM pg_stat_subscription AS a"
            "         WHERE a.subid = s.oid AND a.pid IS NOT NULL),"
            " coalesce(pg_total_relation_size(to_regclass(%s)), 0)"
            " FROM pg_subscription AS s JOIN pg_database AS d ON d.oid = s.subdbid"
            " WHERE s.subname = %s AND d.datname = current_database()",
            table,
            self._name,
        )
        here = self._source.run(
            "SELECT coalesce(pg_total_relation_size(to_regclass(%s)), 0), pg_wal_lsn_diff("
            " coalesce(%s::pg_lsn, pg_current_wal_lsn()), s.confirmed_flush_lsn)"
            " FROM pg_replication_slots AS s"
            " WHERE s.slot_name = %s AND s.wal_status IS DISTINCT FROM 'lost'",
            table,
            position,
            self._name,
        )
        if not there or not here:
            return None
        return _State(*there[0], *here[0])

    def _copy(self) -> str | None:
        """Wait until what is there is copied, and nearly all of what came since has arrived."""
        quiet_since = time.monotonic()
        while True:
            state = self._state()
            if state is None:
                self._control.report(_ANEW)
                return "prepare"
            if state.waiting:
                self._control.report(Progress("Copying", min(state.there, state.here), state.here))
            elif state.lag < _LAG_BYTES:
                return None
            else:
                self._control.report(Progress(f"Catching up, {int(state.lag):,} bytes behind"))
            if state.is_alive:
                quiet_since = time.monotonic()
            self._require_heard(quiet_since)
            time.sleep(0.1)

    def _require_heard(self, since: float) -> None:
        if time.monotonic() - since > _QUIET_SECONDS:
            raise SchemaError(
                f"Shard {self._move.target} gets nothing from shard {self._move.source}: look"
                " into its PostgreSQL's log. The same command goes on, --abort gives it up.",
                code="replication_failed",
            )

    def _fence(self) -> str | None:
        """Take no more writes at the source, and wait until the last one has arrived."""
        for _ in range(_FENCES):
            mark = str(uuid.uuid4())
            self._control.report(Progress("Changing over"))
            self._source.atomically(
                lambda mark=mark: self._source.run(  # type: ignore[misc]
                    "SELECT poky._fence_bucket(%s, %s)", self._id, mark
                )
            )
            self._fenced_at = time.monotonic()
            while time.monotonic() - self._fenced_at < _MARK_SECONDS:
                if self._target.value("SELECT poky._has_arrived(%s, %s)", self._id, mark):
                    return None
                time.sleep(_LOOK_SECONDS)
            self._take_writes_again()
            time.sleep(0.5)
            if following := self._copy():
                return following
        raise SchemaError(
            f"Shard {self._move.target} is behind by more than {_MARK_SECONDS:g} s all the time."
            " The same command tries again, when less is written.",
            code="busy",
        )

    def _depart(self) -> str | None:
        """Refuse reads as well. A read that holds on to the table: take writes again, try later."""
        until = time.monotonic() + _DEPART_SECONDS
        while True:
            try:
                _refusing(
                    self._source,
                    "SELECT poky._depart_bucket(%s, %s)",
                    self._id,
                    self._move.target,
                )
                return None
            except psycopg2.errors.LockNotAvailable:
                if time.monotonic() > until:
                    self._take_writes_again()
                    time.sleep(0.5)
                    return "copy"

    def _arrive(self) -> None:
        """Let the target have the bucket, once it has all of it: a crash may have cost it some."""
        facts = self._facts()
        quiet_since = time.monotonic()
        end = self._source.value("SELECT pg_current_wal_lsn()")
        while True:
            state = self._state(end)
            try:
                self._target.atomically(
                    lambda: self._target.run("SELECT poky._arrive_bucket(%s, %s)", self._id, facts)
                )
                return
            except psycopg2.Error as error:
                if error.diag.message_hint != "bucket_incomplete":
                    raise
            if state is None or (not state.waiting and state.lag <= 0):
                # The source would not send it again; it has all of it, and takes no writes.
                self._control.report(_ANEW)
                self._replicate()
                end = self._source.value("SELECT pg_current_wal_lsn()")
            elif state.is_alive:
                quiet_since = time.monotonic()
            self._require_heard(quiet_since)
            time.sleep(_LOOK_SECONDS)

    def _settle(self) -> None:
        self._control.run("SELECT poky._settle_move()")

    def _clean(self) -> None:
        self._control.report(Progress("Cleaning up"))
        self._end_replication()
        self._target.run("SELECT poky._queue_arrived(%s)", self._id)
        self._source.atomically(
            lambda: self._source.run("SELECT poky._forget_departed(%s)", self._id)
        )
        self._control.run("SELECT poky._end_move()")

    def _end_replication(self) -> None:
        with as_user(self._target):
            if (subscription := self._subscription()) is not None:
                self._target.run(f"ALTER SUBSCRIPTION {self._name} DISABLE")
                self._end_workers(*subscription)
                self._target.run(f"ALTER SUBSCRIPTION {self._name} SET (slot_name = NONE)")
                self._target.run(f"DROP SUBSCRIPTION {self._name}")
        with as_user(self._source):
            until = time.monotonic() + 30
            while self._source.value(
                "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s", self._name
            ):
                try:
                    self._source.run("SELECT pg_drop_replication_slot(%s)", self._name)
                except psycopg2.errors.ObjectInUse:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.1)

    def _end_workers(self, subscription: int, slots: str) -> None:
        """Wait until nothing replicates, and end what is to begin to copy.

        That makes a slot, which waits for every transaction of the source; DROP SUBSCRIPTION waits
        for it, and within one cluster it would wait for DROP SUBSCRIPTION.
        """
        until = time.monotonic() + _WORKERS_SECONDS
        while time.monotonic() < until:
            with as_user(self._source):
                making = self._source.run(_END_SLOTS, slots)
            if not making and not self._target.value(_WORKERS, subscription):
                return
            time.sleep(_LOOK_SECONDS)
