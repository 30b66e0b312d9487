"""An upload as its caller sees it: bytes in order, one writer per digest. Knows no storage.

The blocking work is a sink's; it runs in threads, and to its end even when the caller has gone.
"""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from services.runtime.errors import Conflict, InvalidRequest

T = TypeVar("T")


class Sink(Protocol):
    """Where the bytes of one upload go. Every call blocks, and none runs beside another."""

    received_bytes: int
    durable_bytes: int

    def append(self, data: bytes) -> bool:
        """Take the bytes that follow; True when this made more of them durable."""

    def complete(self) -> None:
        """Check the digest and give the bytes their name; DataLoss where they are others."""

    def close(self) -> None:
        """Keep what came for a later attempt; nothing to do where it is closed already."""


class Receiving:
    """One upload in progress: bytes in order, durable offsets out."""

    def __init__(
        self, sink: Sink, digest: str, size_bytes: int, writers: "Writers", pool: Executor | None
    ) -> None:
        self.digest = digest
        self._sink = sink
        self._size = size_bytes
        self._writers = writers
        self._pool = pool
        self._lock = asyncio.Lock()
        self._closed = False

    @property
    def durable_bytes(self) -> int:
        """How many bytes, from the first, outlive this process and this machine's power."""
        return self._sink.durable_bytes

    @property
    def whole(self) -> bool:
        """Whether as many bytes as declared have come."""
        return self._sink.received_bytes == self._size

    async def write(self, offset: int, data: bytes) -> bool:
        """Append; True when this made more of it durable.

        InvalidRequest for an offset that does not follow or for bytes past the declared size;
        Conflict once another call goes on. After StorageFull or StorageFailed the upload is
        closed; one that is opened again goes on from what is durable.
        """
        async with self._lock:
            self._check_open()
            received = self._sink.received_bytes
            if offset != received:
                raise InvalidRequest.field("chunk.offset", f"is {offset}, not {received}")
            if received + len(data) > self._size:
                raise InvalidRequest.field(
                    "chunk.data", f"goes past the declared {self._size} bytes"
                )
            try:
                return await to_the_end(lambda: self._sink.append(data), self._pool)
            except Exception:
                await self._close()
                raise

    async def complete(self) -> None:
        """Check the digest, make the bytes durable under their final name.

        DataLoss when they are not the bytes declared, and none of them are kept.
        """
        async with self._lock:
            self._check_open()
            try:
                await to_the_end(self._sink.complete, self._pool)
            finally:
                await self._close()

    async def close(self) -> None:
        """Keep what came for a later attempt."""
        # A caller that is cancelled must not leave the bytes locked against the next.
        await asyncio.shield(asyncio.ensure_future(self._close_in_turn()))

    async def supersede(self) -> None:
        """Another call goes on with these bytes: this one may not write any more."""
        await self.close()

    async def _close_in_turn(self) -> None:
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        if not self._closed:
            self._closed = True
            try:
                await to_the_end(self._sink.close, self._pool)
            finally:
                self._writers.forget(self)

    def _check_open(self) -> None:
        if self._closed:
            raise Conflict("another call goes on with this upload")


class Writers:
    """The uploads that are open in this process, one per digest."""

    def __init__(self) -> None:
        self._open: dict[str, Receiving] = {}
        self._opening: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def replace(
        self, digest: str, make: Callable[[], Awaitable[Receiving | None]]
    ) -> Receiving | None:
        """Supersede what is open for the digest by what `make` gives."""
        async with self._opening.setdefault(digest, asyncio.Lock()):
            if before := self._open.get(digest):
                await before.supersede()
            made = await make()
            if made is not None:
                self._open[digest] = made
        return made

    def forget(self, upload: Receiving) -> None:
        """The upload is closed."""
        if self._open.get(upload.digest) is upload:
            del self._open[upload.digest]

    def __contains__(self, digest: str) -> bool:
        return digest in self._open

    async def close(self) -> None:
        """Close all that are open."""
        for upload in list(self._open.values()):
            await upload.close()


async def to_the_end(work: Callable[[], T], pool: Executor | None = None) -> T:
    """Run `work` in a thread, to its end even when cancelled: what is locked stays so as long."""
    running = asyncio.get_running_loop().run_in_executor(pool, work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([running])
        if not running.cancelled():
            running.exception()
        raise
