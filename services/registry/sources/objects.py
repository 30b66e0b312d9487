"""Models below a prefix of an object store. Knows only what lies below the URL it was given."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TypeVar

from services.registry.sources import source
from services.registry.sources.part import Part
from services.registry.sources.source import Listing, Progress, SourceFile
from services.registry.storage.bucket import SCHEMES, Bucket, Entry
from services.runtime.errors import Conflict, StorageFailed, UpstreamUnavailable

GET_BYTES = 8 << 20
T = TypeVar("T")


class ObjectSource:
    """A prefix whose prefixes are models."""

    kind = "object_store"

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        """ValueError for a URL or an option that is no good."""
        if url.partition("://")[0] not in SCHEMES:
            raise ValueError(f"{url} is no object store that is known here")
        self._bucket = Bucket(url, options)

    def check(self, path: str, revision: str) -> None:
        """Plain names joined by "/", and no revision."""
        source.check_plain(path)
        source.check_unversioned(revision)

    async def list(self, path: str, revision: str) -> Listing:
        """All objects below the prefix."""
        files = await _ask(lambda: self._files(path))
        if not files:
            raise source.missing(f"there is no object below {path} in this source")
        tags = "".join(f"{file.path}\n{file.tag}\n" for file in files)
        facts = {"etags_sha256": hashlib.sha256(tags.encode()).hexdigest()}
        return Listing(path=path, files=files, facts=facts)

    async def fetch(
        self, listing: Listing, file: SourceFile, target: Path, progress: Progress
    ) -> None:
        """Read ranges, from where the target ends, each of the object that was listed."""
        key, size = f"{listing.path}/{file.path}", file.size_bytes or 0
        with Part(target, progress) as part:
            if part.size > size:
                part.restart()
            while part.size < size:
                at, end = part.size, min(size, part.size + GET_BYTES)
                data = await _ask(partial(self._get, key, at, end, file))
                if not data:
                    source.changed(file)
                await part.write(data)

    def _files(self, path: str) -> tuple[SourceFile, ...]:
        found: MutableSequence[SourceFile] = []
        for page in self._bucket.entries(path):
            found.extend(_file(entry, path) for entry in page if entry.key != path)
            if len(found) > source.MOST_LISTED:
                source.too_many()
        return tuple(sorted(without_markers(found), key=lambda file: file.path))

    def _get(self, key: str, start: int, end: int, file: SourceFile) -> memoryview:
        try:
            return self._bucket.get(key, start, end, file.tag or None)
        except (Conflict, FileNotFoundError):
            source.changed(file)


def without_markers(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Some tools mark a folder by an empty object of its name."""
    folders = {parent for file in files for parent in map(str, PurePosixPath(file.path).parents)}
    return [file for file in files if file.size_bytes or file.path not in folders]


def _file(entry: Entry, path: str) -> SourceFile:
    relative = entry.key.removeprefix(f"{path}/")
    return SourceFile(path=relative, size_bytes=entry.size_bytes, tag=entry.etag or "")


async def _ask(work: Callable[[], T]) -> T:
    with _failures():
        # Given up, it ends by itself: what it brings is dropped.
        return await asyncio.to_thread(work)


@contextmanager
def _failures() -> Iterator[None]:
    """It is not the registry's own storage that failed."""
    try:
        yield
    except StorageFailed as error:
        raise UpstreamUnavailable("the object store of this source failed") from error
