"""What the registry asks of a place for bytes, and which place a URL means. Knows no model."""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from services.registry.storage.bucket import SCHEMES
from services.registry.storage.contents import Stored
from services.registry.storage.local import LocalBlobs
from services.registry.storage.objects import ObjectBlobs

__all__ = ["Blobs", "Stored", "Upload", "open_blobs"]


class Upload(Protocol):
    """One upload in progress: bytes in order, durable offsets out.

    Every call may raise Conflict once another call, or another replica, goes on with the bytes;
    StorageFull and StorageFailed close the upload, and one that is opened again goes on from what
    is durable.
    """

    digest: str

    @property
    def durable_bytes(self) -> int:
        """How many bytes, from the first, outlive this process and this machine's power."""

    @property
    def whole(self) -> bool:
        """Whether as many bytes as declared have come."""

    async def write(self, offset: int, data: bytes) -> bool:
        """Append; True when this made more of it durable.

        InvalidRequest for an offset that does not follow or for bytes past the declared size.
        """

    async def complete(self) -> None:
        """Make the bytes durable under their digest; DataLoss where they are others."""

    async def close(self) -> None:
        """Keep what came for a later attempt; nothing to do where it is complete."""

    async def supersede(self) -> None:
        """Close it for another call that goes on with these bytes."""


class Blobs(Protocol):
    """Bytes by their SHA-256, whole and durable or not there.

    A digest is 64 hexadecimal digits in lower case, else InvalidRequest. Any call may raise
    StorageFailed, and one that stores also StorageFull.
    """

    fsync_every_bytes: int
    """An upload becomes durable, and is acknowledged, each time this much has come."""

    async def has(self, digest: str, size_bytes: int) -> bool:
        """Whether all the bytes are durable here."""

    async def open_upload(self, digest: str, size_bytes: int) -> Upload | None:
        """Go on with an upload, in place of one that is open for the same bytes in this process.

        None where the bytes are all here. Conflict while another process has it open, where the
        storage can tell.
        """

    def read(
        self, digest: str, size_bytes: int, offset: int, length: int, *, check: bool = True
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Runs of bytes with their offsets, from `offset`; a `length` of 0 is all the rest.

        NotFound where there is no such blob, OutOfRange past its end, DataLoss where it is corrupt:
        before its last run where it is read whole, else before the first. For the latter the whole
        blob is read once more, unless this process did so since the blob last changed; `check` off
        leaves out every check.
        """

    async def adopt(self, path: Path, digest: str, size_bytes: int) -> None:
        """Take in a finished file, which no one may write any more; it is gone afterwards.

        It counts as new, also where the blob is here already. DataLoss, and the file stays, where
        it holds other bytes.
        """

    async def fetch(self, digest: str, size_bytes: int, target: Path) -> None:
        """Make a regular file with these bytes, which must only be read: it may be the blob itself.

        NotFound where there is no such blob; DataLoss, and no file, where it is corrupt;
        FileExistsError where the target is there.
        """

    async def set_aside(self, digest: str) -> bool:
        """Move a corrupt blob out of the way, where it is kept, so it can be sent again.

        It is hashed first: False, and nothing moves, where it is whole after all, or not here.
        """

    async def delete(self, digest: str, *, older_than: datetime | None = None) -> bool:
        """Remove a blob, if it last changed before `older_than`; False where it stays."""

    def stored(self) -> AsyncIterator[Stored]:
        """All whole blobs, in no certain order."""

    def unfinished(self) -> AsyncIterator[Stored]:
        """All uploads of which there are parts, each with the newest time of them."""

    async def forget_unfinished(self, digest: str) -> bool:
        """Drop the parts of an upload; False where it is open."""

    async def close(self) -> None:
        """Let go of everything; uploads that are open end, and what came of them stays."""


def open_blobs(url: str, fsync_every_bytes: int, options: Mapping[str, str]) -> Blobs:
    """The store that a URL means: `s3://`, `gs://`, `az://`, `file://`, or the path of a folder.

    `options` are those of an object store, such as `endpoint` and `region`; what is not among them
    is taken from the environment as the store's own tools do. ValueError for what is none of these.
    """
    scheme = urlsplit(url).scheme
    if scheme in SCHEMES:
        return ObjectBlobs(url, fsync_every_bytes, options)
    if scheme == "file":
        return LocalBlobs(Path(unquote(urlsplit(url).path)), fsync_every_bytes)
    if scheme:
        raise ValueError(f"{scheme}:// is no storage that is known here")
    return LocalBlobs(Path(url), fsync_every_bytes)
