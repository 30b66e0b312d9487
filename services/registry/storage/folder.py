"""The blocking half of a local store: names in its folder, and the order they become durable in.

Several processes may work in one folder. What one of them renamed is only as durable as the folder
it lies in, so each makes a folder durable itself before it answers that a blob is there.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from services.registry.storage.contents import (
    Remembered,
    Stored,
    checked,
    is_digest,
    mismatch,
    missing,
)
from services.registry.storage.disk import COPY_BYTES, digest_of, failures, open_plain, sync_folder
from services.registry.storage.part_file import PartFile
from services.runtime.errors import Conflict


class Folder:
    """`blobs/{aa}/{digest}`, `uploads/{digest}` and `quarantine/` below one root."""

    def __init__(self, root: Path, fsync_every_bytes: int) -> None:
        self._blobs = root / "blobs"
        self._uploads = root / "uploads"
        self._quarantine = root / "quarantine"
        self._every = fsync_every_bytes
        self._durable = Remembered()
        self._shards: set[Path] = set()
        self._unsettled: set[str] = set()
        for folder in (self._blobs, self._uploads, self._quarantine):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (root, root.parent):
            sync_folder(folder)

    def path(self, digest: str) -> Path:
        """Where a blob lies or will lie; InvalidRequest for what is no digest."""
        return self._blobs / checked(digest)[:2] / digest

    def part(self, digest: str, size_bytes: int) -> PartFile:
        """The part of an upload, not opened yet."""
        path = self._uploads / checked(digest)
        return PartFile(path, digest, size_bytes, self._every, self._finish)

    def open(self, digest: str) -> FileIO:
        """A blob to read; NotFound where there is none."""
        with failures("bytes were read"):
            try:
                return self.path(digest).open("rb", buffering=0)
            except FileNotFoundError:
                raise missing() from None

    def has(self, digest: str, size_bytes: int) -> bool:
        """Whether all the bytes are durable under their name."""
        path = self.path(digest)
        with failures("bytes were looked for"):
            try:
                found = path.stat()
            except FileNotFoundError:
                return False
            if found.st_size != size_bytes or digest in self._unsettled:
                return False
            state = found.st_ino, found.st_mtime_ns
            if not self._durable.holds(digest, state):
                sync_folder(path.parent)
                sync_folder(self._blobs)
                self._durable.add(digest, state)
            return True

    def begin(self, part: PartFile, digest: str, size_bytes: int) -> bool:
        """Open the part to go on with it; False where the bytes are all here."""
        if self.has(digest, size_bytes):
            return False
        if digest in self._unsettled:
            # Its bytes are durable and only its name is not: give it that name once more.
            with suppress(OSError):
                self.path(digest).rename(self._uploads / digest)
        part.open()
        if self.has(digest, size_bytes):
            part.discard()  # another process was done while this one came
            return False
        return True

    def adopt(self, path: Path, digest: str, size_bytes: int) -> None:
        """Take in a finished file: checked, made durable, and given its name."""
        checked(digest)
        with failures("a file was taken in"), open_plain(path) as file:
            found = digest_of(file)
            if found != digest or file.tell() != size_bytes:
                raise mismatch(digest, found)
            if not self._renewed(digest, size_bytes):
                os.fsync(file.fileno())
                try:
                    self._finish(path, digest)
                except OSError as error:
                    if error.errno != errno.EXDEV:
                        raise
                    self._copy_in(file, digest, size_bytes)
        with failures("a file was taken in"):
            path.unlink(missing_ok=True)

    def set_aside(self, digest: str) -> bool:
        """Keep a corrupt blob below `quarantine/`; False where it is whole, or not here."""
        path = self.path(digest)
        with failures("a corrupt blob was set aside"), suppress(FileNotFoundError):
            # Two callers may see the same damage, and the first have had it repaired since.
            if _whole(path, digest):
                return False
            path.rename(self._quarantine / f"{digest}.{time.time_ns()}")
            sync_folder(self._quarantine)
            sync_folder(path.parent)
            return True
        return False

    def delete(self, digest: str, older_than: datetime | None) -> bool:
        """Remove a blob, if it last changed before `older_than`; False where it stays."""
        path = self.path(digest)
        with failures("bytes were deleted"), suppress(FileNotFoundError):
            if older_than is None or _stored(path).modified < older_than:
                # Should a power cut bring the name back, the bytes under it are still whole.
                path.unlink()
                return True
        return False

    def forget_part(self, digest: str) -> bool:
        """Drop the part of an upload; False while any process has it open."""
        part = self.part(digest, 0)
        with failures("an upload was dropped"):
            try:
                part.hold()
            except Conflict:
                return False
            part.discard()
            return True

    def shards(self) -> list[Path]:
        """The folders that blobs lie in."""
        with failures("blobs were listed"):
            return sorted(self._blobs.iterdir())

    def stored(self, shard: Path) -> list[Stored]:
        """The blobs of one shard."""
        return list(_listed(shard))

    def unfinished(self) -> list[Stored]:
        """The parts of all uploads."""
        return list(_listed(self._uploads))

    def _finish(self, part: Path, digest: str) -> None:
        """Give checked, durable bytes their final name."""
        target = self.path(digest)
        target.parent.mkdir(exist_ok=True)
        if target.parent not in self._shards:
            # Whoever made the folder may have died before its name was durable.
            sync_folder(self._blobs)
            self._shards.add(target.parent)
        self._unsettled.add(digest)
        try:
            part.rename(target)
        except OSError:
            self._unsettled.discard(digest)
            raise
        # Where this fails the name stays unsettled: asking again would prove nothing.
        sync_folder(target.parent)
        self._unsettled.discard(digest)

    def _renewed(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is here; it counts as new, so that nothing old is collected of it."""
        with suppress(FileNotFoundError):
            if self.has(digest, size_bytes):
                os.utime(self.path(digest))
                return True
        return False

    def _copy_in(self, file: FileIO, digest: str, size_bytes: int) -> None:
        part = self.part(digest, size_bytes)
        try:
            part.open()
            file.seek(part.received_bytes)
            while data := file.read(COPY_BYTES):
                part.append(data)
            part.complete()
        finally:
            part.close()


def _whole(path: Path, digest: str) -> bool:
    with path.open("rb", buffering=0) as file:
        try:
            return digest_of(file) == digest
        except OSError:
            return False  # a sector that cannot be read is damage like any other


def _stored(path: Path) -> Stored:
    found = path.stat()
    return Stored(path.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))


def _listed(folder: Path) -> Iterator[Stored]:
    with failures("blobs were listed"):
        for path in sorted(folder.iterdir()):
            if is_digest(path.name):
                with suppress(FileNotFoundError):
                    yield _stored(path)
