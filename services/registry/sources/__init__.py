"""Where models may be imported from: what the operator configured, and nothing else."""

from collections.abc import Mapping
from pathlib import Path

from services.registry.sources.choosing import MOST_BYTES, chosen
from services.registry.sources.folder import FolderSource
from services.registry.sources.objects import ObjectSource
from services.registry.sources.settings import (
    FolderSettings,
    ObjectStoreSettings,
    SourceSettings,
)
from services.registry.sources.source import Listing, Progress, Source, SourceFile
from services.runtime.errors import SOURCE_NOT_FOUND, NotFound

__all__ = ["Listing", "SourceFile", "Sources"]


class Sources:
    """The configured sources by their ids; ValueError where one cannot be as configured."""

    def __init__(self, settings: Mapping[str, SourceSettings], max_bytes: int = MOST_BYTES) -> None:
        self._sources = {name: _made(given) for name, given in settings.items()}
        self.kinds: Mapping[str, str] = {n: found.kind for n, found in self._sources.items()}
        self.max_bytes = max_bytes

    def check(self, source: str, path: str, revision: str) -> None:
        """Refuse a source that is not configured, or a path or revision that it cannot have."""
        self._source(source).check(path, revision)

    async def list(self, source: str, path: str, revision: str) -> Listing:
        """The files of the model at a path; FailedPrecondition where they cannot be a version."""
        found = self._source(source)
        found.check(path, revision)
        return chosen(await found.list(path, revision), self.max_bytes)

    async def fetch(
        self, source: str, listing: Listing, file: SourceFile, target: Path, progress: Progress
    ) -> None:
        """Bring a file into `target`, which may hold its first bytes."""
        await self._source(source).fetch(listing, file, target, progress)

    def _source(self, source: str) -> Source:
        if source not in self._sources:
            raise NotFound(
                f"no source {source!r} is configured",
                reason=SOURCE_NOT_FOUND,
                resource=("source", source),
            )
        return self._sources[source]


def _made(settings: SourceSettings) -> Source:
    if isinstance(settings, FolderSettings):
        return FolderSource(settings.path)
    if isinstance(settings, ObjectStoreSettings):
        return ObjectSource(settings.url, settings.options)
    # The library takes a second to load; most registries ask no hub.
    from services.registry.sources.huggingface import HuggingFaceSource

    return HuggingFaceSource(settings.endpoint, settings.token_file)
