"""Files as they are compressed: gzip and zstd, told by their first bytes when they are read."""

import gzip
import io
import zlib
from collections.abc import Callable
from typing import IO, Any, Final, Literal, cast

import zstandard

Compression = Literal["none", "gzip", "zstd"]

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_BUFFER: Final = 1 << 20


#: what a file raises that is damaged
BadFile = (gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


def compressed(file: IO[bytes], how: Compression) -> IO[bytes]:
    """What is written to the result goes compressed to ``file``; close it before the file."""
    if how == "gzip":
        packed = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=3, mtime=0)
        return cast(IO[bytes], io.BufferedWriter(cast(Any, packed), _BUFFER))
    if how == "zstd":
        writer = zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False)
        return cast(IO[bytes], io.BufferedWriter(writer, _BUFFER))
    return cast(IO[bytes], io.BufferedWriter(cast(Any, _Unclosed(file)), _BUFFER))


def decompressed(file: io.BufferedReader) -> io.BufferedReader:
    """The file's bytes as they were before they were compressed, if they were."""
    beginning = file.peek(4)[:4]
    if beginning.startswith(_GZIP):
        return io.BufferedReader(cast(Any, gzip.GzipFile(fileobj=file)), _BUFFER)
    if beginning == _ZSTD:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return io.BufferedReader(reader, _BUFFER)
    return file


class _Unclosed(io.RawIOBase):
    """Writes to a file that its owner closes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._write: Callable[[Any], int] = file.write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(data)
        return len(data)
