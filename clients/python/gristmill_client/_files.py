"""Files on their way to and from a registry: digests, safe paths, what is partly there."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from gristmill_client.errors import DataLoss, InvalidRequest
from gristmill_client.resources import Artifact

CHUNK_BYTES = 1024 * 1024
# The contract's own pattern; it also rules out "..", absolute paths and drives.
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to push: where it is, and what the registry will know it by."""

    location: Path
    artifact: Artifact


def local_files(folder: Path) -> list[LocalFile]:
    """Every file of the folder but hidden ones, with size and digest, by path."""
    files = []
    for location in sorted(folder.rglob("*")):
        path = location.relative_to(folder).as_posix()
        if not location.is_file() or any(part.startswith(".") for part in path.split("/")):
            continue
        if not _PATH.fullmatch(path):
            raise InvalidRequest(
                f"the registry takes no file named {path!r}: rename it to letters, digits "
                "and . _ + -, beginning with a letter, a digit or _"
            )
        with location.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files.append(LocalFile(location, Artifact(path, location.stat().st_size, digest)))
    return files


def destination(folder: Path, path: str) -> Path:
    """Where a pulled artifact goes. Raises DataLoss for a path that would leave the folder."""
    if not _PATH.fullmatch(path):
        raise DataLoss(f"the registry sent the path {path!r}, which is none that it may keep")
    return folder / path


def has_content(location: Path, artifact: Artifact) -> bool:
    """Whether the file is there already, with this very content."""
    if not location.is_file() or location.stat().st_size != artifact.size_bytes:
        return False
    with location.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == artifact.sha256


class PartialFile:
    """A download under way, beside its destination and named after its digest.

    So a later pull of the same content goes on where this one was cut, and the destination itself
    is only ever absent, the old file or the whole new one.
    """

    def __init__(self, location: Path, artifact: Artifact) -> None:
        self._location = location
        self._artifact = artifact
        self._partial = location.with_name(f".{location.name}.{artifact.sha256[:16]}.partial")
        location.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("a+b")
        self._digest = hashlib.sha256()
        self.size = 0
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            self._add(chunk)
        self.resumed = self.size > 0

    @property
    def complete(self) -> bool:
        return self.size >= self._artifact.size_bytes

    def write(self, offset: int, data: bytes) -> None:
        if offset != self.size:
            raise DataLoss(f"{self._artifact.path}: sent from {offset}, wanted from {self.size}")
        if self.size + len(data) > self._artifact.size_bytes:
            raise DataLoss(f"{self._artifact.path}: more bytes were sent than it has")
        self._file.write(data)
        self._add(data)

    def finish(self) -> None:
        """Puts the file in its place. Raises DataLoss and drops all bytes if they are not its."""
        if (
            self.size != self._artifact.size_bytes
            or self._digest.hexdigest() != self._artifact.sha256
        ):
            self.discard()
            raise DataLoss(f"{self._artifact.path}: the bytes received do not match its SHA-256")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._location)

    def discard(self) -> None:
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Keeps what has been received for a later pull; nothing received, nothing kept."""
        self._file.close()
        if not self.size:
            self._partial.unlink(missing_ok=True)

    def _add(self, data: bytes) -> None:
        self._digest.update(data)
        self.size += len(data)
