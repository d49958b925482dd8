"""Imports a file: each line that is wrong is told with its number, all others are stored."""

import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from typing import Final, NamedTuple

from poky.transfer.lines import BadLine, End, Exported, Head, read_line, read_mark
from poky.transfer.load import Loader

_LINE_ROOM: Final = 16384  # what a line has besides its value


class Imported(NamedTuple):
    """How a file was read."""

    lines: int = 0  #: objects among them
    wrong: int = 0
    expired: int = 0  #: objects that had expired already
    cursor: str | None = None  #: of the changes of the bucket that was exported


def import_file(
    file: BufferedReader,
    bucket: str,
    loader: Loader,
    max_value_bytes: int,
    wrong: Callable[[int, str], object],
    *,
    first: int = 1,
    needs_dates: bool = False,
    report: Callable[[int], object] = lambda count: None,
) -> Imported:
    """Store the objects of a file from line ``first`` on; ``wrong(number, why)`` hears of others.

    An exported file that has no last line, or fewer objects than that says, is wrong as well.
    Raises StoreError; what ``loader.done`` says is stored.
    """
    reading = _Reading(file, max_value_bytes, wrong, needs_dates=needs_dates)
    now = time.time()
    expired = 0
    for found in reading.objects():
        if reading.count % 1000 == 0:
            report(reading.count)
        if reading.number < first:
            continue
        if found.expires_at is not None and found.expires_at <= now:
            expired += 1
        else:
            loader.add(bucket, found, reading.number)
    loader.finish()
    report(reading.count)
    reading.check_end()
    return Imported(
        reading.count, reading.wrong, expired, reading.end.cursor if reading.end else None
    )


class _Reading:
    """A file, line by line."""

    def __init__(
        self,
        file: BufferedReader,
        max_value_bytes: int,
        wrong: Callable[[int, str], object],
        *,
        needs_dates: bool,
    ) -> None:
        self.number = 0  #: of the line of now
        self.count = 0  #: lines of objects, wrong or not
        self.wrong = 0
        self.end: End | None = None
        self._head: Head | None = None
        self._file = file
        self._max_value_bytes = max_value_bytes
        self._tell = wrong
        self._needs_dates = needs_dates

    def objects(self) -> Iterator[Exported]:
        """The objects of the lines that are right."""
        for line in self._lines():
            try:
                if self.end is not None:
                    raise BadLine("there is more after the last line")
                if line.startswith((b'{"poky_export"', b'{"end"')):
                    self._take_mark(read_mark(line))
                    continue
                self.count += 1
                found = read_line(line, self._max_value_bytes)
                if self._needs_dates and found.modified_at is None:
                    raise BadLine("there is no modified_at, by which it could be newer")
            except BadLine as error:
                self._refuse(str(error))
                continue
            yield found

    def check_end(self) -> None:
        """Refuse an exported file that is not whole."""
        if self._head is not None and self.end is None:
            self.number += 1
            self._refuse("the file ends before its last line: it was cut off")
        elif self.end is not None and self.end.objects != self.count:
            self._refuse(f"{self.end.objects} objects were exported, and the file has {self.count}")

    def _lines(self) -> Iterator[bytes]:
        limit = self._max_value_bytes * 6 + _LINE_ROOM  # each byte may be an escape
        while line := self._file.readline(limit):
            self.number += 1
            if len(line) < limit or line.endswith(b"\n"):
                if line.strip():
                    yield line
                continue
            self.count += 1
            self._refuse(f"a line has at most {limit} bytes")
            while (line := self._file.readline(limit)) and not line.endswith(b"\n"):
                pass

    def _take_mark(self, mark: Head | End | None) -> None:
        if isinstance(mark, End):
            self.end = mark
        elif isinstance(mark, Head) and self.number == 1:
            self._head = mark
        else:
            raise BadLine("the first line comes again: files cannot be joined")

    def _refuse(self, why: str) -> None:
        self.wrong += 1
        self._tell(self.number, why)
