"""What the registry asks of a place that models come from. Knows no such place and no wire."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

from services.registry.resources import Record
from services.runtime.errors import SOURCE_NOT_FOUND, FailedPrecondition, InvalidRequest, NotFound

MOST_LISTED = 20_000
"""Files that a source looks at below one path, those that are not imported among them."""
MOST_PATH = 512
# As the contract says it of an artifact.
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*(/[A-Za-z0-9_][A-Za-z0-9._+-]*)*")

Progress = Callable[[int], None]


class SourceFile(Record):
    """One file as the source tells of it."""

    path: str
    """Relative to what is imported; a label, and never part of a path on this machine."""
    size_bytes: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None
    """Its id as a git blob, of files that lie in a git repository themselves."""
    tag: str = ""
    """Changes with the content, where the source can tell."""

    @property
    def verifiable(self) -> bool:
        """Whether wrong bytes would be noticed."""
        return bool(self.sha256 or self.git_sha1)


class Listing(Record):
    """What lies at one path of a source, at one moment."""

    path: str
    revision: str = ""
    files: tuple[SourceFile, ...]
    facts: dict[str, str] = {}  # noqa: RUF012  # pydantic copies it


class Source(Protocol):
    """A place that models may be imported from.

    Its errors are the caller's to read: UpstreamUnavailable may pass, any other stays.
    """

    @property
    def kind(self) -> str:
        """As ListSources names it."""

    def check(self, path: str, revision: str) -> None:
        """InvalidRequest for what it can never have; asks nobody."""

    async def list(self, path: str, revision: str) -> Listing:
        """All files; NotFound where there is nothing."""

    async def fetch(
        self, listing: Listing, file: SourceFile, target: Path, progress: Progress
    ) -> None:
        """Bring a file into `target`, which may hold its first bytes; tells how many are there.

        FailedPrecondition where it is no longer the file of the listing.
        """


def is_plain(path: str) -> bool:
    """Whether a path is plain names joined by "/", as that of an artifact is."""
    return len(path) <= MOST_PATH and _PLAIN.fullmatch(path) is not None


def check_plain(path: str) -> None:
    """Refuse a path that is not plain names joined by "/"."""
    if not is_plain(path):
        raise InvalidRequest.field("path", 'must be plain names joined by "/"')


def check_unversioned(revision: str) -> None:
    """Refuse a revision where the source keeps none."""
    if revision:
        raise InvalidRequest.field("revision", "must be empty: this source keeps no revisions")


def missing(what: str) -> NotFound:
    """Nothing is there to import."""
    return NotFound(what, reason=SOURCE_NOT_FOUND)


def changed(file: SourceFile) -> NoReturn:
    """The source has other bytes than it listed."""
    raise FailedPrecondition(f"{file.path} changed while it was imported; import it again")


def too_many() -> NoReturn:
    """The source has more files than are looked at."""
    raise FailedPrecondition(f"there are more than {MOST_LISTED:,} files below this path")
