"""Server-Timing: how long each stage of an answer took, where a setting asks for it.

wait: until a statement that asks for it began, db: the statement, caches: until no cache had an
older copy, total: all of it, in milliseconds. A refusal before the first stage has no such field.
"""

import time
from collections.abc import Callable
from typing import Any

from poky.http import Answer, Environ, Later, Reply
from poky.sharing import Stages


def timed(callback: Callable[..., Answer | Later], stages: Stages) -> Callable[..., Answer | Later]:
    """The callback of a route, whose answers say how long they took."""

    def timing(environ: Environ, **names: Any) -> Answer | Later:
        start = time.monotonic()
        stages.forget()
        answer = callback(environ, **names)
        if isinstance(answer, Answer):
            return _show(answer, start, stages)
        begin = answer.begin

        def begin_timed(reply: Reply) -> None:
            begin(lambda answer: reply(answer and _show(answer, start, stages)))

        answer.begin = begin_timed
        return answer

    return timing


def _show(answer: Answer, start: float, stages: Stages) -> Answer:
    now = time.monotonic()
    parts = []
    if stage := stages.of_thread():
        began, ended = stage
        parts = [("wait", began - start), ("db", ended - began), ("caches", now - ended)]
    parts.append(("total", now - start))
    said = ", ".join(f"{name};dur={max(seconds, 0) * 1000:.2f}" for name, seconds in parts)
    return answer._replace(headers=[*answer.headers, ("Server-Timing", said)])
