"""Bytes by their digest on a local disk: durable before they are acknowledged. Knows no model.

A path is computed from a digest and from nothing else. An upload grows `uploads/{digest}`; when it
is whole and its digest is right it is made durable, renamed to `blobs/{aa}/{digest}`, and the
folder is made durable too.
"""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

from services.runtime import metrics
from services.runtime.errors import (
    ARTIFACT_NOT_FOUND,
    Conflict,
    DataLoss,
    InvalidRequest,
    NotFound,
    OutOfRange,
)

_DIGEST = re.compile(r"[0-9a-f]{64}")
READ_BYTES = 1 << 20


class Blobs:
    """A content-addressed store in one folder."""

    def __init__(self, root: Path, fsync_every_bytes: int) -> None:
        self._blobs = root / "blobs"
        self._uploads = root / "uploads"
        self.fsync_every_bytes = fsync_every_bytes
        self._writers: dict[str, Upload] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        for folder in (self._blobs, self._uploads):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (root, root.parent):
            _sync_folder(folder)

    def has(self, digest: str, size_bytes: int) -> bool:
        """Whether all the bytes are durable here."""
        try:
            return self._path(digest).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    async def open_upload(self, digest: str, size_bytes: int) -> "Upload | None":
        """Go on with an upload; one that is open for the same bytes is superseded.

        None where the bytes are all here, be it that the one before ended just now.
        """
        part = self._uploads / _checked(digest)
        async with self._opening.setdefault(digest, asyncio.Lock()):
            if before := self._writers.get(digest):
                await before.supersede()
            if self.has(digest, size_bytes):
                return None
            upload = Upload(self, part, digest, size_bytes)
            await upload.open()
            self._writers[digest] = upload
        return upload

    def finish(self, part: Path, digest: str) -> None:
        """Give a checked, durable upload its final name."""
        target = self._path(digest)
        target.parent.mkdir(exist_ok=True)
        # Whoever made the folder may have died before its name was durable.
        _sync_folder(self._blobs)
        part.rename(target)
        _sync_folder(target.parent)

    def forget(self, upload: "Upload") -> None:
        """The upload is closed."""
        if self._writers.get(upload.digest) is upload:
            del self._writers[upload.digest]

    async def read(
        self, digest: str, size_bytes: int, offset: int, length: int
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Runs of bytes with their offsets; DataLoss when a whole read does not match."""
        if offset > size_bytes:
            raise OutOfRange(f"offset {offset} lies past the end, {size_bytes}")
        end = min(size_bytes, offset + length) if length else size_bytes
        whole = offset == 0 and end == size_bytes
        try:
            file = await asyncio.to_thread(self._path(digest).open, "rb")
        except FileNotFoundError:
            raise NotFound("its bytes were not uploaded yet", reason=ARTIFACT_NOT_FOUND) from None
        with file:
            async for position, data in _chunks(file, digest, offset, end, check=whole):
                yield position, data

    async def head(self, digest: str, length: int) -> bytes:
        """The first bytes."""

        def read() -> bytes:
            with self._path(digest).open("rb") as file:
                return file.read(length)

        return await asyncio.to_thread(read)

    def _path(self, digest: str) -> Path:
        return self._blobs / _checked(digest)[:2] / digest


class Upload:
    """One upload in progress: bytes in order, durable offsets out."""

    def __init__(self, store: Blobs, part: Path, digest: str, size_bytes: int) -> None:
        self._store = store
        self._part = part
        self.digest = digest
        self._size = size_bytes
        self._file: BinaryIO | None = None
        self._lock = asyncio.Lock()
        self._written = 0
        self.durable_bytes = 0

    async def open(self) -> None:
        """Open the part; what an earlier attempt left counts once it is durable."""
        try:
            await _to_the_end(self._open)
        except BaseException:
            await self.close()
            raise

    async def write(self, offset: int, data: bytes) -> bool:
        """Append; True when this made more of it durable."""
        async with self._lock:
            file = self._open_file()
            if offset != self._written:
                raise InvalidRequest.field("chunk.offset", f"is {offset}, not {self._written}")
            if self._written + len(data) > self._size:
                raise InvalidRequest.field(
                    "chunk.data", f"goes past the declared {self._size} bytes"
                )
            due = self._written + len(data) - self.durable_bytes >= self._store.fsync_every_bytes
            await _to_the_end(lambda: self._append(file, data, sync=due))
            return due

    @property
    def whole(self) -> bool:
        """Whether as many bytes as declared have come."""
        return self._written == self._size

    async def complete(self) -> None:
        """Check the digest, make the bytes durable under their final name."""
        async with self._lock:
            self._open_file()
            await _to_the_end(self._complete)
        self._store.forget(self)

    async def close(self) -> None:
        """Keep what came for a later attempt."""
        async with self._lock:
            file, self._file = self._file, None
            if file is not None:
                await _to_the_end(file.close)
        self._store.forget(self)

    async def supersede(self) -> None:
        """Another call goes on with these bytes: this one may not write any more."""
        await self.close()

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise Conflict("another call goes on with this upload")
        return self._file

    def _open(self) -> None:
        self._file = self._part.open("ab")
        _sync_folder(self._part.parent)
        if self._file.tell() > self._size:
            self._file.truncate(0)
            self._file.seek(0)
        self._written = self._file.tell()
        self._sync()

    def _append(self, file: BinaryIO, data: bytes, *, sync: bool) -> None:
        file.write(data)
        self._written += len(data)
        if sync:
            self._sync()

    def _sync(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError:
                # The next fsync would report success for pages that this one lost.
                with suppress(OSError):
                    self._file.close()
                self._file = None
                os.truncate(self._part, self.durable_bytes)
                raise
            metrics.UPLOADED.inc(self._written - self.durable_bytes)
            self.durable_bytes = self._written

    def _complete(self) -> None:
        self._sync()
        if self._file is not None:
            self._file.close()
            self._file = None
        with self._part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.digest:
            # Nothing of it can be trusted, so the next attempt begins anew.
            self._part.unlink()
            raise DataLoss(
                "the bytes received do not match the declared SHA-256; send them again",
                metadata={"declared": self.digest, "received": found},
            )
        self._store.finish(self._part, self.digest)


async def _to_the_end(work: Callable[[], None]) -> None:
    """Run `work` in a thread, to its end even when cancelled: the lock is held as long."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.gather(running, return_exceptions=True)
        raise


async def _chunks(
    file: BinaryIO, digest: str, offset: int, end: int, *, check: bool
) -> AsyncIterator[tuple[int, bytes]]:
    hasher = hashlib.sha256()
    file.seek(offset)
    while offset < end:
        data = await asyncio.to_thread(file.read, min(READ_BYTES, end - offset))
        if not data:
            raise DataLoss("the stored bytes end early", metadata={"sha256": digest})
        if check:
            await asyncio.to_thread(hasher.update, data)
            if offset + len(data) == end and hasher.hexdigest() != digest:
                raise DataLoss("the stored bytes do not match", metadata={"sha256": digest})
        yield offset, data
        offset += len(data)


def _checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidRequest.field("sha256", "must be 64 hexadecimal digits in lower case")
    return digest


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
