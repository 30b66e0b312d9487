"""Storage whose steps are recorded, and of which one can be made to fail."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError

STEPS = ("fsync", "rename", "mkdir", "unlink", "write", "truncate")
CALLS = ("put", "get", "head", "list", "delete")


class Disk:
    """Each step that reaches the file system below a folder."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self._root = root
        self.steps: list[tuple[str, str, int]] = []
        self.fails_at: int | None = None
        self.errno = errno.EIO
        for name in STEPS:
            patch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(target: Any, *more: Any, **named: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if type(target) is int else str(target)
            if self._root not in (Path(path), *Path(path).parents):
                return real(target, *more, **named)
            size = os.stat(path).st_size if name == "fsync" else 0
            self.steps.append((name, os.path.relpath(path, self._root), size))
            if self.fails_at == len(self.steps):
                raise OSError(self.errno, "injected", path)
            return real(target, *more, **named)

        return step

    def names(self) -> list[tuple[str, str]]:
        """The steps without sizes, and without the bytes that are only on their way."""
        return [(name, path) for name, path, _ in self.steps if name != "write"]


class Wire:
    """Each request to an object store."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.fails_at: int | None = None
        for name in CALLS:
            patch.setattr(obstore, name, self._recorded(name, getattr(obstore, name)))

    def _recorded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*given: Any, **named: Any) -> Any:
            self.steps.append(name)
            if self.fails_at == len(self.steps):
                raise GenericError("injected: http://10.0.0.1/bucket/secret-key")
            return real(*given, **named)

        return step
