"""Turns a recipe into a finished model folder or changes nothing; knows no particular model."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from models.progress import Reporter
from models.recipe import Ingredient, Manifest, Recipe
from models.sources import Source
from models.stamp import is_intact, write_stamp

MANIFEST = "model.yaml"


@dataclass(frozen=True)
class BuildOptions:
    """`source` replaces every ingredient's own: the pinned digests make all sources equals."""

    verify: bool = False
    force: bool = False
    source: Source | None = None


def build(recipe: Recipe, cache: Path, options: BuildOptions, reporter: Reporter) -> bool:
    """Makes `cache/<name>` right; says whether anything had to be done."""
    cache.mkdir(parents=True, exist_ok=True)
    target = cache / recipe.name
    fingerprint = recipe.fingerprint()
    with _exclusive(cache / f".{recipe.name}.lock"):
        if not options.force and is_intact(target, fingerprint, verify=options.verify):
            return False
        with _workshop(cache / f".{recipe.name}.partial") as work:
            inputs, folder = work / "inputs", work / "model"
            fetch_all(recipe.ingredients, inputs, options.source, reporter)
            folder.mkdir()
            with reporter.working(f"{recipe.name}: assembling"):
                write_manifest(recipe.assemble(inputs, folder), folder)
                write_stamp(folder, fingerprint)
            _swap(folder, target, work / "replaced")
    return True


def fetch_all(
    ingredients: tuple[Ingredient, ...], inputs: Path, source: Source | None, reporter: Reporter
) -> None:
    """Fetches every ingredient into the new folder `inputs` under its plain name."""
    inputs.mkdir(parents=True)
    for ingredient in ingredients:
        chosen = source or ingredient.source
        with reporter.fetching(ingredient.file.name, chosen.lineage) as progress:
            chosen.fetch(ingredient.file, inputs / ingredient.file.name, progress)


def write_manifest(manifest: Manifest, folder: Path) -> None:
    text = yaml.safe_dump(manifest, sort_keys=False, allow_unicode=True, width=110)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _swap(folder: Path, target: Path, replaced: Path) -> None:
    # A folder cannot be renamed over one that has files, so the old one steps aside first.
    if target.exists():
        target.rename(replaced)
    folder.rename(target)


@contextmanager
def _workshop(work: Path) -> Iterator[Path]:
    """An empty sibling folder, gone afterwards."""
    # A leftover is a killed build's: the lock is ours, so nobody is at work in it.
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Two builds of one model take turns; the second finds the work done."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
