"""A place for bytes that a test can open more than once, look into, and damage."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from services.registry.storage.blobs import Blobs, Upload

EVERY = 65536
CHUNK = 50_000


@dataclass
class Place:
    """Where a store keeps its bytes; both kinds keep them in files of the same names."""

    kind: str
    root: Path
    make: Callable[[Path], Blobs]
    opened: list[Blobs] = field(default_factory=list, repr=False)

    def open(self) -> Blobs:
        """One more store over the same place, as another process would open it."""
        self.opened.append(self.make(self.root))
        return self.opened[-1]

    def another(self, name: str) -> "Place":
        """An empty place beside this one; what is opened of it is closed with this one."""
        return replace(self, root=self.root / name)

    def blob(self, data: bytes) -> Path:
        """The file of a blob."""
        return self.root / "blobs" / sha(data)[:2] / sha(data)

    def files(self, folder: str) -> list[Path]:
        """The files below one folder of the store."""
        return sorted(path for path in (self.root / folder).rglob("*") if path.is_file())

    def flip(self, data: bytes, position: int = 0) -> None:
        """Flip one bit of a blob."""
        path = self.blob(data)
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 0x10]))
        # The clock of a file system is coarse: damage must look younger than the check before it.
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 2 * 10**9))

    def age(self, path: Path, seconds: float) -> None:
        """Make a file look so much older."""
        found = path.stat()
        os.utime(path, (found.st_atime, found.st_mtime - seconds))


def sha(data: bytes) -> str:
    """The digest of bytes as the contract writes it."""
    return hashlib.sha256(data).hexdigest()


async def begin(blobs: Blobs, data: bytes, size: int | None = None) -> Upload:
    """An upload of bytes that are not here yet."""
    upload = await blobs.open_upload(sha(data), len(data) if size is None else size)
    assert upload is not None, "the bytes are here"
    return upload


async def begun(blobs: Blobs, data: bytes, sent: int) -> Upload:
    """An upload of which `sent` bytes have come."""
    upload = await begin(blobs, data)
    await upload.write(0, data[:sent])
    return upload


async def put(blobs: Blobs, data: bytes, *, chunk: int = CHUNK) -> None:
    """Upload bytes in chunks, from where an earlier upload ended."""
    upload = await blobs.open_upload(sha(data), len(data))
    if upload is None:
        return
    at = upload.durable_bytes
    try:
        while not upload.whole:
            run = data[at : at + chunk]
            assert run, "the upload wants more than there is"
            await upload.write(at, run)
            at += len(run)
        await upload.complete()
    finally:
        await upload.close()


async def get(blobs: Blobs, data: bytes, offset: int = 0, length: int = 0) -> bytes:
    """Read bytes back, checking that the runs follow on each other."""
    found, at = bytearray(), offset
    async for position, run in blobs.read(sha(data), len(data), offset, length):
        assert position == at
        found += run
        at += len(run)
    return bytes(found)
