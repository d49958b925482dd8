"""``poky://bucket/key`` for fsspec: buckets are folders, and so is what keys have before a slash.

Needs the extra ``fsspec``. ``url`` and ``token`` are options of the file system, else POKY_URL and
POKY_TOKEN of the environment: ``fsspec.open("poky://builds/2026/log.txt", url="https://…")``.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from poky.client.buckets import Bucket, Listed
from poky.client.client import Client
from poky.client.wire import ConditionFailed, Error


class PokyFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Objects as files, which are written whole, when they are closed.

    A folder is there as long as there is a key in it. An object that changes while it is read is an
    OSError: nobody gets halves of two values.
    """

    protocol = "poky"
    root_marker = ""

    def __init__(self, url: str | None = None, token: str | None = None, **options: Any) -> None:
        super().__init__(url=url, token=token, **options)
        url = url or os.environ.get("POKY_URL")
        if not url:
            raise ValueError('Say where Poky is: url="https://…", or POKY_URL.')
        self._client = Client(url, token=token or os.environ.get("POKY_TOKEN"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What is in a folder, or the one file."""
        path = self._strip_protocol(path)
        with _failures(path):
            if not path:
                found = [_folder(each["name"]) for each in self._client.buckets()]
            else:
                bucket, key = self._at(path)
                level = bucket.level(f"{key}/" if key else "")
                found = [
                    _folder(f"{bucket.name}/{each[:-1]}")
                    if isinstance(each, str)
                    else _file(bucket, each)
                    for each in level
                ]
                if not found and key:
                    found = [self.info(path)]
        return found if detail else sorted(each["name"] for each in found)

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """A file's name, size, etag, modified_at and content_type, or a folder's name."""
        path = self._strip_protocol(path)
        with _failures(path):
            if not path:
                return _folder("")
            bucket, key = self._at(path)
            if key and (found := bucket.head(key)):
                return _file(bucket, found)
            if next(bucket.level(f"{key}/" if key else ""), None) is not None or not key:
                return _folder(path)
        raise FileNotFoundError(path)

    def modified(self, path: str) -> Any:
        """The clock of the client that wrote it."""
        return _file_only(self.info(path))["modified_at"]

    def ukey(self, path: str) -> str:
        """The entity tag: another one for each change."""
        return str(_file_only(self.info(path))["etag"])

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **options: Any
    ) -> bytes:
        """A file's bytes, all or some."""
        if start is not None or end is not None:
            return bytes(super().cat_file(path, start, end, **options))
        with _failures(path):
            bucket, key = self._at(path)
            if found := bucket.get(key):
                return found.value
        raise FileNotFoundError(path)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Store a file; ``mode="create"``: FileExistsError if it is there."""
        with _failures(path):
            bucket, key = self._at(path)
            try:
                bucket.put(key, bytes(value), if_none_match="*" if mode == "create" else None)
            except ConditionFailed:
                raise FileExistsError(path) from None

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Copy a file; a folder is there once there is something in it."""
        if not self.isdir(path1):
            self.pipe_file(path2, self.cat_file(path1))

    def rm_file(self, path: str) -> None:
        """Delete a file."""
        with _failures(path):
            bucket, key = self._at(path)
            if not bucket.delete(key):
                raise FileNotFoundError(path)

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Delete files; with ``recursive`` those in folders, and with them the folders."""
        for each in self.expand_path(path, recursive=recursive, maxdepth=maxdepth):
            if not self.isdir(each):
                self.rm_file(each)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> "_File":
        if "a" in mode:
            raise NotImplementedError("A file is stored whole: read it, and write it anew.")
        file = _File(self, path, mode, **{"cache_type": "readahead", **options})
        if file.readable():
            _file_only(file.details)
        return file

    def _at(self, path: str) -> tuple[Bucket, str]:
        name, _, key = self._strip_protocol(path).partition("/")
        return self._client.bucket(name), key


class _File(AbstractBufferedFile):  # type: ignore[misc]
    def _fetch_range(self, start: int, end: int) -> bytes:
        with _failures(self.path):
            bucket, key = self.fs._at(self.path)
            return bytes(bucket.read(key, start, end, self.details["etag"]))

    def _upload_chunk(self, final: bool = False) -> bool:
        if final:
            mode = "create" if "x" in self.mode else "overwrite"
            self.fs.pipe_file(self.path, self.buffer.getvalue(), mode)
        return final  # until then all stays in the buffer


def _folder(name: str) -> dict[str, Any]:
    return {"name": name, "size": 0, "type": "directory"}


def _file(bucket: Bucket, found: Listed) -> dict[str, Any]:
    facts = {"etag": found.etag, "modified_at": found.modified_at}
    named = {"name": f"{bucket.name}/{found.key}", "size": found.size, "type": "file"}
    return {**named, **facts, "content_type": found.content_type}


def _file_only(found: dict[str, Any]) -> dict[str, Any]:
    if found["type"] != "file":
        raise FileNotFoundError(f"{found['name']}: This is a folder.")
    return found


@contextlib.contextmanager
def _failures(path: str) -> Iterator[None]:
    try:
        yield
    except Error as error:
        kind = {404: FileNotFoundError, 401: PermissionError, 403: PermissionError}
        raise kind.get(error.status, OSError)(f"{path}: {error}") from error
