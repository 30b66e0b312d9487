"""Where the models of the PyTorch tests lie, and how their steps tell of errors. Knows no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from services.inference.manifest import Manifest

LENGTHS = (9, 3, 17, 1, 30, 4)
SENTENCES = Path("services/work/samples.jsonl")


def sentences() -> list[str]:
    """64 real ones of 3 to 120 words, short and long ones mixed."""
    texts = [json.loads(line)["text"] for line in SENTENCES.read_text("utf-8").splitlines()]
    np.random.default_rng(0).shuffle(texts)
    return texts


class Place:
    """A folder of model folders."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __truediv__(self, name: str) -> Path:
        """The folder of a model."""
        return self._folder / name

    def new(self, name: str) -> Path:
        """An empty folder."""
        made = self._folder / name
        made.mkdir()
        return made

    def manifest(self, name: str) -> Manifest:
        """What a model's folder says."""
        return Manifest.read(self._folder / name)


def raised(work: Callable[[], Any]) -> str:
    """The error that it ends with, or nothing."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
