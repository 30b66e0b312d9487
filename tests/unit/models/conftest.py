"""What the tests of the recipes share: a reporter that writes to memory, and pinned files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from models.progress import ConsoleReporter
from models.sources import SourceFile

Pin = Callable[[str, bytes], SourceFile]


@pytest.fixture
def reporter() -> ConsoleReporter:
    return ConsoleReporter(Console(file=StringIO()))


@pytest.fixture
def pin() -> Pin:
    """Pins a path to a content."""

    def pinned(path: str, content: bytes) -> SourceFile:
        return SourceFile(path, hashlib.sha256(content).hexdigest(), len(content))

    return pinned
