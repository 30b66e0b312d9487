"""What may be done with versions and aliases, and what may not."""

import asyncio
import gc
import sys
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.listing import Listing
from services.registry.resources import ArtifactRecord, GateRecord
from services.runtime.errors import (
    AlreadyExists,
    Conflict,
    FailedPrecondition,
    InvalidRequest,
    NotFound,
)
from tests.unit.registry.parts import MANIFEST, Parts, by, opened, sha, weights

LIVE = "models/m/aliases/live"
AT_LEAST = GateRecord(metric="accuracy", comparison="at_least", value=0.85)


@pytest.fixture
async def ready(parts: Parts) -> Parts:
    """A model with two ready versions, 0.9 and 0.8 accurate."""
    await parts.model()
    await parts.ready(seed=b"1", metrics={"accuracy": 0.9})
    await parts.ready(seed=b"2", metrics={"accuracy": 0.8})
    return parts


async def move(
    parts: Parts,
    version: int,
    gates: tuple[GateRecord, ...] | None = None,
    request_id: str = "",
    etag: str = "",
) -> int:
    """Set the alias `live`; gives what it points to."""
    author = by(request_id, digest=f"{version}")
    return (await parts.pointers.set_alias(author, LIVE, version, gates, etag, dry=False)).version


async def test_a_model_exists_once(parts: Parts) -> None:
    await parts.model()
    with pytest.raises(AlreadyExists) as caught:
        await parts.model()
    assert caught.value.resource == ("model", "models/m")


async def test_a_version_is_uploading_until_it_was_checked_and_ready_for_ever(
    parts: Parts,
) -> None:
    await parts.model()
    version = await parts.version({"model.yaml": MANIFEST, "model.onnx": weights(b"x")})
    assert (version.state, version.ready_time, version.signature) == ("uploading", None, None)
    with pytest.raises(FailedPrecondition, match=r"not uploaded yet: model\.yaml, model\.onnx"):
        await parts.finalize(version.name)
    await parts.put(MANIFEST)
    with pytest.raises(FailedPrecondition, match=r"not uploaded yet: model\.onnx"):
        await parts.finalize(version.name)
    await parts.put(weights(b"x"))
    first, second = await asyncio.gather(*(parts.finalize(version.name) for _ in range(2)))
    assert first == second
    assert first.state == "ready"
    assert first.ready_time is not None
    assert first.digest == version.digest
    revision = await parts.store.revision()
    assert await parts.finalize(version.name) == first
    assert await parts.store.revision() == revision


async def test_a_rejected_version_stays_rejected_with_its_reasons(parts: Parts) -> None:
    await parts.model()
    version = await parts.version({"model.pkl": b"x"})
    await parts.put(b"x")
    found = await parts.finalize(version.name)
    assert found.state == "rejected"
    assert [one.rule for one in found.rejections] == ["pickle-refused"]
    assert found.ready_time is None
    assert await parts.finalize(version.name) == found
    with pytest.raises(FailedPrecondition, match="is rejected, not ready"):
        await move(parts, 1)


async def test_bytes_that_are_here_already_need_no_upload(parts: Parts) -> None:
    await parts.model()
    await parts.ready(seed=b"same")
    again = await parts.version({"model.yaml": MANIFEST, "model.onnx": weights(b"same")})
    found = await parts.finalize(again.name)
    assert (found.version, found.state) == (2, "ready")


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ((), "at least one"),
        (("a", "a"), "twice"),
        (("a/../b",), "in it"),
        (("./a",), "in it"),
        (("..",), "in it"),
        (("a", "a/b"), "has a as"),
        (("a/b/c", "d", "a/b"), "has a/b as"),
        (("b/c", "b-c", "b"), "has b as"),
    ],
)
async def test_files_that_cannot_lie_in_one_folder_are_refused(
    parts: Parts, paths: tuple[str, ...], said: str
) -> None:
    await parts.model()
    artifacts = [ArtifactRecord(path=path, size_bytes=1, sha256=sha(b"x")) for path in paths]
    with pytest.raises(InvalidRequest, match=said) as caught:
        await parts.models.create_version(by(), "m", artifacts, "", {}, {}, None, dry=False)
    assert [v.field for v in caught.value.violations] == ["version.artifacts"]


async def test_a_version_that_is_held_is_not_deleted(ready: Parts) -> None:
    await move(ready, 1)
    with pytest.raises(FailedPrecondition, match="what alias live points to"):
        await ready.models.delete_version(by(), "models/m/versions/1", "", dry=False)
    await move(ready, 2)
    await ready.models.delete_version(by(), "models/m/versions/1", "", dry=False)
    with pytest.raises(NotFound):
        await ready.store.version("m", 1)


async def test_an_alias_points_to_ready_versions_only(ready: Parts) -> None:
    await ready.version({"a": b"x"})
    for version, error in ((3, FailedPrecondition), (4, NotFound)):
        with pytest.raises(error):
            await move(ready, version)
    with pytest.raises(NotFound):
        await ready.pointers.set_alias(by(), "models/x/aliases/live", 1, None, "", dry=False)
    with pytest.raises(NotFound):
        await ready.store.alias("m", "live")


