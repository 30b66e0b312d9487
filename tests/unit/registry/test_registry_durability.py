"""Acknowledged is durable: the order of what reaches the disk, and each step failing in turn."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from services.registry.database import Database, _upgrade
from services.registry.storage.local import LocalBlobs as Blobs
from services.runtime.errors import FailedPrecondition, StorageFailed
from tests.unit.registry.parts import (
    MANIFEST,
    Parts,
    begin,
    below,
    get,
    opened,
    put,
    sha,
    weights,
)

DATA = bytes(range(256)) * 1000
MODEL = weights(DATA)
EVERY = 100_000
STEPS = ("fsync", "rename", "mkdir", "unlink")


class Disk:
    """Records each step that reaches the file system, and may let one of them fail."""

    def __init__(self, patch: pytest.MonkeyPatch, root: Path) -> None:
        self._root = root
        self.steps: list[tuple[str, str, int]] = []
        self.fails_at: int | None = None
        for name in STEPS:
            patch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(target: Any, *more: Any, **named: Any) -> Any:
            path = os.readlink(f"/proc/self/fd/{target}") if name == "fsync" else str(target)
            if self._root not in (Path(path), *Path(path).parents):
                return real(target, *more, **named)
            here = os.path.relpath(path, self._root)
            size = os.stat(path).st_size if name == "fsync" else 0
            self.steps.append((name, here, size))
            if self.fails_at == len(self.steps):
                raise OSError(errno.EIO, "injected", path)
            return real(target, *more, **named)

        return step

    def names(self) -> list[tuple[str, str]]:
        """The steps without sizes."""
        return [(name, path) for name, path, _ in self.steps]


async def test_bytes_reach_the_disk_before_their_name_and_the_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, tmp_path)
    blobs = Blobs(tmp_path / "artifacts", EVERY)
    assert ("fsync", "artifacts") in disk.names()
    assert ("fsync", ".") in disk.names()

    part, shard = f"artifacts/uploads/{sha(DATA)}", f"artifacts/blobs/{sha(DATA)[:2]}"
    upload = await begin(blobs, DATA)
    assert ("fsync", "artifacts/uploads") in disk.names(), "the part's own name"
    for at in range(0, len(DATA), 50_000):
        disk.steps.clear()
        if await upload.write(at, DATA[at : at + 50_000]):
            assert disk.steps == [("fsync", part, upload.durable_bytes)]
            assert upload.durable_bytes == min(at + 50_000, len(DATA))
        else:
            assert disk.steps == []
            assert upload.durable_bytes <= at
    disk.steps.clear()
    await upload.complete()

    assert disk.steps[0] == ("fsync", part, len(DATA))
    order = [
        disk.names().index(step)
        for step in (
            ("mkdir", shard),
            ("fsync", "artifacts/blobs"),
            ("rename", part),
            ("fsync", shard),
        )
    ]
    assert order == sorted(order)
    assert order[-1] == len(disk.steps) - 1, "nothing is left to do when it answers"


async def test_a_shard_that_another_upload_left_behind_is_made_durable_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder may be there because a process made it and died before it was durable."""
    blobs = Blobs(tmp_path / "artifacts", EVERY)
    (tmp_path / "artifacts" / "blobs" / sha(DATA)[:2]).mkdir()
    disk = Disk(monkeypatch, tmp_path)
    await put(blobs, DATA)
    names = disk.names()
    assert ("fsync", "artifacts/blobs") in names[: names.index(_renamed(names))]


def _renamed(names: list[tuple[str, str]]) -> tuple[str, str]:
    return next(step for step in names if step[0] == "rename")


async def test_each_step_failing_in_turn_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = 0
    for nth in range(1, 100):
        root = tmp_path / str(nth)
        root.mkdir()
        with monkeypatch.context() as patch:
            blobs = Blobs(root / "artifacts", EVERY)
            disk = Disk(patch, root)
            disk.fails_at = nth
            acknowledged: list[int] = []
            try:
                await _sent(blobs, acknowledged)
                whole = True
            except StorageFailed as error:
                assert isinstance(error.__cause__, OSError)
                assert error.__cause__.errno == errno.EIO
                whole = False
                failed += 1
        if whole:
            assert len(disk.steps) < nth
            break
        restarted = Blobs(root / "artifacts", EVERY)
        if await restarted.has(sha(DATA), len(DATA)):
            assert await get(restarted, DATA) == DATA
        else:
            again = await begin(restarted, DATA)
            assert again.durable_bytes >= max(acknowledged, default=0)
            await again.close()
        await put(restarted, DATA)
        assert await get(restarted, DATA) == DATA
        assert len(list(below(root / "artifacts" / "blobs"))) == 1
    assert whole
    assert failed >= 6


async def _sent(blobs: Blobs, acknowledged: list[int]) -> None:
    upload = await begin(blobs, DATA)
    try:
        for at in range(0, len(DATA), 50_000):
            await upload.write(at, DATA[at : at + 50_000])
            acknowledged.append(upload.durable_bytes)
        await upload.complete()
    finally:
        await upload.close()


async def test_bytes_whose_fsync_failed_are_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the kernel may forget dirty pages: asking again proves nothing."""
    blobs = Blobs(tmp_path / "artifacts", EVERY)
    upload = await begin(blobs, DATA)
    assert await upload.write(0, DATA[:EVERY])
    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path)
        disk.fails_at = 1
        with pytest.raises(StorageFailed):
            await upload.write(EVERY, DATA[EVERY : 2 * EVERY])
    await upload.close()
    again = await begin(blobs, DATA)
    assert again.durable_bytes == EVERY
    await again.close()


async def test_the_database_is_synchronous(tmp_path: Path) -> None:
    async with opened(tmp_path / "registry") as parts, parts.database.write() as connection:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)):
            assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar() == value


async def test_a_migration_that_was_cut_short_is_done_again(tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    database = Database(tmp_path / "registry.db")
    with pytest.raises(Cut):
        async with database.write() as connection:
            await connection.run_sync(_upgrade)
            raise Cut
    await database.migrate()
    await database.migrate()
    await database.close()


async def test_a_version_is_ready_only_once_its_bytes_have_their_name(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row never points at a missing blob: the rename comes before the commit, or fails it."""
    await parts.model()
    version = await parts.version({"model.yaml": MANIFEST, "model.onnx": MODEL})
    await parts.put(MANIFEST)
    with monkeypatch.context() as patch:
        disk = Disk(patch, parts.root)
        disk.fails_at = 4  # uploads, part, part again, blobs folder: before the rename
        with pytest.raises(StorageFailed):
            await put(parts.blobs, MODEL)
        assert "rename" not in [name for name, _, _ in disk.steps[:-1]]
    with pytest.raises(FailedPrecondition, match=r"not uploaded yet: model\.onnx"):
        await parts.finalize(version.name)
    assert (await parts.store.version("m", 1)).state == "uploading"
