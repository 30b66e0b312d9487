"""The bytes of one upload on a local disk: appended, hashed as they come, made durable in runs."""

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from services.registry.storage.contents import mismatch
from services.registry.storage.disk import COPY_BYTES, failures, sync_folder, write_all
from services.registry.storage.hashing import Hashing
from services.runtime import metrics
from services.runtime.errors import Conflict


class PartFile:
    """A part that grows, locked against every other process while it is open."""

    def __init__(
        self,
        path: Path,
        digest: str,
        size_bytes: int,
        every_bytes: int,
        finish: Callable[[Path, str], None],
    ) -> None:
        self._path = path
        self._digest = digest
        self._size = size_bytes
        self._every = every_bytes
        self._finish = finish
        self._file: FileIO | None = None
        self._hashing = Hashing()
        self.received_bytes = 0
        self.durable_bytes = 0

    def open(self) -> None:
        """Open the part; what an earlier attempt left counts once it is durable.

        Conflict while another process receives the same bytes.
        """
        with failures("an upload was opened"):
            try:
                file = self.hold()
                sync_folder(self._path.parent)
                if os.fstat(file.fileno()).st_size > self._size:
                    file.truncate(0)
                self._take_over(file)
            except BaseException:
                self.close()
                raise

    def hold(self) -> FileIO:
        """Lock the part and do no more; Conflict while another process receives its bytes."""
        self._file = opened(self._path)
        return self._file

    def append(self, data: bytes) -> bool:
        """Take the bytes that follow; True when this made more of them durable."""
        file = self._open_file()
        try:
            with failures("bytes were written"):
                self._hashing.update(data)
                write_all(file.fileno(), data)
                self.received_bytes += len(data)
                due = self.received_bytes - self.durable_bytes >= self._every
                if due:
                    self._sync(file)
                return due
        except BaseException:
            self._give_up()
            raise

    def complete(self) -> None:
        """Check the digest and give the bytes their name."""
        file = self._open_file()
        with failures("an upload was completed"):
            try:
                self._sync(file)
            except BaseException:
                self._give_up()
                raise
            found = self._hashing.hexdigest()
            if found != self._digest:
                # Nothing of it can be trusted, so the next attempt begins anew.
                self._path.unlink()
                raise mismatch(self._digest, found)
            # The lock is held until the name is durable.
            self._finish(self._path, self._digest)

    def discard(self) -> None:
        """Throw the part away: the bytes are here already, or nobody wants them."""
        with suppress(OSError):
            self._path.unlink()
        self.close()

    def close(self) -> None:
        """Keep what came for a later attempt."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _open_file(self) -> FileIO:
        if self._file is None:
            raise Conflict("another call goes on with this upload")
        return self._file

    def _take_over(self, file: FileIO) -> None:
        while data := file.read(COPY_BYTES):
            self._hashing.update(data)
            self.received_bytes += len(data)
        if self.received_bytes:
            os.fsync(file.fileno())
            self.durable_bytes = self.received_bytes

    def _sync(self, file: FileIO) -> None:
        os.fsync(file.fileno())
        metrics.UPLOADED.inc(self.received_bytes - self.durable_bytes)
        self.durable_bytes = self.received_bytes

    def _give_up(self) -> None:
        """Keep no more than what is durable, and take no more.

        After a failed fsync the next one would report success for pages that this one lost.
        """
        with suppress(OSError):
            os.truncate(self._path, self.durable_bytes)
        self.received_bytes = self.durable_bytes
        self.close()


def opened(path: Path) -> FileIO:
    """The part under this name, locked; Conflict while another process has it."""
    while True:
        file = FileIO(path, "a+", opener=_no_link)
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had the lock before may have given the file its final name.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                    file.seek(0)
                    return file
        except BlockingIOError:
            file.close()
            raise Conflict("another replica receives these bytes") from None
        except BaseException:
            file.close()
            raise
        file.close()


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)