async def test_gates_stay_with_the_alias_and_hold_for_every_move(ready: Parts) -> None:
    with pytest.raises(FailedPrecondition, match="accuracy: 0.8 is not >= 0.85"):
        await move(ready, 2, (AT_LEAST,))
    assert await move(ready, 1, (AT_LEAST,)) == 1
    with pytest.raises(FailedPrecondition):
        await move(ready, 2)
    await ready.models.update_version(
        by(), "models/m/versions/2", "", {"metrics": {"accuracy": 0.86}}, dry=False
    )
    assert await move(ready, 2) == 2
    assert (await ready.store.alias("m", "live")).gates == (AT_LEAST,)
    assert await move(ready, 2, ()) == 2
    assert (await ready.store.alias("m", "live")).gates == ()


async def test_new_gates_do_not_judge_the_version_that_is_there(ready: Parts) -> None:
    await move(ready, 2)
    assert await move(ready, 2, (AT_LEAST,)) == 2
    assert await move(ready, 1) == 1
    with pytest.raises(FailedPrecondition):
        await move(ready, 2)


async def test_a_gate_may_ask_for_better_than_the_holder(ready: Parts) -> None:
    better = GateRecord(metric="accuracy", comparison="at_least", holder_plus=0.0)
    await move(ready, 2, (better,))
    assert await move(ready, 1) == 1
    with pytest.raises(FailedPrecondition, match=r"0.8 is not >= 0.9"):
        await move(ready, 2)


async def test_a_move_to_where_it_is_changes_nothing(ready: Parts) -> None:
    await move(ready, 1)
    alias, revision = await ready.store.alias("m", "live"), await ready.store.revision()
    await move(ready, 1)
    assert await ready.store.alias("m", "live") == alias
    assert await ready.store.revision() == revision


async def test_an_etag_refuses_to_create_what_was_deleted(ready: Parts) -> None:
    await move(ready, 1)
    etag = (await ready.store.alias("m", "live")).etag
    await ready.pointers.delete_alias(by(), LIVE, "", dry=False)
    with pytest.raises(Conflict):
        await move(ready, 1, etag=etag)


@pytest.mark.parametrize("there", [True, False])
async def test_a_late_repetition_does_not_move_an_alias_back(ready: Parts, there: bool) -> None:
    """The first answer was lost; meanwhile someone else moved on; then the caller tries again."""
    if there:
        await move(ready, 1)
    assert await move(ready, 1, request_id="r1") == 1
    assert await move(ready, 2) == 2
    assert await move(ready, 1, request_id="r1") == 1, "the answer that was lost"
    assert (await ready.store.alias("m", "live")).version == 2


async def test_a_late_repetition_does_not_bring_a_deleted_alias_back(ready: Parts) -> None:
    assert await move(ready, 1, request_id="r1") == 1
    await ready.pointers.delete_alias(by(), LIVE, "", dry=False)
    assert await move(ready, 1, request_id="r1") == 1, "the answer that was lost"
    with pytest.raises(NotFound):
        await ready.store.alias("m", "live")


async def test_a_reference_means_a_version_an_alias_or_live(ready: Parts) -> None:
    with pytest.raises(NotFound) as caught:
        await ready.store.resolve("m", 0, "")
    assert caught.value.reason_given == "ALIAS_NOT_FOUND"
    await move(ready, 1)
    await ready.pointers.set_alias(by(), "models/m/aliases/next", 2, None, "", dry=False)
    for version, alias, found in (
        (2, "", (2, "version")),
        (0, "next", (2, "alias")),
        (0, "live", (1, "alias")),
        (0, "", (1, "live")),
    ):
        record, chosen_by = await ready.store.resolve("m", version, alias)
        assert (record.version, chosen_by) == found
    for model, version, alias in (("x", 0, ""), ("m", 9, ""), ("m", 0, "x"), ("x", 1, "")):
        with pytest.raises(NotFound):
            await ready.store.resolve(model, version, alias)


async def test_a_figure_that_is_no_number_does_not_take_the_listings_with_it(
    tmp_path: Path, template: Path
) -> None:
    async with opened(tmp_path / "r", template=template) as parts:
        await parts.model()
        figures = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
        await parts.ready(metrics=figures)
    async with opened(tmp_path / "r") as parts:
        (record,) = (await parts.store.versions("m", Listing(9))).entries
        assert repr(record.metrics) == repr(figures)
        assert len(await parts.store.changes(0, 99)) == 5


async def test_a_trial_that_is_given_up_keeps_nobody_from_writing(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.model()
    held = asyncio.Event()

    async def never(connection: AsyncConnection) -> None:
        held.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(AsyncConnection, "rollback", never)
    # A context that nobody left is found by the garbage collector, whenever that comes.
    found: list[object] = []
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(hooks.firstiter, found.append)
    try:
        create = parts.models.create_model(by(), "trial", "classification", "", {}, dry=True)
        trial = asyncio.create_task(create)
        await held.wait()
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        del trial, create
        gc.collect()
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert not found
    monkeypatch.undo()
    async with asyncio.timeout(10):
        await parts.model("next")
