"""Requests, and when they may be repeated.

A request that surely did nothing is tried again, after what ``Retry-After`` says or a pause that
doubles. A write in doubt (``Poky-Outcome: unknown``, or no answer at all) may have been done: it is
repeated only if its condition says what it replaces.
"""

import json
import random
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import urllib3

_AGAIN: Final = frozenset({429, 502, 503, 504})
_MOST_PAUSE: Final = 10.0  # seconds


class Error(Exception):
    """A refusal: an HTTP status, the code for programs, and the sentence for people."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail or f"HTTP status {status}")
        self.status = status
        self.code = code
        self.detail = detail


class ConditionFailed(Error):
    """A condition is false: nothing changed."""


class Unavailable(Error):
    """The service could not be reached, or could not answer, however often it was asked."""


class OutcomeUnknown(Error):
    """The change may have been made, or not: read, and decide."""


class Answer(NamedTuple):
    """A whole answer. ``was_in_doubt``: an earlier try of the same write may have been done."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    was_in_doubt: bool

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Wire:
    """Sends requests to one address, each as often as it may be repeated, ``tries`` at most."""

    def __init__(self, url: str, token: str | None, timeout: float, tries: int) -> None:
        self._url = url.rstrip("/")
        self._tries = tries
        self._timeout = timeout
        headers = {"User-Agent": "poky-client"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._pool = urllib3.PoolManager(retries=False, maxsize=16, headers=headers)
        self._headers = headers

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def read(self, method: str, path: str, **more: Any) -> Answer:
        """A request that changes nothing."""
        return self._request(method, path, is_write=False, is_conditional=True, **more)

    def write(self, method: str, path: str, *, is_conditional: bool, **more: Any) -> Answer:
        """A change; OutcomeUnknown if it is in doubt and may not be repeated."""
        return self._request(method, path, is_write=True, is_conditional=is_conditional, **more)

    def stream(
        self, path: str, headers: Mapping[str, str], timeout: float
    ) -> urllib3.BaseHTTPResponse:
        """An answer that goes on, once; urllib3's errors, and Error for a refusal."""
        _refuse_dots(path)
        response = self._pool.request(
            "GET",
            self._url + path,
            headers={**self._headers, **headers},
            timeout=timeout,
            preload_content=False,
        )
        if response.status != 200:
            raise refused(response.status, response.read())
        return response

    def _request(
        self,
        method: str,
        path: str,
        *,
        is_write: bool,
        is_conditional: bool,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        patience: float = 0.0,
    ) -> Answer:
        _refuse_dots(path)
        in_doubt = False
        for number in range(1, self._tries + 1):
            pause = random.uniform(0.5, 1.0) * min(0.1 * 2**number, _MOST_PAUSE)  # noqa: S311
            try:
                response = self._pool.request(
                    method,
                    self._url + path,
                    body=body,
                    headers={**self._headers, **(headers or {})},
                    timeout=self._timeout + patience,
                    decode_content=False,
                )
            except urllib3.exceptions.HTTPError as error:
                failure: Error = Unavailable(0, "unreachable", f"{self._url}: {error}")
                was_sent = not isinstance(
                    error,
                    urllib3.exceptions.NewConnectionError
                    | urllib3.exceptions.ConnectTimeoutError
                    | urllib3.exceptions.NameResolutionError,
                )
            else:
                unknown = response.headers.get("Poky-Outcome") == "unknown"
                if response.status not in _AGAIN:
                    return Answer(response.status, response.headers, response.data, in_doubt)
                failure = refused(response.status, response.data)
                was_sent = unknown
                pause = max(pause, _seconds(response.headers.get("Retry-After")))
            if is_write and was_sent:
                if not is_conditional:
                    raise OutcomeUnknown(failure.status, "outcome_unknown", failure.detail)
                in_doubt = True
            if number < self._tries:
                time.sleep(pause)
        if in_doubt:
            raise OutcomeUnknown(failure.status, "outcome_unknown", failure.detail)
        raise failure


def refused(status: int, body: bytes) -> Error:
    """The refusal that an answer tells."""
    try:
        problem = json.loads(body)
        code, detail = str(problem["code"]), str(problem["detail"])
    except (ValueError, KeyError, TypeError):
        code, detail = "", body[:200].decode("utf-8", "replace")
    kind = {412: ConditionFailed, **dict.fromkeys(_AGAIN, Unavailable)}.get(status, Error)
    return kind(status, code, detail)


def _refuse_dots(path: str) -> None:
    # urllib3 would resolve them: to another object, or to one of another bucket.
    if not {".", ".."}.isdisjoint(path.partition("?")[0].split("/")):
        raise Error(
            400, "bad_key", "Choose another name: no bucket and no part of a key is . or .. alone."
        )


def _seconds(text: str | None) -> float:
    return min(float(text), _MOST_PAUSE) if text and text.isdecimal() else 0.0
