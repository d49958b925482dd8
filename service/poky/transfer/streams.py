"""Turns what calls back for each row into an iterator, a bounded number of rows ahead."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, TypeVar

T = TypeVar("T")

_AHEAD: Final = 16
_TOGETHER: Final = 500


class _Stopped(Exception):
    """The iterator was closed before its end."""


def streamed(
    read: Callable[[Callable[[T], object]], object],
    is_large: Callable[[T], bool] = lambda row: False,
) -> Iterator[T]:
    """What ``read(take)`` hands to ``take``, in a thread of its own; its error is raised here."""
    places: queue.Queue[list[T] | BaseException | None] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(what: list[T] | BaseException | None) -> None:
        while not stopped.is_set():
            with suppress(queue.Full):
                places.put(what, timeout=0.2)
                return
        raise _Stopped

    def work() -> None:
        together: list[T] = []

        def take(row: T) -> None:
            together.append(row)
            if len(together) >= _TOGETHER or is_large(row):
                put(together.copy())
                together.clear()

        try:
            read(take)
            put(together)
            put(None)
        except BaseException as error:  # it is the iterator's to raise
            with suppress(_Stopped):
                put(error)

    thread = threading.Thread(target=work, name="poky-stream", daemon=True)
    thread.start()
    try:
        while (found := places.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield from found
    finally:
        stopped.set()
        thread.join()
