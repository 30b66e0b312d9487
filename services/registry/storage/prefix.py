"""The blocking half of a store of objects: its keys, and what is done to more than one at once.

A blob is `blobs/{aa}/{digest}`, a run of an upload lies below `uploads/{digest}/`, and a corrupt
blob is kept as `quarantine/{digest}.{ns}`.
"""

import hashlib
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from services.registry.storage import contents, disk
from services.registry.storage.bucket import Bucket, Entry
from services.registry.storage.contents import Stored, checked, is_digest, mismatch
from services.registry.storage.part_objects import GET_BYTES, SMALL_BYTES, PartObjects


class Prefix:
    """The objects of one registry in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def find(self, digest: str) -> Entry | None:
        """A blob, if there is one; InvalidRequest for what is no digest."""
        return self._bucket.head(_key(digest))

    def part(self, digest: str, size_bytes: int, every_bytes: int) -> PartObjects:
        """The runs of an upload, not looked for yet."""
        return PartObjects(self._bucket, _key(digest), digest, size_bytes, every_bytes)

    def get(self, entry: Entry, start: int, end: int, hasher: disk.Hasher | None) -> memoryview:
        """Bytes of a blob as it was found; Conflict once it is another."""
        try:
            data = self._bucket.get(entry.key, start, end, entry.etag)
        except FileNotFoundError:
            raise contents.missing() from None
        if hasher:
            hasher.update(data)
        return data

    def adopt(self, path: Path, digest: str, size_bytes: int) -> None:
        """Put a file under its digest, and remove it."""
        with disk.failures("a file was taken in"):
            if size_bytes <= SMALL_BYTES:
                self._bucket.put(_key(digest), b"".join(_from_file(path, digest, size_bytes)))
            else:
                data = _from_file(path, digest, size_bytes)
                self._bucket.put_stream(_key(digest), data, size_bytes)
            path.unlink()

    def set_aside(self, digest: str) -> bool:
        """Keep a corrupt blob below `quarantine/`; False where it is whole, or not here."""
        found = self.find(digest)
        # Two callers may see the same damage, and the first have had it repaired since.
        if found is None or self._whole(found, digest):
            return False
        # Not the store's own copy, which takes no object above 5 GiB.
        kept = f"quarantine/{digest}.{time.time_ns()}"
        if found.size_bytes <= SMALL_BYTES:
            self._bucket.put(kept, b"".join(self._all(found)))
        else:
            self._bucket.put_stream(kept, self._all(found), found.size_bytes)
        if self.find(digest) != found:
            return False
        self._bucket.delete([found.key])
        return True

    def delete(self, digest: str, older_than: datetime | None) -> bool:
        """Remove a blob, if it last changed before `older_than`; False where it stays."""
        found = self.find(digest)
        if found is None or (older_than is not None and found.modified >= older_than):
            return False
        self._bucket.delete([found.key])
        return True

    def stored(self) -> Iterator[list[Stored]]:
        """All blobs, in lists."""
        for page in self._bucket.entries("blobs"):
            yield [
                Stored(digest, entry.size_bytes, entry.modified)
                for entry in page
                if is_digest(digest := entry.key.rpartition("/")[2])
            ]

    def unfinished(self) -> list[Stored]:
        """All uploads of which there are parts, each with its newest time."""
        found: dict[str, Stored] = {}
        for page in self._bucket.entries("uploads"):
            for entry in page:
                digest = entry.key.rpartition("/")[0].rpartition("/")[2]
                if is_digest(digest):
                    before = found.get(digest, Stored(digest, 0, entry.modified))
                    found[digest] = Stored(
                        digest,
                        before.size_bytes + entry.size_bytes,
                        max(before.modified, entry.modified),
                    )
        return list(found.values())

    def forget_parts(self, digest: str) -> None:
        """Drop the runs of an upload."""
        for page in self._bucket.entries(f"uploads/{checked(digest)}"):
            self._bucket.delete([entry.key for entry in page])

    def _whole(self, entry: Entry, digest: str) -> bool:
        hasher = hashlib.sha256()
        for data in self._all(entry):
            hasher.update(data)
        return hasher.hexdigest() == digest

    def _all(self, entry: Entry) -> Iterator[memoryview]:
        for at in range(0, entry.size_bytes, GET_BYTES):
            yield self.get(entry, at, min(at + GET_BYTES, entry.size_bytes), None)


def _key(digest: str) -> str:
    return f"blobs/{checked(digest)[:2]}/{digest}"


def _from_file(path: Path, digest: str, size_bytes: int) -> Iterator[bytes]:
    """The bytes of a file; raises before their end where they are others than declared."""
    hasher = hashlib.sha256()
    with disk.open_plain(path) as file:
        while data := file.read(GET_BYTES):
            hasher.update(data)
            yield data
        if hasher.hexdigest() != digest or file.tell() != size_bytes:
            raise mismatch(digest, hasher.hexdigest())
