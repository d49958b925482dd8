"""An answer that is completed later, by another thread than the one that read the request."""

from __future__ import annotations

from collections.abc import Callable

from poky.http.answers import Answer

Reply = Callable[[Answer | None], None]


def _nothing() -> None:
    pass


class Later:
    """What an application returns in place of its body when the answer comes later.

    ``begin(reply)`` is called once, as the last thing that is done with the request; from then on
    ``reply(answer)`` may be called, once, in any thread, even before ``begin`` returns. If
    ``begin`` raises, the client gets 500 (or the answer of a ``Refused``), and ``reply`` must not
    be called.

    ``reply(None)`` has the application called again with the same request, and the server's
    ``check`` if it was that which returned this; not of one that is ``watched``.

    ``watched``: for waits without a bound. The request then ends with its client: ``cancel`` is
    called, and a late ``reply`` does nothing. A client that closes its half of the connection
    counts as gone. ``stop`` is called when the server stops, and should have the answer completed.
    """

    __slots__ = ("begin", "cancel", "stop", "watched")

    def __init__(
        self,
        begin: Callable[[Reply], None],
        *,
        watched: bool = False,
        cancel: Callable[[], None] = _nothing,
        stop: Callable[[], None] = _nothing,
    ) -> None:
        self.begin = begin
        self.watched = watched
        self.cancel = cancel
        self.stop = stop
