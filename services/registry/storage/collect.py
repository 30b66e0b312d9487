"""Removes blobs that no version refers to, and uploads nobody goes on with. Knows no database.

Whether a version refers to a blob is the guard's to say, and to keep true while blobs are removed.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.registry.storage.blobs import Blobs, Stored

BATCH = 100
Guard = Callable[[Sequence[str]], AbstractAsyncContextManager[set[str]]]
"""Yields those of the digests that no version refers to; none begins to before it is left."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed: blobs, uploads that were not finished, and the bytes of both."""

    blobs: int = 0
    parts: int = 0
    bytes: int = 0

    def __add__(self, other: "Collected") -> "Collected":
        return Collected(
            self.blobs + other.blobs, self.parts + other.parts, self.bytes + other.bytes
        )


class Collector:
    """Collects what is older than `min_age`; that also covers bytes that come before their row."""

    def __init__(
        self, blobs: Blobs, guard: Guard, min_age: timedelta, clock: Callable[[], datetime]
    ) -> None:
        self._blobs = blobs
        self._guard = guard
        self._min_age = min_age
        self._clock = clock

    async def collect(self) -> Collected:
        """Go through all that is stored once; StorageFailed ends it early, and the next goes on."""
        before = self._clock() - self._min_age
        total = Collected()
        batch: list[Stored] = []
        async for blob in self._blobs.stored():
            if blob.modified < before:
                batch.append(blob)
            if len(batch) == BATCH:
                total += await self._remove(batch, before)
                batch = []
        if batch:
            total += await self._remove(batch, before)
        async for upload in self._blobs.unfinished():
            if upload.modified < before and await self._blobs.forget_unfinished(upload.digest):
                total += Collected(parts=1, bytes=upload.size_bytes)
        return total

    async def _remove(self, batch: list[Stored], before: datetime) -> Collected:
        async with self._guard([blob.digest for blob in batch]) as unreferenced:
            # At once: whoever else wants to write waits until the guard is left.
            left = [blob for blob in batch if blob.digest in unreferenced]
            gone = await asyncio.gather(
                *(self._blobs.delete(blob.digest, older_than=before) for blob in left)
            )
        removed = [blob for blob, is_gone in zip(left, gone, strict=True) if is_gone]
        return Collected(blobs=len(removed), bytes=sum(blob.size_bytes for blob in removed))
