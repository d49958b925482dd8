"""The log: one thread writes it, so that a reader that stops delays no request and no exit."""

import json
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

_MOST_BYTES = 4 * 1024 * 1024
_AT_ONCE = 512  # lines for one write
_LAST_SECONDS = 1.0
_MOST_ALIKE = 5  # lines of one text in so many seconds
_ALIKE_SECONDS = 10.0
_MOST_RECENT = 20  # warnings and errors
_MOST_TEXTS = 200  # that are counted at a time


class Log:
    """Lines on their way to a file, a pipe or a terminal.

    Lines that do not fit into ``most_bytes``, or that cannot be written, are dropped and counted;
    a line says so when there is room again.
    """

    def __init__(self, file: int | None = None, most_bytes: int = _MOST_BYTES) -> None:
        self.dropped = 0
        self.note = _note  #: makes the line of what the log itself has to say
        self._file = sys.stderr.fileno() if file is None else file
        self._most_bytes = most_bytes
        self._bytes = 0
        self._said = 0  # of those dropped
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        threading.Thread(target=self._work, name="poky-log", daemon=True).start()

    def add(self, lines: Sequence[str]) -> None:
        """Queue lines, each with its end; never waits for the file."""
        encoded = [line.encode(errors="backslashreplace") for line in lines]
        with self._changed:
            for line in encoded:
                if self._bytes + len(line) > self._most_bytes:
                    self.dropped += 1
                else:
                    self._bytes += len(line)
                    self._lines.append(line)
            self._changed.notify_all()

    def flush(self, timeout: float = _LAST_SECONDS) -> bool:
        """Wait until all lines are written, at most ``timeout`` seconds; False: some are not."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._bytes, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                count = min(len(self._lines), _AT_ONCE)
                taken = [self._lines.popleft() for _ in range(count)]
            unwritten = self._write(b"".join(taken))
            with self._changed:
                self._bytes -= sum(map(len, taken))
                self.dropped += unwritten.count(b"\n")
                if self.dropped > self._said and not unwritten:
                    missing, self._said = self.dropped - self._said, self.dropped
                    said = f"{missing} lines are missing here: the log was not taken."
                    self._lines.append(self.note(said).encode())
                    self._bytes += len(self._lines[-1])
                self._changed.notify_all()

    def _write(self, data: bytes) -> bytes:
        """Write data; returns the rest if the file takes no more (ENOSPC, EPIPE)."""
        while data:
            try:
                data = data[os.write(self._file, data) :]
            except OSError:
                break
        return data


class Event(NamedTuple):
    """A warning or an error that was logged."""

    at: float  #: seconds since 1970
    level: str
    logger: str
    message: str


class LogHandler(logging.Handler):
    """Has the records of `logging` written by a Log.

    A text that returns is written five times in ten seconds at most; then a line says how often
    it came. While the database is away, each request would have the same to say.
    """

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log
        self.recent: deque[Event] = deque(maxlen=_MOST_RECENT)  #: warnings and errors
        self._alike: dict[str, tuple[float, int]] = {}  # by text: since when, and how often

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record; `logging` has one thread at a time call this."""
        try:
            now = time.monotonic()
            lines = self._repeated(now)
            text = f"{record.levelname} {record.name}: {record.getMessage()}"
            if record.levelno >= logging.WARNING:
                self._remember(record)
            if text in self._alike or len(self._alike) < _MOST_TEXTS:
                since, count = self._alike.get(text, (now, 0))
                self._alike[text] = since, count + 1
                if count < _MOST_ALIKE:
                    lines.append(f"{self.format(record)}\n")
            else:
                lines.append(f"{self.format(record)}\n")
            self._log.add(lines)
        except Exception:
            self.handleError(record)

    def _remember(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if self.recent and self.recent[-1][2:] == (record.name, said):
            self.recent.pop()  # once more: the last time counts
        self.recent.append(Event(record.created, record.levelname.lower(), record.name, said))

    def flush(self) -> None:
        """Wait for what is queued, as `logging.shutdown` does at the end; at most a second."""
        self._log.add(self._repeated(math.inf))
        self._log.flush()

    def _repeated(self, now: float) -> list[str]:
        """What to say of texts whose ten seconds are over; the oldest come first."""
        lines = []
        while self._alike:
            text, (since, count) = next(iter(self._alike.items()))
            if now < since + _ALIKE_SECONDS:
                break
            del self._alike[text]
            if count > _MOST_ALIKE:
                lines.append(self._log.note(f"{count - _MOST_ALIKE} times more: {text}"))
        return lines


def _note(text: str) -> str:
    return f"WARNING poky.logs: {text}\n"


def _note_as_json(text: str) -> str:
    record = logging.LogRecord("poky.logs", logging.WARNING, "", 0, "%s", (text,), None)
    return JsonFormatter().format(record) + "\n"


class JsonFormatter(logging.Formatter):
    """A record as an object on one line: time, level, logger, message, and a defect's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def take_over(log: Log, format: str = "keyvalue") -> LogHandler:
    """Have the log write all records of this process; ``format``: keyvalue as they are, or json."""
    root = logging.getLogger()
    handler = LogHandler(log)
    if format == "json":
        handler.setFormatter(JsonFormatter())
        log.note = _note_as_json
    elif root.handlers:
        handler.setFormatter(root.handlers[0].formatter)
    root.handlers[:] = [handler]
    return handler
