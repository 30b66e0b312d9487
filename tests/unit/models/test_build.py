"""A build appears whole or not at all, and what is intact is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from models.build import BuildOptions, build
from models.progress import Reporter
from models.recipe import Ingredient, Manifest, Recipe
from models.sources import ChecksumError, FolderSource, SourceFile

CONTENT = b"weights"
Pin = Callable[[str, bytes], SourceFile]


@dataclass
class Kitchen:
    """A recipe of one file that counts how often it was assembled and can be made to fail."""

    home: Path
    pinned: SourceFile
    assembled: int = 0
    failure: BaseException | None = None

    def recipe(self) -> Recipe:
        ingredient = Ingredient(self.pinned, FolderSource(self.home))
        return Recipe("toy", "a toy", self.home, (ingredient,), self.assemble)

    def assemble(self, inputs: Path, folder: Path) -> Manifest:
        self.assembled += 1
        (folder / "model.bin").write_bytes((inputs / "weights.bin").read_bytes())
        if self.failure is not None:
            raise self.failure
        return {"name": "toy", "notes": "ümlaut"}


@pytest.fixture
def kitchen(tmp_path: Path, pin: Pin) -> Kitchen:
    home = tmp_path / "home"
    home.mkdir()
    (home / "recipe.py").write_text("first")
    (home / "weights.bin").write_bytes(CONTENT)
    return Kitchen(home, pin("weights.bin", CONTENT))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def visible(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.iterdir() if not p.name.endswith(".lock"))


def test_a_build_makes_the_folder_and_a_second_does_nothing(
    kitchen: Kitchen, cache: Path, reporter: Reporter
) -> None:
    assert build(kitchen.recipe(), cache, BuildOptions(), reporter)
    assert not build(kitchen.recipe(), cache, BuildOptions(verify=True), reporter)
    assert kitchen.assembled == 1
    assert (cache / "toy" / "model.bin").read_bytes() == CONTENT
    manifest = yaml.safe_load((cache / "toy" / "model.yaml").read_text(encoding="utf-8"))
    assert manifest == {"name": "toy", "notes": "ümlaut"}
    assert visible(cache) == ["toy"]


@pytest.mark.parametrize("failure", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_interrupted_first_build_leaves_nothing(
    kitchen: Kitchen, cache: Path, reporter: Reporter, failure: BaseException
) -> None:
    kitchen.failure = failure
    with pytest.raises(type(failure)):
        build(kitchen.recipe(), cache, BuildOptions(), reporter)
    assert visible(cache) == []


def test_an_interrupted_rebuild_leaves_the_old_folder(
    kitchen: Kitchen, cache: Path, reporter: Reporter
) -> None:
    build(kitchen.recipe(), cache, BuildOptions(), reporter)
    kitchen.failure = RuntimeError("no")
    with pytest.raises(RuntimeError):
        build(kitchen.recipe(), cache, BuildOptions(force=True), reporter)
    kitchen.failure = None
    assert not build(kitchen.recipe(), cache, BuildOptions(verify=True), reporter)


def test_what_a_killed_build_left_is_cleared(
    kitchen: Kitchen, cache: Path, reporter: Reporter
) -> None:
    (cache / ".toy.partial" / "model").mkdir(parents=True)
    (cache / "toy").mkdir()
    (cache / "toy" / "half").touch()
    assert build(kitchen.recipe(), cache, BuildOptions(), reporter)
    assert visible(cache) == ["toy"]
    assert not (cache / "toy" / "half").exists()


def test_a_changed_recipe_is_built_again(kitchen: Kitchen, cache: Path, reporter: Reporter) -> None:
    build(kitchen.recipe(), cache, BuildOptions(), reporter)
    (kitchen.home / "recipe.py").write_text("second")
    assert build(kitchen.recipe(), cache, BuildOptions(), reporter)


def test_verify_finds_a_changed_byte(kitchen: Kitchen, cache: Path, reporter: Reporter) -> None:
    build(kitchen.recipe(), cache, BuildOptions(), reporter)
    (cache / "toy" / "model.bin").write_bytes(b"WEIGHTS")
    assert not build(kitchen.recipe(), cache, BuildOptions(), reporter)
    assert build(kitchen.recipe(), cache, BuildOptions(verify=True), reporter)


def test_another_source_must_deliver_the_same_bytes(
    kitchen: Kitchen, cache: Path, tmp_path: Path, reporter: Reporter
) -> None:
    (tmp_path / "weights.bin").write_bytes(b"WEIGHTS")
    options = BuildOptions(source=FolderSource(tmp_path))
    with pytest.raises(ChecksumError):
        build(kitchen.recipe(), cache, options, reporter)
    (tmp_path / "weights.bin").write_bytes(CONTENT)
    assert build(kitchen.recipe(), cache, options, reporter)


def test_two_builds_at_once_do_the_work_once(
    kitchen: Kitchen, cache: Path, reporter: Reporter
) -> None:
    outcomes: list[bool] = []
    recipe = kitchen.recipe()
    held = replace(recipe, assemble=lambda inputs, folder: _slowly(recipe, inputs, folder))
    threads = [
        threading.Thread(
            target=lambda: outcomes.append(build(held, cache, BuildOptions(), reporter))
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert sorted(outcomes) == [False, True]
    assert kitchen.assembled == 1


def _slowly(recipe: Recipe, inputs: Path, folder: Path) -> Manifest:
    threading.Event().wait(0.1)
    return recipe.assemble(inputs, folder)
