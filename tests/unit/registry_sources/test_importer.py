"""An import from its operation to a version that is checked."""

import asyncio
import os
from pathlib import Path

import pytest

from services.registry import importer as module
from services.registry.config import RegistryConfig
from services.registry.resources import model_id
from services.registry.store import Author
from services.runtime.errors import AlreadyExists, NotFound
from tests.unit.registry_sources.hub import COMMIT, REPOSITORY, Hub
from tests.unit.registry_sources.imports import Imports, config, opened, running

CACHE = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
IRIS = CACHE / "models" / "iris"


async def test_a_folder_becomes_a_ready_version(tmp_path: Path, template: Path) -> None:
    """With the registry as it is served: import, check and all."""
    assert (IRIS / "model.yaml").is_file(), f"{IRIS} is not there: run `make models` first"
    settings = config(tmp_path, {"disk": {"kind": "folder", "path": str(IRIS.parent)}})
    async with running(settings, template) as made:
        ended = await made.done(await made.begin("disk", "iris", ""))
        assert ended.failure is None
        assert ended.progress == 1.0
        version = await made.version()
        assert version.state == "ready", version.rejections
        assert {a.path for a in version.artifacts} == {"model.onnx", "model.yaml"}
        assert version.lineage is not None
        assert version.lineage.source == "disk:iris"
        assert version.creator == "ann"
        assert ended.result is not None
        assert ended.result["version"]["version"] == 1
        for artifact in version.artifacts:
            runs = made.registry.blobs.read(artifact.sha256, artifact.size_bytes, 0, 0)
            data = b"".join([data async for _, data in runs])
            assert data == (IRIS / artifact.path).read_bytes()
        assert made.staged == []


async def test_a_commit_of_a_hub_becomes_a_version(imports: Imports, hub: Hub) -> None:
    name = await imports.begin()
    record = await imports.tried(name)
    assert record.failure is None
    assert record.result == {"version": "models/m/versions/1"}
    version = await imports.version()
    assert version.state == "validating"
    assert [a.path for a in version.artifacts] == ["config.json", "model.safetensors"]
    assert version.lineage is not None
    assert version.lineage.source == f"hub:{REPOSITORY}"
    assert version.lineage.revision == COMMIT
    assert version.lineage.facts == {"endpoint": hub.endpoint, "left_out": "README.md"}
    assert imports.staged == []


async def test_an_import_ends_with_its_check(imports: Imports) -> None:
    """What the hub serves here is no model: the version says why, the operation is done."""
    name = await imports.begin()
    await imports.tried(name)
    assert await imports.registry.runner().once()
    ended = await imports.registry.jobs.get(name)
    assert ended.state == "done"
    assert (await imports.version()).state == "rejected"


async def test_bytes_that_are_here_are_not_stored_again(imports: Imports) -> None:
    for number in (1, 2):
        await imports.tried(await imports.begin())
        assert (await imports.version(number)).state == "validating"


async def test_two_files_of_the_same_bytes(imports: Imports, hub: Hub) -> None:
    hub.files["copy.json"] = hub.files["config.json"]
    await imports.tried(await imports.begin())
    assert len((await imports.version()).artifacts) == 3


async def test_a_source_that_fails_is_asked_again(imports: Imports, hub: Hub) -> None:
    hub.status = [503, 500]
    hub.cuts["model.safetensors"] = [200_000, 300_000, 100_000, 50_000, 1_000, 1_000]
    assert (await imports.tried(await imports.begin())).failure is None
    assert hub.sent("model.safetensors") == len(hub.files["model.safetensors"])


async def test_a_source_that_keeps_failing_is_given_up(imports: Imports, hub: Hub) -> None:
    hub.cuts["model.safetensors"] = [200_000, *[0] * 20]
    failure = (await imports.tried(await imports.begin())).failure
    assert failure is not None
    assert (failure.status, failure.reason) == ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")
    assert len(hub.seen) == 1 + 1 + 3
    assert imports.staged == []


