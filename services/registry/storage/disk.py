"""Steps on a file system: durable renames, hashing, and what the caller is told when one fails."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import NoReturn, Protocol

from services.runtime.errors import StorageFailed, StorageFull

# EFBIG: the file is at the limit of its file system, or of this process.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
COPY_BYTES = 1 << 20


@contextmanager
def failures(doing: str) -> Iterator[None]:
    """Tell the caller in domain errors what the disk refused; paths stay in the log."""
    try:
        yield
    except OSError as error:
        refused(error, doing)


def refused(error: OSError, doing: str) -> NoReturn:
    """Raise what an error of the disk means to the caller."""
    if error.errno in FULL:
        raise StorageFull(
            "the storage of the registry is full; what is durable stays, go on once there is room"
        ) from error
    raise StorageFailed(f"the storage of the registry failed while {doing}") from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_plain(path: Path) -> FileIO:
    """A file to read, which is no link to another."""
    return FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW))


def write_all(handle: int, data: bytes | memoryview) -> None:
    """Write all of it: the kernel may take less at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


class Hasher(Protocol):
    """A SHA-256 in the making."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""


def digest_of(file: FileIO) -> str:
    """The SHA-256 of a whole file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()


def state_of(handle: int) -> tuple[int, int, int]:
    """What changes whenever the content of a file does: (mtime in ns, size in bytes, inode)."""
    found = os.fstat(handle)
    return found.st_mtime_ns, found.st_size, found.st_ino


def copy_new(source: FileIO, target: Path) -> str:
    """Copy to a file that must not exist yet; gives the SHA-256 of what was copied."""
    hasher = hashlib.sha256()
    source.seek(0)
    with target.open("xb", buffering=0) as copy:
        try:
            while data := source.read(COPY_BYTES):
                hasher.update(data)
                write_all(copy.fileno(), data)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return hasher.hexdigest()
