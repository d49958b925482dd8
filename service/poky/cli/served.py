"""Which homes of embedded databases are being served: other commands find them without --home.

Each home has a file in the user's data folder, locked by the processes that serve it. The kernel
releases a lock with its process, so a file that can be locked is of no service any more.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from poky.config import data_folder


@contextlib.contextmanager
def noted(home: Path) -> Iterator[None]:
    """Note inside the block that this process serves a home, if there is a place for the note."""
    descriptor = -1
    with contextlib.suppress(OSError):
        descriptor = _lock(home.resolve())
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def served_homes() -> list[Path]:
    """The homes that this user's services use now; what others left behind is removed."""
    homes = []
    with contextlib.suppress(OSError):
        for file in sorted(_folder().iterdir()):
            with contextlib.suppress(OSError), file.open("rb+") as note:
                try:
                    fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    homes.append(Path(os.fsdecode(note.read())))
                else:
                    file.unlink()
    return homes


def _folder() -> Path:
    return data_folder() / "served"


def _lock(home: Path) -> int:
    content = os.fsencode(home)
    path = _folder() / hashlib.sha256(content).hexdigest()[:16]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.pwrite(descriptor, content, 0)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # it was removed before it was locked
