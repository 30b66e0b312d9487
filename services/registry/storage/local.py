"""Bytes by their digest in a folder that several processes may share. Knows no model.

A path is computed from a digest and from nothing else. An upload grows `uploads/{digest}`; when it
is whole and its digest is right it is made durable, renamed to `blobs/{aa}/{digest}`, and the
folder is made durable too. A corrupt blob is kept below `quarantine/`.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from datetime import datetime
from io import FileIO
from pathlib import Path
from weakref import WeakValueDictionary

from services.registry.storage import contents
from services.registry.storage.contents import READ_BYTES, Remembered, Stored
from services.registry.storage.disk import Hasher, copy_new, failures, state_of
from services.registry.storage.folder import Folder
from services.registry.storage.receiving import Receiving, Writers, to_the_end

HASH_BYTES = 8 * READ_BYTES


class LocalBlobs:
    """A content-addressed store in one folder; OSError where the folder cannot be made."""

    def __init__(self, root: Path, fsync_every_bytes: int) -> None:
        self.fsync_every_bytes = fsync_every_bytes
        self._folder = Folder(root, fsync_every_bytes)
        self._writers = Writers()
        self._verified = Remembered()
        self._verifying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def has(self, digest: str, size_bytes: int) -> bool:
        """Whether all the bytes are durable here."""
        return await asyncio.to_thread(self._folder.has, digest, size_bytes)

    async def open_upload(self, digest: str, size_bytes: int) -> Receiving | None:
        """Go on with an upload; one that is open for the same bytes here is superseded."""
        part = self._folder.part(digest, size_bytes)

        async def make() -> Receiving | None:
            try:
                begun = await to_the_end(lambda: self._folder.begin(part, digest, size_bytes))
            except BaseException:
                part.close()
                raise
            return Receiving(part, digest, size_bytes, self._writers, None) if begun else None

        return await self._writers.replace(digest, make)

    async def read(
        self, digest: str, size_bytes: int, offset: int, length: int, *, check: bool = True
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Runs of bytes with their offsets, none of them corrupt unless `check` is off.

        What is read whole is hashed on the way. Of anything less the whole blob is hashed first,
        about a second for each gigabyte, unless this process did so since the file last changed.
        """
        end = contents.end_of(size_bytes, offset, length)
        whole = offset == 0 and end == size_bytes
        with await asyncio.to_thread(self._folder.open, digest) as file:
            state = state_of(file.fileno())
            if check and not whole:
                await self._verify(file, digest, size_bytes)
            hasher = hashlib.sha256() if check and whole else None
            async for position, data in _runs(file, digest, offset, end, hasher):
                yield position, data
            if hasher:
                self._verified.add(digest, state)

    async def adopt(self, path: Path, digest: str, size_bytes: int) -> None:
        """Take in a finished file, which no one may write any more; it is gone afterwards.

        The file is renamed where it lies on the same file system, else copied. DataLoss, and the
        file stays, where it holds other bytes.
        """
        await to_the_end(lambda: self._folder.adopt(path, digest, size_bytes))

    async def fetch(self, digest: str, size_bytes: int, target: Path) -> None:
        """Make a file with these bytes; it may be the blob itself, so it must only be read.

        DataLoss, and no file, where the blob is corrupt; FileExistsError where the target is there.
        """
        with await asyncio.to_thread(self._folder.open, digest) as file:
            await _check(file, digest, size_bytes)
            source = self._folder.path(digest)
            await to_the_end(lambda: _link_or_copy(source, file, digest, target))

    async def set_aside(self, digest: str) -> bool:
        """Move a corrupt blob below `quarantine/`; False where it is whole after all, or gone."""
        return await to_the_end(lambda: self._folder.set_aside(digest))

    async def delete(self, digest: str, *, older_than: datetime | None = None) -> bool:
        """Remove a blob, if it last changed before `older_than`; False where it stays."""
        return await to_the_end(lambda: self._folder.delete(digest, older_than))

    async def stored(self) -> AsyncIterator[Stored]:
        """All whole blobs."""
        for shard in await asyncio.to_thread(self._folder.shards):
            for found in await asyncio.to_thread(self._folder.stored, shard):
                yield found

    async def unfinished(self) -> AsyncIterator[Stored]:
        """All parts of uploads."""
        for found in await asyncio.to_thread(self._folder.unfinished):
            yield found

    async def forget_unfinished(self, digest: str) -> bool:
        """Drop the part of an upload; False while any process has it open."""
        return await to_the_end(lambda: self._folder.forget_part(digest))

    async def close(self) -> None:
        """Close the uploads that are open; what came stays for a later attempt."""
        await self._writers.close()

    async def _verify(self, file: FileIO, digest: str, size_bytes: int) -> None:
        async with self._verifying.setdefault(digest, asyncio.Lock()):
            state = state_of(file.fileno())
            if not self._verified.holds(digest, state):
                await _check(file, digest, size_bytes)
                self._verified.add(digest, state)


async def _check(file: FileIO, digest: str, size_bytes: int) -> None:
    """Hash a whole file; DataLoss where it is not what its name says."""
    if state_of(file.fileno())[1] < size_bytes:
        raise contents.cut_short(digest)
    hasher = hashlib.sha256()
    while await asyncio.to_thread(_read, file, HASH_BYTES, hasher):
        pass
    if hasher.hexdigest() != digest:
        raise contents.corrupt(digest)


async def _runs(
    file: FileIO, digest: str, offset: int, end: int, hasher: Hasher | None
) -> AsyncIterator[tuple[int, bytes]]:
    file.seek(offset)
    if hasher and offset == end and hasher.hexdigest() != digest:
        raise contents.corrupt(digest)
    while offset < end:
        data = await asyncio.to_thread(_read, file, min(READ_BYTES, end - offset), hasher)
        if not data:
            raise contents.cut_short(digest)
        if hasher and offset + len(data) == end and hasher.hexdigest() != digest:
            raise contents.corrupt(digest)
        yield offset, data
        offset += len(data)


def _read(file: FileIO, most_bytes: int, hasher: Hasher | None) -> bytes:
    with failures("bytes were read"):
        data = file.read(most_bytes)
    if hasher:
        hasher.update(data)
    return data


def _link_or_copy(source: Path, file: FileIO, digest: str, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        pass  # another file system, or one without hard links
    else:
        if os.path.samestat(os.stat(target), os.fstat(file.fileno())):
            return
        target.unlink()  # the name was given to other bytes since they were checked
    with failures("bytes were fetched"):
        if copy_new(file, target) != digest:
            target.unlink()
            raise contents.corrupt(digest)
