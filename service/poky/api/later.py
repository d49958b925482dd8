"""Answers that are completed later: by a statement that several requests share, or in a lane."""

import logging
from collections.abc import Callable
from typing import Any

from poky.http import Answer, Environ, Later, Refused, Reply, path_of, problem
from poky.sharing import Lane
from poky.store import StoreError

log = logging.getLogger("poky.api")


def later(
    environ: Environ, begin: Callable[[Callable[[Any], None]], None], show: Callable[[Any], Answer]
) -> Later:
    """Answer with what ``show`` makes of the outcome that ``begin`` is to have made.

    An outcome that is a StoreError or Refused is shown as such.
    """

    def start(reply: Reply) -> None:
        begin(lambda outcome: reply(_answer(environ, show, outcome)))

    return Later(start)


def _answer(environ: Environ, show: Callable[[Any], Answer], outcome: Any) -> Answer:
    try:
        if isinstance(outcome, Exception):
            raise outcome
        return show(outcome)
    except Refused as refused:
        return refused.answer
    except StoreError as error:
        return show_store_error(error, environ)
    except Exception:
        log.exception("%s %s failed", environ["REQUEST_METHOD"], path_of(environ))
        return problem(500, "internal_error", "Try again, and tell the operator if it fails again.")


def show_failure(error: Exception, environ: Environ) -> Answer:
    """The answer for whatever kept a request from being answered."""

    def fail(_: object) -> Answer:
        raise error

    return _answer(environ, fail, None)


def in_lane(lane: Lane, handler: Callable[..., Any], environ: Environ, **names: str) -> Later:
    """Have a lane's thread call the handler; if it returns None, the request is tried again."""

    def start(reply: Reply) -> None:
        lane.submit(
            lambda: reply(_answer(environ, lambda _: handler(environ, **names), None)),
            lambda error: reply(show_store_error(error, environ)),
            names.get("bucket", ""),
        )

    return Later(start)


def show_store_error(error: StoreError, environ: Environ) -> Answer:
    """The answer for what the store refused or could not do."""
    detail = error.detail
    if error.code == "bucket_not_found":
        detail += " Create it with PUT /buckets/{bucket} on the admin listener, or: "
        detail += "poky bucket create NAME."
    elif error.code == "bucket_not_empty":
        detail += " Add ?keys=drop to drop it with its keys."
    elif error.code == "changes_off":
        detail += " The operator can switch that on: poky bucket set NAME --changes 7d."
    elif error.code == "changes_gone":
        detail += " Read the bucket anew (GET /kv/{bucket}), and follow from now on."
    headers = []
    if error.unknown:
        environ["poky.outcome"] = "unknown"
        headers.append(("Poky-Outcome", "unknown"))
    return problem(error.status, error.code, detail, headers)
