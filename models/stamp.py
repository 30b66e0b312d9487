"""The stamp `.build.json` that marks a model folder as finished; knows no recipe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

STAMP = ".build.json"
_Files = dict[str, dict[str, object]]


def write_stamp(folder: Path, fingerprint: str) -> None:
    """Records size and sha256 of every file in the folder; the stamp itself appears in one step."""
    files: _Files = {
        path.name: {"size_bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
        if path.name != STAMP
    }
    partial = folder / (STAMP + ".part")
    partial.write_text(json.dumps({"fingerprint": fingerprint, "files": files}, indent=2) + "\n")
    partial.replace(folder / STAMP)


def is_intact(folder: Path, fingerprint: str, *, verify: bool = False) -> bool:
    """Whether the folder is what this fingerprint built, by size or with `verify` by sha256."""
    stamp = _read(folder / STAMP)
    if stamp is None or stamp.get("fingerprint") != fingerprint:
        return False
    files = stamp.get("files")
    if not isinstance(files, dict) or set(files) != {path.name for path in folder.iterdir()} - {
        STAMP
    }:
        return False
    return all(_matches(folder / name, record, verify) for name, record in files.items())


def _matches(path: Path, record: object, verify: bool) -> bool:
    if (
        not isinstance(record, dict)
        or not path.is_file()
        or path.stat().st_size != record.get("size_bytes")
    ):
        return False
    return not verify or _sha256(path) == record.get("sha256")


def _read(path: Path) -> dict[str, object] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
