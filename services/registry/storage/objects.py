"""Bytes by their digest in an object store that several replicas share. Knows no model.

A blob comes to be at once and whole, its digest checked; the acknowledged runs of an upload are
objects too, so another replica can go on with it. Parts of a multipart put that was cut off stay
hidden in the bucket until a rule of the bucket removes them (AbortIncompleteMultipartUpload on S3).
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

from services.registry.storage import contents, disk
from services.registry.storage.bucket import Bucket, Entry
from services.registry.storage.contents import READ_BYTES, Remembered, Stored
from services.registry.storage.part_objects import GET_BYTES
from services.registry.storage.prefix import Prefix
from services.registry.storage.receiving import Receiving, Writers, to_the_end

T = TypeVar("T")
# A request for less is mostly latency.
MIN_RUN_BYTES = 5 << 20
CALLS_AT_ONCE = 16


class ObjectBlobs:
    """A content-addressed store below one URL; ValueError for a URL or option that is no good."""

    def __init__(self, url: str, fsync_every_bytes: int, options: Mapping[str, str]) -> None:
        self.fsync_every_bytes = max(fsync_every_bytes, MIN_RUN_BYTES)
        self._prefix = Prefix(Bucket(url, options))
        self._pool = ThreadPoolExecutor(CALLS_AT_ONCE, "objects")
        self._writers = Writers()
        self._verified = Remembered()
        self._verifying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def has(self, digest: str, size_bytes: int) -> bool:
        """Whether all the bytes are durable here; takes one request to the store."""
        found = await self._run(lambda: self._prefix.find(digest))
        return found is not None and found.size_bytes == size_bytes

    async def open_upload(self, digest: str, size_bytes: int) -> Receiving | None:
        """Go on with an upload; one that is open for the same bytes here is superseded.

        Up to `fsync_every_bytes` of it are held in memory, or all of it where that is 8 MiB at
        most: such bytes become durable all at once, at the end.
        """
        part = self._prefix.part(contents.checked(digest), size_bytes, self.fsync_every_bytes)

        async def make() -> Receiving | None:
            if await self.has(digest, size_bytes):
                return None
            await self._run(part.open)
            return Receiving(part, digest, size_bytes, self._writers, self._pool)

        return await self._writers.replace(digest, make)

    async def read(
        self, digest: str, size_bytes: int, offset: int, length: int, *, check: bool = True
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Runs of bytes with their offsets, none of them corrupt unless `check` is off.

        What is read whole is hashed on the way. Of anything less the whole blob is fetched and
        hashed first, unless this process did so since the object last changed. Conflict where the
        object is replaced meanwhile.
        """
        end = contents.end_of(size_bytes, offset, length)
        whole = offset == 0 and end == size_bytes
        entry = await self._run(lambda: self._prefix.find(digest))
        if entry is None:
            raise contents.missing()
        if check and not whole:
            await self._verify(entry, digest, size_bytes)
        hasher = hashlib.sha256() if check and whole else None
        async for position, data in self._runs(entry, digest, offset, end, hasher):
            for at in range(0, len(data), READ_BYTES):
                yield position + at, bytes(data[at : at + READ_BYTES])
        if hasher:
            self._verified.add(digest, entry)

    async def adopt(self, path: Path, digest: str, size_bytes: int) -> None:
        """Take in a finished file, which no one may write any more; it is gone afterwards.

        DataLoss, and the file stays, where it holds other bytes.
        """
        await self._run(lambda: self._prefix.adopt(path, digest, size_bytes))

    async def fetch(self, digest: str, size_bytes: int, target: Path) -> None:
        """Make a file with these bytes.

        DataLoss, and no file, where the blob is corrupt; FileExistsError where the target is there.
        """
        with await asyncio.to_thread(target.open, "xb", buffering=0) as file:
            try:
                async for _, data in self.read(digest, size_bytes, 0, 0):
                    with disk.failures("bytes were fetched"):
                        await asyncio.to_thread(disk.write_all, file.fileno(), data)
            except BaseException:
                await to_the_end(target.unlink)
                raise

    async def set_aside(self, digest: str) -> bool:
        """Move a corrupt blob below `quarantine/`; False where it is whole after all, or gone."""
        return await self._run(lambda: self._prefix.set_aside(digest))

    async def delete(self, digest: str, *, older_than: datetime | None = None) -> bool:
        """Remove a blob, if it last changed before `older_than`; False where it stays."""
        return await self._run(lambda: self._prefix.delete(digest, older_than))

    async def stored(self) -> AsyncIterator[Stored]:
        """All whole blobs."""
        pages = self._prefix.stored()
        while (page := await self._run(lambda: next(pages, None))) is not None:
            for blob in page:
                yield blob

    async def unfinished(self) -> AsyncIterator[Stored]:
        """All uploads of which there are parts, each with its newest time."""
        for upload in await self._run(self._prefix.unfinished):
            yield upload

    async def forget_unfinished(self, digest: str) -> bool:
        """Drop the parts of an upload; False while it is open in this process.

        Of one that is open elsewhere only the age of its parts tells; to go on with an upload
        makes them young.
        """
        if digest in self._writers:
            return False
        await self._run(lambda: self._prefix.forget_parts(digest))
        return True

    async def close(self) -> None:
        """Close the uploads that are open, and the threads; what came stays for a later attempt."""
        await self._writers.close()
        await asyncio.to_thread(self._pool.shutdown)

    async def _run(self, work: Callable[[], T]) -> T:
        return await to_the_end(work, self._pool)

    async def _verify(self, entry: Entry, digest: str, size_bytes: int) -> None:
        async with self._verifying.setdefault(digest, asyncio.Lock()):
            if not self._verified.holds(digest, entry):
                async for _ in self._runs(entry, digest, 0, size_bytes, hashlib.sha256()):
                    pass
                self._verified.add(digest, entry)

    async def _runs(
        self, entry: Entry, digest: str, offset: int, end: int, hasher: disk.Hasher | None
    ) -> AsyncIterator[tuple[int, memoryview]]:
        if entry.size_bytes < end:
            raise contents.cut_short(digest)
        if hasher and offset == end and hasher.hexdigest() != digest:
            raise contents.corrupt(digest)
        while offset < end:
            until = min(offset + GET_BYTES, end)
            data = await self._run(partial(self._prefix.get, entry, offset, until, hasher))
            if until == end and hasher and hasher.hexdigest() != digest:
                raise contents.corrupt(digest)
            yield offset, data
            offset = until