async def test_the_pauses_grow(imports: Imports, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status, slept = [503] * 4, []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr("services.registry.sources.fetching.asyncio.sleep", sleep)
    importer = imports.importer(backoff_s=(1.0, 2.0, 3.0), jobs=imports.registry.jobs)
    monkeypatch.setattr(type(importer), "_keep", lambda *_: real(3600))
    await imports.begin()
    assert await importer.once()
    assert slept == [1.0, 2.0, 3.0]


async def test_wrong_bytes_are_refused(imports: Imports, hub: Hub) -> None:
    for path in ("model.safetensors", "config.json"):
        hub.served = {path: hub.files[path][::-1]}
        failure = (await imports.tried(await imports.begin())).failure
        assert failure is not None
        assert failure.status == "DATA_LOSS"
        assert path in failure.message
        assert imports.staged == []
    with pytest.raises(NotFound):
        await imports.version()


@pytest.mark.parametrize(
    ("source", "path", "revision", "status", "reason"),
    [
        ("hub", "acme/other", COMMIT, "NOT_FOUND", "SOURCE_NOT_FOUND"),
        ("hub", REPOSITORY, "f" * 40, "NOT_FOUND", "SOURCE_NOT_FOUND"),
        ("gone", "a", "", "NOT_FOUND", "SOURCE_NOT_FOUND"),
        ("hub", REPOSITORY, "main", "INVALID_ARGUMENT", "INVALID_FIELD"),
    ],
)
async def test_what_cannot_be_imported_says_why(
    imports: Imports, source: str, path: str, revision: str, status: str, reason: str
) -> None:
    failure = (await imports.tried(await imports.begin(source, path, revision))).failure
    assert failure is not None
    assert (failure.status, failure.reason) == (status, reason)
    assert str(imports.staging) not in failure.message


async def test_a_file_that_no_version_may_have_is_named(imports: Imports, hub: Hub) -> None:
    hub.files["a b.json"] = b"{}"
    failure = (await imports.tried(await imports.begin())).failure
    assert failure is not None
    assert failure.status == "FAILED_PRECONDITION"
    assert "'a b.json'" in failure.message
    assert hub.seen == []


async def test_a_model_that_is_too_large_is_not_begun(
    hub: Hub, settings: RegistryConfig, template: Path
) -> None:
    limited = settings.model_copy(update={"import_max_bytes": 1000})
    async with opened(limited, template) as made:
        failure = (await made.tried(await made.begin())).failure
        assert failure is not None
        assert "larger than the 1,000 bytes" in failure.message
        assert hub.seen == []


async def test_a_source_that_does_not_say_sizes_is_bounded_all_the_same(
    imports: Imports, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = hub.info()
    for sibling in told["siblings"]:
        sibling.pop("size")
        sibling.pop("lfs", None)
        sibling["blobId"] = None
    monkeypatch.setattr(hub, "info", lambda: told)
    imports.registry.sources.max_bytes = 500_000
    failure = (await imports.tried(await imports.begin())).failure
    assert failure is not None
    assert "larger than" in failure.message
    imports.registry.sources.max_bytes = 5_000_000
    assert (await imports.tried(await imports.begin())).failure is None


async def test_no_room_is_told_before_anything_is_fetched(
    imports: Imports, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 1000})
    where = "services.registry.sources.staging.shutil.disk_usage"
    monkeypatch.setattr(where, lambda path: usage)
    failure = (await imports.tried(await imports.begin())).failure
    assert failure is not None
    assert (failure.status, failure.reason) == ("RESOURCE_EXHAUSTED", "STORAGE_FULL")
    assert hub.seen == []


async def test_a_bug_ends_the_import_and_not_the_importer(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a secret of the code")

    monkeypatch.setattr(imports.registry.sources, "fetch", broken)
    failure = (await imports.tried(await imports.begin())).failure
    assert failure is not None
    assert failure.status == "INTERNAL"
    assert "secret" not in failure.message
    assert imports.staged == []


async def test_the_loop_survives_whatever_happens(
    imports: Imports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    importer, called, again = imports.importer(), 0, asyncio.Event()

    async def lease(*_: object) -> None:
        nonlocal called
        called += 1
        if called == 1:
            raise RuntimeError("a bug")
        if called == 2:
            raise AlreadyExists("expected")
        again.set()

    monkeypatch.setattr(imports.registry.jobs, "lease", lease)
    running_loop = asyncio.create_task(importer.run())
    async with asyncio.timeout(20):
        await again.wait()
    running_loop.cancel()
    await asyncio.gather(running_loop, return_exceptions=True)


async def test_a_model_that_was_deleted_meanwhile(imports: Imports) -> None:
    name = await imports.begin()
    await imports.registry.models.delete_model(
        Author("ann", ""), "models/m", "", force=True, dry=False
    )
    failure = (await imports.tried(name)).failure
    assert failure is not None
    assert (failure.status, failure.reason) == ("NOT_FOUND", "MODEL_NOT_FOUND")
    assert model_id("models/m") == "m"


async def test_an_importer_that_is_ended_leaves_nothing_running(imports: Imports) -> None:
    """A read of the database that is cut in its middle would lose its connection."""
    before = asyncio.all_tasks()
    running_loop = asyncio.create_task(imports.importer().run())
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks() - before) > 2
    running_loop.cancel()
    await asyncio.gather(running_loop, return_exceptions=True)
    assert asyncio.all_tasks() == before
