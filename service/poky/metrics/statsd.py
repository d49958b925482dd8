"""statsd: the original's counters and timings over UDP, several in a datagram."""

import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Iterable

log = logging.getLogger("poky.metrics")

_MOST_BYTES = 1400  # of a datagram: no network on the way cuts it in two


class Statsd:
    """Sends what was answered: ``base.method.status`` counts, ``base.method`` is a time in ms."""

    def __init__(self, host: str, key_base: str) -> None:
        name, _, port = host.partition(":")
        self._key = key_base
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._address: tuple[str, int] | None = None
        try:
            self._address = (socket.gethostbyname(name), int(port or 8125))
        except (OSError, ValueError) as error:
            log.warning("statsd at %s cannot be used: %s", host, error)

    def send(self, answers: Iterable[tuple[str, int, float]]) -> None:
        """Send method, status and seconds of answers; what the network does not take is lost."""
        if self._address is None:
            return
        counts: Counter[str] = Counter()
        words = []
        for method, status, seconds in answers:
            name = f"{self._key}.{method.lower()}"
            counts[f"{name}.{status}"] += 1
            words.append(f"{name}:{seconds * 1000:.2f}|ms")
        words += [f"{name}:{count}|c" for name, count in counts.items()]
        datagram = ""
        for word in words:
            if len(datagram) + len(word) >= _MOST_BYTES:
                self._send(datagram)
                datagram = ""
            datagram += f"\n{word}" if datagram else word
        self._send(datagram)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _send(self, datagram: str) -> None:
        with contextlib.suppress(OSError):
            if datagram and self._address:
                self._socket.sendto(datagram.encode(), self._address)
