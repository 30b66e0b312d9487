"""Models in folders of this machine. Knows only what lies below the root that it was given.

No symbolic link is followed: every name on the way is opened on its own, and refused if it is one.
"""

import errno
import os
import stat
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from services.registry.sources import source
from services.registry.sources.part import WRITE_BYTES, Part
from services.registry.sources.source import Listing, Progress, SourceFile
from services.registry.storage.receiving import to_the_end
from services.runtime.errors import FailedPrecondition, UpstreamUnavailable

MOST_DEPTH = 32
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a FIFO would wait for its writer.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_LINK = (errno.ELOOP, errno.ENOTDIR)


class FolderSource:
    """A folder whose folders are models."""

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, path: str, revision: str) -> None:
        """Plain names joined by "/", and no revision."""
        source.check_plain(path)
        source.check_unversioned(revision)

    async def list(self, path: str, revision: str) -> Listing:
        """All regular files; FailedPrecondition where anything but these and folders is there."""
        files = await to_the_end(lambda: self._files(path))
        return Listing(path=path, files=files)

    async def fetch(
        self, listing: Listing, file: SourceFile, target: Path, progress: Progress
    ) -> None:
        """Copy, from where the target ends."""
        opened = await to_the_end(lambda: self._open(listing.path, file))
        with opened, Part(target, progress) as part:
            if part.size > (file.size_bytes or 0):
                part.restart()
            opened.seek(part.size)
            while data := await to_the_end(lambda: _read(opened)):
                await part.write(data)
            if part.size != file.size_bytes or _tag(os.fstat(opened.fileno())) != file.tag:
                source.changed(file)

    def _files(self, path: str) -> tuple[SourceFile, ...]:
        found: MutableSequence[SourceFile] = []
        with _reading(path):
            handle = self._descend(path)
            _walk(handle, "", found)
        return tuple(sorted(found, key=lambda file: file.path))

    def _open(self, path: str, file: SourceFile) -> FileIO:
        folder, _, name = f"{path}/{file.path}".rpartition("/")
        with _reading(file.path):
            handle = self._descend(folder)
            try:
                opened = FileIO(os.open(name, _FILE, dir_fd=handle))
            finally:
                os.close(handle)
        if _tag(os.fstat(opened.fileno())) != file.tag:
            opened.close()
            source.changed(file)
        return opened

    def _descend(self, path: str) -> int:
        """Open a folder below the root, one name after the other."""
        # The root itself is the operator's word.
        handle = os.open(self._root, _FOLDER & ~os.O_NOFOLLOW)
        for name in path.split("/"):
            try:
                following = os.open(name, _FOLDER, dir_fd=handle)
            finally:
                os.close(handle)
            handle = following
        return handle


def _walk(handle: int, prefix: str, found: MutableSequence[SourceFile]) -> None:
    """All regular files below an open folder, which is closed at the end."""
    try:
        if prefix.count("/") > MOST_DEPTH:
            raise FailedPrecondition(f"there are more than {MOST_DEPTH} folders in one another")
        for name in sorted(os.listdir(handle)):
            if name.startswith("."):
                continue
            state = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if stat.S_ISDIR(state.st_mode):
                _walk(os.open(name, _FOLDER, dir_fd=handle), f"{prefix}{name}/", found)
            elif not stat.S_ISREG(state.st_mode):
                raise FailedPrecondition(f"{prefix + name!a} is no regular file")
            elif len(found) >= source.MOST_LISTED:
                source.too_many()
            else:
                # Names that are no UTF-8 are refused later, and must be sayable until then.
                path = (prefix + name).encode(errors="backslashreplace").decode()
                found.append(SourceFile(path=path, size_bytes=state.st_size, tag=_tag(state)))
    finally:
        os.close(handle)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Tell of a failure without any path of this machine but `what`, which the caller gave."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise source.missing(f"there is no {what} in this source") from None
    except PermissionError:
        raise FailedPrecondition(f"the registry may not read {what}") from None
    except OSError as error:
        if error.errno in _LINK:
            raise FailedPrecondition(f"{what} is no folder, or has a symbolic link in it") from None
        raise UpstreamUnavailable(f"reading {what} failed") from error


def _read(opened: FileIO) -> bytes:
    try:
        return opened.read(WRITE_BYTES)
    except OSError as error:
        raise UpstreamUnavailable("reading the folder failed") from error


def _tag(state: os.stat_result) -> str:
    """What changes with the content; only a regular file has one."""
    if not stat.S_ISREG(state.st_mode):
        return "none"
    return f"{state.st_ino}.{state.st_size}.{state.st_mtime_ns}"
