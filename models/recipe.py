"""What a recipe is: pinned ingredients and a way to assemble them; knows no particular model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from models.sources import Source, SourceFile

Manifest = dict[str, object]
"""The content of model.yaml, schema gristmill.dev/model/v1, in the order it is written."""

SCHEMA = "gristmill.dev/model/v1"


@dataclass(frozen=True)
class Ingredient:
    """A pinned file and where it is fetched from unless the user names another source."""

    file: SourceFile
    source: Source


@dataclass(frozen=True)
class Recipe:
    """`assemble(inputs, folder)` makes served files in `folder` from fetched ones in `inputs`."""

    name: str
    summary: str
    home: Path
    ingredients: tuple[Ingredient, ...]
    assemble: Callable[[Path, Path], Manifest]

    def fingerprint(self) -> str:
        """Changes whenever the recipe's code, its committed coefficients or a pin does."""
        digest = hashlib.sha256(
            json.dumps([(i.file.path, i.file.sha256) for i in self.ingredients]).encode()
        )
        for path in sorted(self.home.glob("*.*")):
            if path.suffix in (".py", ".json"):
                digest.update(path.name.encode() + b"\0" + path.read_bytes())
        return digest.hexdigest()
