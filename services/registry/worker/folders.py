"""The folders of a job in hand, and how its progress is told: what both sides of the child know."""

import hashlib
from collections.abc import Callable
from pathlib import Path

Progress = Callable[[float, str], None]
"""Takes how much is done, from 0 to 1, and what is being done."""
MODEL, DATA, OUT, TEMPORARY = "model", "data", "out", "tmp"
"""The version's files, those of a data set, what a conversion makes, and what no one keeps; only
the last two may be written."""
DATA_FILE = "data.jsonl"
"""The one file of a data set."""


def measured(path: Path) -> tuple[str, int]:
    """SHA-256 and length of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()
