"""One import's bytes: what is at the source, brought here file by file. Knows no operation.

A source that fails is asked again, after longer and longer pauses, as long as more bytes come.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from services.registry.sources import Sources
from services.registry.sources.choosing import check_size
from services.registry.sources.source import Listing
from services.registry.sources.staging import Digest, Staged
from services.registry.storage.receiving import to_the_end
from services.runtime.errors import DataLoss, UpstreamUnavailable

T = TypeVar("T")


@dataclass(slots=True)
class Fetching:
    """The files of one import, and how far they are."""

    sources: Sources
    staged: Staged
    source: str
    path: str
    revision: str
    backoff_s: Sequence[float]
    listing: Listing | None = None
    _here: dict[int, int] = field(default_factory=dict)
    """Bytes that are here, by the number of the file."""

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        total = sum(file.size_bytes or 0 for file in self.listing.files) if self.listing else 0
        return min(1.0, sum(self._here.values()) / total) if total else 0.0

    @property
    def message(self) -> str:
        """What is done just now."""
        if self.listing is None:
            return "asking the source"
        return f"fetching file {max(1, len(self._here))} of {len(self.listing.files)}"

    async def list(self) -> Listing:
        """What is to be fetched: as an earlier attempt found it, else as it is now."""
        found = await to_the_end(self.staged.open)
        if found is None:
            found = await self._patiently(
                lambda: self.sources.list(self.source, self.path, self.revision)
            )
            await to_the_end(lambda: self.staged.keep(found))
        self.listing = found
        return found

    async def fetch(self, listing: Listing, number: int) -> Digest:
        """Bring one file; DataLoss where it is not the one that the source told of."""
        if known := await to_the_end(lambda: self.staged.digest(number)):
            self._here[number] = known.size_bytes
            return known
        file = listing.files[number]
        resumed = await to_the_end(lambda: self.staged.begin(number, file))
        while True:
            await self._patiently(
                lambda: self.sources.fetch(
                    self.source,
                    listing,
                    file,
                    self.staged.path(number),
                    lambda size_bytes: self._hear(number, size_bytes),
                )
            )
            try:
                return await to_the_end(lambda: self.staged.finish(number, file))
            except DataLoss:
                if not resumed:
                    raise
                # What an earlier process left may be the wrong part of it.
                resumed = False

    def _hear(self, number: int, size_bytes: int) -> None:
        self._here[number] = size_bytes
        check_size(sum(self._here.values()), self.sources.max_bytes)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        failures = most = 0
        while True:
            try:
                return await ask()
            except UpstreamUnavailable:
                here = sum(self._here.values())
                failures = 1 if here > most else failures + 1
                most = max(most, here)
                if failures > len(self.backoff_s):
                    raise
                await asyncio.sleep(self.backoff_s[failures - 1])
