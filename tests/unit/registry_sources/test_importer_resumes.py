"""An import that is cut short: by the end of its process, by its caller, by another replica."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.registry.config import RegistryConfig
from services.registry.importer import Importer
from services.registry.sources import staging
from services.registry.sources.staging import Staged
from services.registry.store import Author
from services.runtime.errors import NotFound
from tests.unit.registry_sources.hub import Hold, Hub
from tests.unit.registry_sources.imports import Imports, opened, running

LARGE = "model.safetensors"
AFTER = 700_000


@pytest.fixture
def hold(hub: Hub) -> Hold:
    """The hub stops within the large file, after the small one was fetched."""
    hub.holds[LARGE] = Hold(AFTER)
    return hub.holds[LARGE]


async def reached(hold: Hold) -> None:
    """The hub has sent all that it sends before it stops."""
    assert await asyncio.to_thread(hold.reached.wait, 30)


async def here(imports: Imports, name: str) -> None:
    """Some of the large file is on disk."""
    path = imports.staging / name.removeprefix("operations/") / "1"
    async with asyncio.timeout(30):
        while not path.exists() or path.stat().st_size < 500_000:
            await asyncio.sleep(0.01)


@asynccontextmanager
async def working(importer: Importer) -> AsyncIterator["asyncio.Task[bool]"]:
    """One attempt, beside the test."""
    task = asyncio.create_task(importer.once())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def once_each(hub: Hub) -> None:
    """No file that was complete was fetched twice, and no byte that was here."""
    assert [seen.path for seen in hub.seen].count("config.json") == 1
    first, second = (seen for seen in hub.seen if seen.path == LARGE)
    assert first.start == 0
    assert 0 < second.start <= AFTER
    assert second.start + second.sent == len(hub.files[LARGE])


async def test_a_registry_that_begins_anew_goes_on(
    hub: Hub, hold: Hold, settings: RegistryConfig, template: Path
) -> None:
    async with running(settings, template) as before:
        name = await before.begin()
        await reached(hold)
        await here(before, name)
    hub.holds.clear()
    hold.go_on.set()
    async with running(settings) as after:
        assert (await after.done(name)).failure is None
        assert len((await after.version()).artifacts) == 2
        assert after.staged == []
    once_each(hub)


async def test_a_registry_that_was_killed_goes_on(
    hub: Hub, hold: Hold, settings: RegistryConfig, template: Path, tmp_path: Path
) -> None:
    """What lies on disk in the middle is all that the next one has: nothing was said or closed."""
    async with running(settings, template) as before:
        name = await before.begin()
        await reached(hold)
        await here(before, name)
        shutil.copytree(settings.data_dir, tmp_path / "copy")
    hub.holds.clear()
    hold.go_on.set()
    async with running(settings.model_copy(update={"data_dir": tmp_path / "copy"})) as after:
        ended = await after.done(name)
        assert ended.failure is None
        assert ended.attempts == 2
        with pytest.raises(NotFound):
            await after.version(2)
    once_each(hub)


@pytest.mark.parametrize("step", ["has", "adopt"])
async def test_a_repetition_after_the_version_was_made_makes_no_other(
    imports: Imports, monkeypatch: pytest.MonkeyPatch, hub: Hub, step: str
) -> None:
    """As if the process had ended at each of the last steps."""
    name, importer = await imports.begin(), imports.importer()
    stopped, real = asyncio.Event(), getattr(importer.blobs, step)

    async def stop(*args: object) -> None:
        if step == "adopt":
            await real(*args)
        stopped.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(importer.blobs, step, stop)
        async with working(importer):
            async with asyncio.timeout(30):
                await stopped.wait()
    seen = len(hub.seen)
    record = await imports.tried(name)
    assert record.failure is None
    assert record.result == {"version": "models/m/versions/1"}
    assert record.attempts == 1
    assert len(hub.seen) == seen
    with pytest.raises(NotFound):
        await imports.version(2)


async def test_wrong_first_bytes_are_fetched_again_once(imports: Imports, hub: Hub) -> None:
    name = await imports.begin()
    staged = Staged(imports.staging, name.removeprefix("operations/"))
    staged.open()
    staged.path(1).write_bytes(b"\0" * 1000)
    assert (await imports.tried(name)).failure is None
    assert [seen.start for seen in hub.seen if seen.path == LARGE] == [1000, 0]


async def test_what_is_left_of_ended_imports_is_removed(imports: Imports) -> None:
    waiting, ended = await imports.begin(), await imports.begin()
    await imports.registry.lifecycle.cancel(ended)
    for name in (waiting, ended, "operations/import.00000000"):
        Staged(imports.staging, name.removeprefix("operations/")).open()
    (imports.staging / "kept").mkdir()
    await imports.importer().sweep()
    assert imports.staged == [waiting.removeprefix("operations/"), "kept"]


async def test_a_cancelled_import_leaves_nothing(
    hub: Hub, hold: Hold, settings: RegistryConfig, template: Path
) -> None:
    quick = settings.model_copy(update={"lease_s": 0.4})
    async with opened(quick, template) as made:
        name = await made.begin()
        async with working(made.importer()) as task:
            await reached(hold)
            await here(made, name)
            assert made.staged != []
            await made.registry.lifecycle.cancel(name)
            assert await asyncio.wait_for(task, 30)
        ended = await made.registry.jobs.get(name)
        assert ended.state == "done"
        assert ended.failure is not None
        assert ended.failure.status == "CANCELLED"
        assert made.staged == []
        with pytest.raises(NotFound):
            await made.version()


async def test_an_import_that_is_cancelled_while_it_publishes_leaves_no_version(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, importer = await imports.begin(), imports.importer()
    real = importer.blobs.adopt

    async def adopt(path: Path, digest: str, size_bytes: int) -> None:
        await real(path, digest, size_bytes)
        await imports.registry.jobs.cancel(name)

    monkeypatch.setattr(importer.blobs, "adopt", adopt)
    record = await imports.tried(name)
    assert record.failure is not None
    assert record.failure.status == "CANCELLED"
    assert imports.staged == []
    with pytest.raises(NotFound):
        await imports.version()


async def test_a_version_that_somebody_touched_meanwhile_stays(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, importer = await imports.begin(), imports.importer()
    real = importer.blobs.adopt

    async def adopt(path: Path, digest: str, size_bytes: int) -> None:
        await real(path, digest, size_bytes)
        await imports.registry.models.update_version(
            Author("ben", ""), "models/m/versions/1", "", {"state": "ready"}, dry=False
        )

    monkeypatch.setattr(importer.blobs, "adopt", adopt)
    record = await imports.tried(name)
    assert record.failure is not None
    assert "finalized by somebody else" in record.failure.message
    assert (await imports.version()).state == "ready"


async def test_an_import_whose_lease_is_lost_changes_nothing(
    hub: Hub, hold: Hold, settings: RegistryConfig, template: Path
) -> None:
    """Another replica has it: what came stays for whoever is next."""
    quick = settings.model_copy(update={"lease_s": 0.4})
    async with opened(quick, template) as made:
        name = await made.begin()
        async with working(made.importer()) as task:
            await reached(hold)
            await here(made, name)
            await made.registry.jobs.release_all()
            other = await made.registry.jobs.lease("other", ("import",), 0)
            assert other is not None
            assert await asyncio.wait_for(task, 30)
        record = await made.registry.jobs.get(name)
        assert record.lease == other.lease
        assert record.state == "running"
        assert made.staged != []


async def test_an_import_over_which_processes_are_lost_is_given_up(imports: Imports) -> None:
    name = await imports.begin()
    for _ in range(3):
        assert await imports.registry.jobs.lease("lost", ("import",), 0)
        await imports.registry.jobs.release_all()
    failure = (await imports.tried(name)).failure
    assert failure is not None
    assert "workers were lost" in failure.message


async def test_progress_is_told_while_bytes_come(
    hub: Hub, hold: Hold, settings: RegistryConfig, template: Path
) -> None:
    quick = settings.model_copy(update={"lease_s": 0.4})
    async with opened(quick, template) as made:
        name = await made.begin()
        async with working(made.importer()) as task:
            await reached(hold)
            async with asyncio.timeout(30):
                while not 0.1 < (record := await made.registry.jobs.get(name)).progress < 0.85:
                    await asyncio.sleep(0.02)
            assert record.message == "fetching file 2 of 2"
            hold.go_on.set()
            assert await asyncio.wait_for(task, 30)
        assert (await made.registry.jobs.get(name)).failure is None


async def test_hashing_ends_when_nobody_waits(tmp_path: Path) -> None:
    staged = Staged(tmp_path, "import.0123456789abcdef")
    staged.open()
    staged.path(0).write_bytes(b"x")
    staged.stop()
    with pytest.raises(staging.Stopped):
        staged.finish(0, staging.SourceFile(path="a", size_bytes=1))


async def test_half_a_note_is_no_note(tmp_path: Path) -> None:
    staged = Staged(tmp_path, "import.0123456789abcdef")
    assert staged.open() is None
    staged.path(0).write_bytes(b"x")
    digest = staged.finish(0, staging.SourceFile(path="a"))
    note = staged.path(0).with_name("0.digest")
    assert staged.digest(0) == digest
    note.write_bytes(note.read_bytes()[:-5])
    assert staged.digest(0) is None


def test_bytes_that_cannot_be_checked_are_not_trusted_after_a_loss_of_power(tmp_path: Path) -> None:
    staged = Staged(tmp_path, "import.0123456789abcdef")
    staged.open()
    sure = staging.SourceFile(path="a", size_bytes=50 << 20, sha256="0" * 64)
    unsure = staging.SourceFile(path="a", size_bytes=50 << 20)
    with staged.path(0).open("wb") as file:
        file.truncate(40 << 20)
    assert staged.begin(0, sure)
    assert staged.path(0).stat().st_size == 40 << 20
    assert staged.begin(0, unsure)
    assert staged.path(0).stat().st_size == 20 << 20
    assert not staged.begin(1, unsure)


@pytest.mark.parametrize("key", ["../x", "import.", "import.xyz", "import.00000000/..", "a"])
def test_only_a_key_of_ours_is_part_of_a_path(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="no import"):
        Staged(tmp_path, key)
