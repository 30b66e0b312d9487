"""A version's files by their relative paths, opened without following links. Knows no format."""

import os
import stat
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from services.registry.checks.findings import RefusedError, rejection
from services.registry.resources import RejectionRecord

RULE = "path"
MAX_FILES = 10_000
MAX_PATH_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Files:
    """The files that may be read: their paths are lexically plain, and they are regular files."""

    folder: Path
    paths: dict[str, None]
    """In the order in which they are listed."""

    def size(self, path: str) -> int:
        """Its length in bytes."""
        return os.lstat(self.folder / path).st_size

    def open(self, path: str) -> BinaryIO:
        """The file; never what a link points to."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.fdopen(os.open(self.folder / path, flags), "rb")

    def read(self, path: str, most: int, rule: str) -> bytes:
        """All of it, where it is no longer than `most` bytes."""
        if self.size(path) > most:
            raise RefusedError(rule, f"is larger than {most / 2**20:g} MiB")
        with self.open(path) as stream:
            return stream.read(most)

    def beside(self, path: str, name: str) -> str | None:
        """The path of the file of this plain name in the same folder, where there is one."""
        head, slash, _ = path.rpartition("/")
        found = f"{head}{slash}{name}"
        return found if found in self.paths else None


def admitted(folder: Path, paths: Sequence[str]) -> tuple[Files, list[RejectionRecord]]:
    """The files whose names are in order, and why the others are not."""
    found: list[RejectionRecord] = []
    good: dict[str, None] = {}
    if len(paths) > MAX_FILES:
        found.append(rejection("", RULE, f"there are more than {MAX_FILES} files"))
        paths = ()
    for path in paths:
        said = _fault(folder, path, good)
        if said is None:
            good[path] = None
        else:
            found.append(rejection(path, RULE, said))
    if len(paths) <= MAX_FILES:
        found += _strangers(folder, set(paths))
    return Files(folder, good), found


def plain(name: str) -> bool:
    """Whether this names a file in the same folder and nothing else."""
    return name not in ("", ".", "..") and name.isprintable() and not set(name) & set("/\\")


def _fault(folder: Path, path: str, before: Container[str]) -> str | None:
    parts = path.split("/")
    if len(path) > MAX_PATH_CHARACTERS:
        return f"has more than {MAX_PATH_CHARACTERS} characters"
    if not all(plain(part) for part in parts):
        return "must be a relative path of plain names: no '..', no control characters"
    if path in before:
        return "is listed twice"
    return _unlike_a_file(folder, parts)


def _unlike_a_file(folder: Path, parts: list[str]) -> str | None:
    here = folder
    try:
        for part in parts[:-1]:
            here /= part
            if not stat.S_ISDIR(os.lstat(here).st_mode):
                return "lies in something that is no folder"
        mode = os.lstat(here / parts[-1]).st_mode
    except OSError:
        return "is listed, but there is no such file"
    return None if stat.S_ISREG(mode) else "must be a regular file, no link and no device"


def _strangers(folder: Path, listed: set[str]) -> Iterator[RejectionRecord]:
    """What lies in the folder and was not listed: loaders read what they find."""
    pending, seen = [""], 0
    while pending:
        within = pending.pop()
        for entry in sorted(os.scandir(folder / within), key=lambda e: e.name):
            seen += 1
            if seen > 2 * MAX_FILES:
                yield rejection("", RULE, "the folder holds too many files")
                return
            path = within + entry.name
            if entry.is_dir(follow_symlinks=False):
                pending.append(f"{path}/")
            elif path not in listed:
                yield rejection(path, RULE, "lies in the folder but is not an artifact")
