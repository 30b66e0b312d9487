"""The bytes of one upload in an object store: each acknowledged run is an object of its own.

A run is `uploads/{digest}/{from}-{to}`, so two replicas that receive the same bytes never overwrite
what the other acknowledged; where their runs overlap, either has the bytes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress

from services.registry.storage.bucket import Bucket, Entry
from services.registry.storage.contents import mismatch
from services.registry.storage.hashing import Hashing
from services.runtime import metrics
from services.runtime.errors import Conflict, GristmillError

SMALL_BYTES = 8 << 20
GET_BYTES = 8 << 20


class PartObjects:
    """The runs of an upload; those yet to be acknowledged are in memory."""

    def __init__(
        self, bucket: Bucket, target: str, digest: str, size_bytes: int, every_bytes: int
    ) -> None:
        self._bucket = bucket
        self._target = target
        self._folder = f"uploads/{digest}"
        self._digest = digest
        self._size = size_bytes
        # Smaller bytes go straight to their final name, which takes one request and not four.
        self._every = SMALL_BYTES + 1 if size_bytes <= SMALL_BYTES else every_bytes
        self._buffer = bytearray()
        self._hashing = Hashing()
        self._resumed = False
        self.received_bytes = 0
        self.durable_bytes = 0

    def open(self) -> None:
        """Find what earlier attempts left, from the first byte on."""
        runs, end = joined(self._listed(), self._size)
        if runs:
            # Other replicas see by its age that someone goes on with these.
            self._bucket.put(f"{self._folder}/opened", b"")
        self._resumed = end > 0
        self.received_bytes = self.durable_bytes = end

    def append(self, data: bytes) -> bool:
        """Take the bytes that follow; True when this made more of them durable."""
        self._hashing.update(data)
        self._buffer += data
        self.received_bytes += len(data)
        if len(self._buffer) < self._every:
            return False
        self._flush()
        return True

    def complete(self) -> None:
        """Check the digest and give the bytes their name."""
        if not self._resumed and (found := self._hashing.hexdigest()) != self._digest:
            self._buffer.clear()
            self._clear()
            raise mismatch(self._digest, found)
        if self.durable_bytes == 0:
            self._bucket.put(self._target, self._buffer)
            self._count(self.received_bytes)
        else:
            self._flush()
            self._assemble()
        self._buffer = bytearray()
        # What is left of them is collected once it is old.
        with suppress(GristmillError):
            self._clear()

    def close(self) -> None:
        """Keep what came for a later attempt."""
        if self._buffer:
            self._flush()

    def _flush(self) -> None:
        if self._buffer:
            start = self.durable_bytes
            data, self._buffer = self._buffer, bytearray()
            self._bucket.put(f"{self._folder}/{start:020d}-{start + len(data):020d}", data)
            self._count(start + len(data))

    def _count(self, durable_bytes: int) -> None:
        metrics.UPLOADED.inc(durable_bytes - self.durable_bytes)
        self.durable_bytes = durable_bytes

    def _assemble(self) -> None:
        found = self._bucket.head(self._target)
        if found is not None and found.size_bytes == self._size:
            return  # another replica was done first
        runs, end = joined(self._listed(), self._size)
        gone = Conflict("another replica took the parts of this upload away; open it again")
        if end < self._size:
            raise gone
        try:
            self._bucket.put_stream(self._target, self._checked(runs), self._size)
        except FileNotFoundError:
            raise gone from None

    def _checked(self, runs: list[tuple[Entry, int, int]]) -> Iterator[memoryview]:
        """The bytes of the runs; raises before their end where they are others than declared."""
        hasher = hashlib.sha256()
        for entry, start, end in runs:
            for at in range(start, end, GET_BYTES):
                data = self._bucket.get(entry.key, at, min(at + GET_BYTES, end), entry.etag)
                hasher.update(data)
                yield data
        if hasher.hexdigest() != self._digest:
            # Nothing of it can be trusted, so the next attempt begins anew.
            self._clear()
            raise mismatch(self._digest, hasher.hexdigest())

    def _listed(self) -> list[Entry]:
        return [entry for page in self._bucket.entries(self._folder) for entry in page]

    def _clear(self) -> None:
        self._bucket.delete([entry.key for entry in self._listed()])


def joined(entries: list[Entry], size_bytes: int) -> tuple[list[tuple[Entry, int, int]], int]:
    """The runs that follow on each other, each with the range to take of it, and where they end.

    Runs longer than the declared size were sent under another one, and count for nothing.
    """
    spans = sorted((*span, n) for n, entry in enumerate(entries) if (span := _span(entry)))
    found: list[tuple[Entry, int, int]] = []
    at = 0
    for start, end, n in spans:
        if start <= at < end <= size_bytes:
            found.append((entries[n], at - start, end - start))
            at = end
    return found, at


def _span(entry: Entry) -> tuple[int, int] | None:
    start, dash, end = entry.key.rpartition("/")[2].partition("-")
    if not (dash and start.isdecimal() and end.isdecimal()):
        return None
    span = int(start), int(end)
    return span if entry.size_bytes == span[1] - span[0] > 0 else None
