"""Sources of pinned files, and the check each file must pass; knows nothing of what they mean."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

OnProgress = Callable[[int, int], None]
"""Called with the bytes done so far and the bytes in all."""

CHUNK_BYTES = 1 << 20


class SourceError(Exception):
    """A file could not be had; the text says what to do about it."""


class ChecksumError(SourceError):
    """What arrived is not what the recipe pins."""


class UnsafeNameError(SourceError):
    """A file name that would leave the folder it belongs in."""


@dataclass(frozen=True)
class SourceFile:
    """One file inside a source: its path there, and the digest and size it must have."""

    path: str
    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        check_relative(self.path)

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


class Source(Protocol):
    """Puts a pinned file at `destination`, or raises a SourceError and leaves nothing there."""

    @property
    def lineage(self) -> str: ...

    def fetch(self, file: SourceFile, destination: Path, progress: OnProgress) -> None: ...


def check_relative(path: str) -> None:
    parts = path.split("/")
    if "\\" in path or "\0" in path or any(part in ("", ".", "..") for part in parts):
        raise UnsafeNameError(f"{path!r} is not a plain relative path")


def copy_verified(
    stream: IO[bytes], file: SourceFile, destination: Path, progress: OnProgress
) -> None:
    """Copies to `destination`, which appears only if size and sha256 are the pinned ones."""
    partial = destination.with_name(destination.name + ".part")
    digest, done = hashlib.sha256(), 0
    try:
        with partial.open("wb") as out:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                if done > file.size_bytes:
                    break
                out.write(chunk)
                progress(done, file.size_bytes)
        if done != file.size_bytes or digest.hexdigest() != file.sha256:
            raise ChecksumError(
                f"{file.path}: not the pinned {file.size_bytes} bytes with sha256 {file.sha256}"
            )
        partial.replace(destination)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class FolderSource:
    """A local folder that holds the files under their plain names, for machines with no network."""

    folder: Path

    @property
    def lineage(self) -> str:
        return f"folder:{self.folder}"

    def fetch(self, file: SourceFile, destination: Path, progress: OnProgress) -> None:
        try:
            with (self.folder / file.name).open("rb") as stream:
                copy_verified(stream, file, destination, progress)
        except OSError as error:
            raise SourceError(f"{file.name}: {error}") from error


class HubClient(Protocol):
    """The one method used of `huggingface_hub.HfApi`."""

    def hf_hub_download(
        self, repo_id: str, filename: str, *, revision: str | None = None
    ) -> str: ...


@dataclass(frozen=True)
class HubSource:
    """A Hugging Face repository at one commit, because a branch name is not a pin."""

    repository: str
    commit: str
    client: HubClient | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise SourceError(
                f"{self.repository}: {self.commit!r} is not a full commit id (40 hex digits)"
            )

    @property
    def lineage(self) -> str:
        return f"hub:{self.repository}@{self.commit}"

    def fetch(self, file: SourceFile, destination: Path, progress: OnProgress) -> None:
        client = self.client or _hub_client()
        try:
            local = client.hf_hub_download(self.repository, file.path, revision=self.commit)
            with Path(local).open("rb") as stream:
                copy_verified(stream, file, destination, progress)
        except (OSError, ValueError) as error:
            raise SourceError(f"{self.lineage}: {file.path}: {error}") from error


def _hub_client() -> HubClient:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise SourceError("a hub source needs the package huggingface_hub") from error
    client: HubClient = HfApi()
    return client


def parse_source(spec: str) -> Source:
    """Reads `hub:owner/name@commit`, or else a folder."""
    if not spec.startswith("hub:"):
        return FolderSource(Path(spec))
    repository, _, commit = spec.removeprefix("hub:").partition("@")
    return HubSource(repository, commit)
