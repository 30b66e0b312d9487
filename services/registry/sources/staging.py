"""The files of imports in hand, kept until each import ends. Knows no source and no operation.

Each import has a folder, and each file a number in it: no name from outside is part of a path. What
was found out is kept beside the bytes, so that a process that begins anew goes on with it.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from services.registry.resources import Record
from services.registry.sources.part import DOING, drop_unsure
from services.registry.sources.source import Listing, SourceFile
from services.registry.storage.disk import Hasher, failures, open_plain
from services.runtime.errors import DataLoss, StorageFull

_KEY = re.compile(r"import\.[0-9a-f]{8,64}")
HASH_BYTES = 1 << 20
RecordT = TypeVar("RecordT", bound=Record)


class Stopped(Exception):
    """Nobody waits for the digest any more."""


class Digest(Record):
    """A file that is all here."""

    sha256: str
    size_bytes: int


class Staged:
    """The folder of one import."""

    def __init__(self, root: Path, key: str) -> None:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key} is the key of no import")
        self._folder = root / key
        self._stopped = threading.Event()

    def open(self) -> Listing | None:
        """Make the folder; the listing, where an earlier attempt left it."""
        with failures(DOING):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _noted(self._folder / "listing", Listing)

    def keep(self, listing: Listing) -> None:
        """Note what is to be fetched, once there is room for it."""
        size = sum(file.size_bytes or 0 for file in listing.files)
        with failures(DOING):
            if shutil.disk_usage(self._folder).free < size:
                raise StorageFull(f"the registry has no room for the {size:,} bytes of this model")
        _note(self._folder / "listing", listing)

    def path(self, number: int) -> Path:
        """Where a file is, or grows."""
        return self._folder / str(number)

    def digest(self, number: int) -> Digest | None:
        """What is known of a file that is all here; None for one that is not."""
        return _noted(self._folder / f"{number}.digest", Digest)

    def begin(self, number: int, file: SourceFile) -> bool:
        """Go on with what an earlier process left of a file; whether it left anything."""
        if not file.verifiable:
            drop_unsure(self.path(number))
        return self.path(number).exists()

    def finish(self, number: int, file: SourceFile) -> Digest:
        """Hash a file and note it; DataLoss, and it is gone, where it is not the one listed."""
        path = self.path(number)
        with failures(DOING):
            found = _measured(path, file, self._stopped)
            if found is None:
                path.unlink()
                raise DataLoss(f"the bytes of {file.path} do not match its digest at the source")
        _note(self._folder / f"{number}.digest", found)
        return found

    def stop(self) -> None:
        """Let no file be hashed any longer."""
        self._stopped.set()

    def remove(self) -> None:
        """Drop all of it."""
        with failures(DOING), suppress(FileNotFoundError):
            shutil.rmtree(self._folder)


def keys(root: Path) -> Iterable[str]:
    """The imports of which there is a folder."""
    with failures(DOING):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return [path.name for path in root.iterdir() if _KEY.fullmatch(path.name)]


def _measured(path: Path, file: SourceFile, stopped: threading.Event) -> Digest | None:
    """The digest of a file; None where it is another than the source told of."""
    with open_plain(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        sha256 = hashlib.sha256()
        git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        hashers: list[Hasher] = [sha256, git] if file.git_sha1 else [sha256]
        while data := opened.read(HASH_BYTES):
            if stopped.is_set():
                raise Stopped
            for hasher in hashers:
                hasher.update(data)
    for told, is_it in (
        (file.size_bytes, size),
        (file.sha256, sha256.hexdigest()),
        (file.git_sha1, git.hexdigest()),
    ):
        if told is not None and told != is_it:
            return None
    return Digest(sha256=sha256.hexdigest(), size_bytes=size)


def _noted(path: Path, cls: type[RecordT]) -> RecordT | None:
    try:
        return cls.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _note(path: Path, record: Record) -> None:
    """Never half a note, nor one that is older than what it tells of."""
    with failures(DOING):
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(record.model_dump_json().encode())
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
