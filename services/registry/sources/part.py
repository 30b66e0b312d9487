"""A file that grows while it is fetched. Knows no source.

What was written survives this process; all but the newest part of it also a loss of power.
"""

import os
from io import FileIO
from pathlib import Path

from services.registry.sources.source import Progress
from services.registry.storage.disk import failures, write_all
from services.registry.storage.receiving import to_the_end

SYNC_BYTES = 16 << 20
WRITE_BYTES = 4 << 20
DOING = "a model was imported"


class Part:
    """The bytes of one file so far; every write tells how many there are."""

    def __init__(self, target: Path, progress: Progress) -> None:
        self._progress = progress
        self._unsynced = 0
        with failures(DOING):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = FileIO(os.open(target, flags, 0o600), "r+")
            self.size = os.fstat(self._file.fileno()).st_size

    async def write(self, data: bytes | memoryview) -> None:
        """Append."""
        await to_the_end(lambda: self._append(data))
        self._progress(self.size)

    def restart(self) -> None:
        """Drop what is there."""
        with failures(DOING):
            self._file.truncate(0)
        self.size = self._unsynced = 0
        self._progress(0)

    def __enter__(self) -> "Part":
        self._progress(self.size)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _append(self, data: bytes | memoryview) -> None:
        with failures(DOING):
            for at in range(0, len(data), WRITE_BYTES):
                piece = data[at : at + WRITE_BYTES]
                write_all(self._file.fileno(), piece)
                self.size += len(piece)
                self._unsynced += len(piece)
                if self._unsynced >= SYNC_BYTES:
                    os.fsync(self._file.fileno())
                    self._unsynced = 0


def drop_unsure(target: Path) -> None:
    """Cut off what a loss of power may have replaced by zeros."""
    with failures(DOING):
        try:
            size = target.lstat().st_size
        except FileNotFoundError:
            return
        os.truncate(target, max(0, size - SYNC_BYTES - WRITE_BYTES))
