"""What PostgreSQL refuses, as a code, an HTTP status and a sentence; what may be retried.

The only place that knows SQLSTATEs. A function of schema ``poky`` refuses with SQLSTATE PKnnn,
where nnn is the status, and gives the code as its hint.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import psycopg2

log = logging.getLogger("poky.store")

# The statement did nothing and may be sent again: the deadlock's victim and the like were rolled
# back, the rest never started. FATAL is no such word: it also follows a commit.
_READ_ONLY = "25006"  # a server that leads no more
_UNDONE = {"40001", "40P01", "26000", "0A000", "42883", _READ_ONLY}
# The bucket was dropped between two statements of a function: the next try says so (PK404).
_BUCKET_GONE = {"23514", "42P01"}
# After these the connection is not used again.
_UNFIT = {"08", "25", "57", "0A", "26", "42"}
_BAD_INPUT = {"22021", "22P05", "54000"}


#: Every code of a StoreError, and what it means. Clients and programs compare these, never the
#: sentences: a code keeps its meaning, and is never reused for another.
CODES = {
    "bad_bucket_name": "The bucket's name is not one.",
    "bad_cache_name": "The cache's name is not one.",
    "bad_cache_url": "The cache's URL is not http to a loopback or private address.",
    "bad_cursor": "A cursor is none that this service gave.",
    "bad_grant": "A grant is no right with a pattern of bucket names.",
    "bad_key": "The key is not one.",
    "bad_lease": "A lease is for 0 to 300 seconds.",
    "bad_retention": "Changes are kept for 1 second to 366 days.",
    "bad_text": "A text has a character that PostgreSQL cannot store.",
    "bad_ttl": "A ttl is 1 to 1000000000 seconds, or 0 for never.",
    "bad_token_name": "The token's name is not one.",
    "bucket_elsewhere": "Another database has the bucket, and it was not found in time: try again.",
    "bucket_incomplete": "The bucket has not come whole from another database yet.",
    "bucket_left_over": "A shard has a bucket of this name that control does not know of.",
    "bucket_moving": "The bucket is being moved to another database. Try again shortly.",
    "bucket_not_empty": "The bucket has keys and was to be dropped only if empty.",
    "bucket_not_found": "There is no such bucket.",
    "busy": "All connections to the database are in use. Try again shortly.",
    "cache_cut_off": "A cache is cut off, and enough changes wait for it. Try again shortly.",
    "cache_leased": "The cache may hold a lease: suspend it first.",
    "changes_elsewhere": "The changes after the cursor are in a database that is not named here.",
    "changes_gone": "The changes after the cursor are not kept any more.",
    "changes_off": "The bucket's changes are not recorded.",
    "database_failed": "PostgreSQL reported an unexpected error; nothing was changed.",
    "database_slow": "A statement or its wait for a lock took too long; nothing was changed.",
    "database_unavailable": "PostgreSQL cannot be reached or does not answer.",
    "not_a_shard": "The database is no shard that can take buckets: run poky migrate.",
    "outcome_unknown": "The change may have been made, but is not confirmed: read, then retry.",
    "policy_changed": "Tokens or public buckets were changed meanwhile; nothing was done.",
    "rights_missing": "The database's user lacks rights: serve as poky_service, act as the owner.",
    "schema_missing": "The database has no schema that suits this release: run poky migrate.",
    "token_exists": "There is a token of that name already.",
    "token_id_used": "The token's id is that of another one, which may be revoked.",
    "token_not_found": "There is no token of that name.",
    "too_many_followers": "Too many requests wait for changes. Try again shortly.",
}
# For a function of an older release, which gives no code.
_CODES_BY_STATUS = {400: "bad_text", 404: "bucket_not_found", 409: "bucket_not_empty"}


RIGHTS = "42501"


class BadDsn(ValueError):
    """The DSN is not one that PostgreSQL understands; the message says how one looks."""


class StoreError(Exception):
    """A refusal or failure: a code of ``CODES``, an HTTP status, a sentence for the client.

    ``unknown`` is true when a change may have been made although it was not confirmed.
    """

    def __init__(self, status: int, detail: str, *, code: str, unknown: bool = False) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.code = code
        self.unknown = unknown


class PolicyChanged(StoreError):
    """Tokens or public buckets have changed since the request was decided; nothing was done."""

    def __init__(self) -> None:
        super().__init__(
            503, "Tokens have just been changed. Try again shortly.", code="policy_changed"
        )


class ChangesElsewhere(StoreError):
    """The changes after a cursor are of a former stay of the bucket, in another database."""

    def __init__(self, detail: str, stay: Mapping[str, Any]) -> None:
        super().__init__(503, detail, code="changes_elsewhere")
        self.stay = stay


def rights_missing() -> StoreError:
    """The refusal of what PostgreSQL does not let the user of the DSN do."""
    return StoreError(
        503,
        "The database does not let its user do this. Serve with the role poky_service (POKY_DSN);"
        " tokens and migrations need the owner (POKY_OWNER_DSN).",
        code="rights_missing",
    )


def cannot_connect(failure: psycopg2.Error) -> StoreError:
    """What to say when no connection could be made."""
    if failure.pgcode == RIGHTS:
        return rights_missing()
    if failure.pgcode in ("3F000", "42883", "42704"):
        detail = "The database has no schema that suits this release. Run poky migrate."
        return StoreError(503, detail, code="schema_missing")
    detail = "The database cannot be reached. Try again shortly."
    return StoreError(503, detail, code="database_unavailable")


def may_retry(error: Exception, *, is_write: bool) -> bool:
    """Whether a statement that failed surely did nothing, or may be done twice."""
    if not isinstance(error, psycopg2.Error):
        return False
    if error.pgcode in _UNDONE or error.pgcode in _BUCKET_GONE:
        return True
    # A lost connection: a read can be asked again, a write may have been done.
    return not is_write and error.pgcode is None and isinstance(error, psycopg2.DatabaseError)


def is_undefined(error: BaseException) -> bool:
    """Whether something that was called is missing or of another shape; it did nothing."""
    return isinstance(error, psycopg2.Error) and (error.pgcode or "").startswith("42")


def is_read_only(error: Exception) -> bool:
    """Whether the server takes no writes, so that every connection to it is of no use."""
    return isinstance(error, psycopg2.Error) and error.pgcode == _READ_ONLY


def is_policy_changed(error: Exception) -> bool:
    """Whether the statement was refused because tokens have changed since it was decided."""
    return isinstance(error, psycopg2.Error) and error.pgcode == "PK401"


def is_fit_after(error: psycopg2.Error) -> bool:
    """Whether the connection may be used again: PostgreSQL refused only the statement."""
    return error.pgcode is not None and error.pgcode[:2] not in _UNFIT


def translated(error: Exception, *, is_write: bool) -> StoreError:
    """The error as a client may read it: no text of PostgreSQL's that is not ours."""
    if isinstance(error, ValueError):
        return StoreError(
            400, "A text has a character that cannot be stored, such as NUL.", code="bad_text"
        )
    code = getattr(error, "pgcode", None) or ""
    if is_policy_changed(error):
        return PolicyChanged()
    if code.startswith("PK"):
        status = int(code[2:])
        given = error.diag.message_hint if isinstance(error, psycopg2.Error) else None
        if given == "changes_elsewhere" and isinstance(error, psycopg2.Error):
            return ChangesElsewhere(
                first_line(error), json.loads(error.diag.message_detail or "{}")
            )
        return StoreError(
            status, first_line(error), code=given or _CODES_BY_STATUS.get(status, "database_failed")
        )
    if code in _BUCKET_GONE:
        return StoreError(404, "The bucket was dropped meanwhile.", code="bucket_not_found")
    if code in _BAD_INPUT:
        return StoreError(
            400, "The request has a text that PostgreSQL cannot store.", code="bad_text"
        )
    log.error("the database failed: %s %s", code, first_line(error))
    if code == RIGHTS:
        return rights_missing()
    if code == "57014":
        return StoreError(
            503, "The database took too long. Try again shortly.", code="database_slow"
        )
    if code == "55P03":
        return StoreError(
            503,
            "The object is locked by another transaction. Try again shortly.",
            code="database_slow",
        )
    # No SQLSTATE, or a crash of the server: the change may have been committed before.
    unknown = is_write and (not code or code in ("57P02", "08007") or code.startswith("08"))
    return StoreError(
        503,
        "The database failed. Try again shortly.",
        code="outcome_unknown" if unknown else "database_failed",
        unknown=unknown,
    )


def refuse_unreplicated(notices: list[str]) -> None:
    """PostgreSQL warns, and says COMMIT all the same, when a wait for the standby is cancelled.

    FATAL is no doubt: the server answered, and then went.
    """
    said = " ".join(notice for notice in notices if not notice.startswith("FATAL:")).strip()
    del notices[:]
    if not said:
        return
    log.error("a write was not confirmed: %s", said)
    raise StoreError(
        503, "The change is not confirmed by the standby.", code="outcome_unknown", unknown=True
    )


def first_line(error: BaseException) -> str:
    """The message without its details: lines of SQL, and in them perhaps values."""
    lines = str(error).strip().splitlines()
    return lines[0].removeprefix("ERROR:  ") if lines else type(error).__name__
