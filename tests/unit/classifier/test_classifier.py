"""One model at work: what is encoded, admitted, answered, and what is refused as a whole."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.classifier.answers import Answer, Asked
from services.classifier.starter import Starter
from services.inference import loading
from services.inference.fingerprint import fingerprint
from services.inference.items import Encoded, FeaturesItem, Item
from services.inference.loaded import Wanted
from services.inference.manifest import SCHEMA, Manifest
from services.inference.scoring import Choice
from services.runtime.admission import Limits
from services.runtime.catalog import ProfileEntry, VersionEntry
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    BackendFailed,
    DeadlineExpired,
    GristmillError,
    InvalidRequest,
    Overloaded,
    UnsupportedField,
)
from tests.harness import metric, soon
from tests.unit.classifier.models import FIRST_TOKEN, World, number_of, text_item
from tests.unit.inference.fakes import Device
from tests.unit.registry_worker.folders import linear

ALL = Choice(10)


def asked(within_s: float = 60.0, choice: Choice = ALL, **more: Any) -> Asked:
    """What a caller wants; the probabilities too, since they say whose answer it is."""
    return Asked("me", Deadline.after(within_s), 5, choice, return_probabilities=True, **more)


@pytest.fixture
async def device() -> Device:
    """What runs the models."""
    return Device()


@pytest.fixture
async def world(tmp_path: Path, device: Device) -> AsyncIterator[World]:
    """Models on the device."""
    world = World(tmp_path, device)
    yield world
    device.open()
    await soon(world.close())


async def test_each_item_has_its_own_answer_in_order(world: World) -> None:
    await world.add()
    answers = await soon(
        world.runner().classify([text_item(n, words=1 + n % 7) for n in range(100)], asked())
    )
    assert [number_of(answer) for answer in answers] == list(range(100))
    for number, answer in enumerate(answers):
        assert answer.tokens == 1 + number % 7
        assert not answer.truncated
        assert [one.label for one in answer.labels] == ["second", "first"]
        assert sum(one.score for one in answer.labels) == pytest.approx(1.0)
        assert answer.timings is not None
        assert answer.preprocess_s >= 0


async def test_errors_are_an_items_own(world: World, device: Device) -> None:
    await world.add()
    device.bad = {FIRST_TOKEN + 3.0}
    refused = InvalidRequest("already refused")
    items: list[Item | GristmillError] = [
        text_item(1),
        refused,
        FeaturesItem(np.zeros(3, dtype=np.float32)),
        text_item(2, words=65),
        text_item(3),
        text_item(4),
    ]
    told: dict[int, Answer] = {}
    answers = await soon(
        world.runner().classify(items, asked(refuse_longer=True), told.__setitem__)
    )
    assert [number_of(answers[i]) for i in (0, 5)] == [1, 4]
    assert answers[1].error is refused
    assert isinstance(answers[2].error, UnsupportedField)
    assert isinstance(answers[3].error, InvalidRequest)
    assert isinstance(answers[4].error, BackendFailed)
    assert told == dict(enumerate(answers))


async def test_a_long_text_is_cut_unless_refused(world: World) -> None:
    await world.add()
    (answer,) = await soon(world.runner().classify([text_item(7, words=65)], asked()))
    assert (number_of(answer), answer.truncated, answer.tokens) == (7, True, 64)


async def test_probabilities_only_where_asked(world: World) -> None:
    await world.add()
    plain = Asked("me", Deadline.after(60.0), 5, Choice(1))
    (answer,) = await soon(world.runner().classify([text_item(7)], plain))
    assert answer.probabilities is None
    assert len(answer.labels) == 1


async def test_a_threshold_needs_a_multi_label_model(world: World) -> None:
    await world.add("single")
    await world.add("multi", output={"labels": ["a", "b"], "multi_label": True})
    over = asked(choice=Choice(1, 0.5))
    with pytest.raises(UnsupportedField) as raised:
        await soon(world.runner("single").classify([text_item(1)], over))
    assert raised.value.violations[0].field == "options.threshold"
    (answer,) = await soon(world.runner("multi").classify([text_item(1)], over))
    assert [one.label for one in answer.labels] == ["b"]


async def test_a_message_is_refused_as_a_whole(world: World, device: Device) -> None:
    world.limits = Limits(max_items=3, max_bytes=10**6)
    device.held = True
    await world.add()
    runner = world.runner()
    before = metric("gristmill_rejected_total", model="m", reason="QUEUE_FULL")
    running = asyncio.ensure_future(runner.classify([text_item(1), text_item(2)], asked()))
    await device.entered()
    told: list[int] = []
    bad = InvalidRequest("an item's own error")
    with pytest.raises(Overloaded) as raised:
        await soon(
            runner.classify(
                [bad, text_item(3), text_item(4)], asked(), lambda index, _: told.append(index)
            )
        )
    assert raised.value.retry_after_s is not None
    assert told == [], "a refused message has no results, not even its items' own errors"
    assert metric("gristmill_rejected_total", model="m", reason="QUEUE_FULL") == before + 1
    device.open()
    assert [number_of(answer) for answer in await soon(running)] == [1, 2]


async def test_what_was_admitted_is_given_back_however_it_ends(
    world: World, device: Device
) -> None:
    device.held = True
    await world.add()
    runner = world.runner()
    first = asyncio.ensure_future(runner.classify([text_item(1)], asked()))
    await device.entered()
    second = asyncio.ensure_future(runner.classify([text_item(2)], asked()))
    with pytest.raises(DeadlineExpired):
        await soon(runner.classify([text_item(3)], asked(within_s=0.02)))
    assert metric("gristmill_queue_items", model="m") == runner.admission.items == 2
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(second)
    assert metric("gristmill_queue_items", model="m") == runner.admission.items == 1
    device.open()
    await soon(first)
    assert metric("gristmill_queue_items", model="m") == 0
    assert (runner.admission.items, runner.admission.bytes) == (0, 0)


async def test_the_queues_of_all_versions_of_a_model_count(world: World, device: Device) -> None:
    """A shadow or a canary that is loaded, or goes, hides nothing of what waits for live."""
    device.held = True
    await world.add(version=1)
    await world.add(version=2, alias="canary")
    running = asyncio.ensure_future(world.runner().classify([text_item(1)], asked()))
    await device.entered()
    both = metric("gristmill_queue_items", model="m")
    unloading = asyncio.ensure_future(world.serving.unload(Wanted("m", version=2)))
    await soon(unloading)
    one = metric("gristmill_queue_items", model="m")
    device.open()
    await soon(running)
    assert (both, one) == (1, 1)


async def test_a_message_of_bad_items_alone_is_answered(world: World, device: Device) -> None:
    await world.add()
    error = InvalidRequest("bad")
    answers = await soon(world.runner().classify([error, error], asked()))
    assert [answer.error for answer in answers] == [error, error]
    assert device.batches == []


async def test_a_vector_model_takes_vectors(world: World) -> None:
    declared = {"kind": "float_features", "names": ["a", "b"]}
    await world.add("v", input=declared, files={"model": "m.onnx"})
    vectors = [FeaturesItem(np.array([n, 0.5], dtype=np.float32)) for n in (9, 8)]
    answers = await soon(world.runner("v").classify(vectors, asked()))
    assert [number_of(answer) for answer in answers] == [9 - FIRST_TOKEN, 8 - FIRST_TOKEN]
    assert [answer.tokens for answer in answers] == [0, 0]


async def test_a_model_that_was_unloaded_is_no_longer_in_memory(world: World) -> None:
    await world.add()
    await soon(world.runner().classify([text_item(1)], asked()))
    await soon(world.serving.unload(Wanted("m")))
    gone = weakref.ref(world.runners.pop(("m", 1)))
    backend = weakref.ref(world.backends.pop())
    gc.collect()
    assert gone() is None
    assert backend() is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": None}, "backend"),
        ({"files": {"weights": "m.onnx"}}, r"files\.model"),
    ],
)
async def test_a_manifest_that_names_no_model_cannot_start(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    least = {"schema": SCHEMA, "name": "m", "task": "classification", "backend": "onnxruntime"}
    manifest = Manifest.model_validate(least | {"files": {"model": "m.onnx"}} | changes)
    with ThreadPoolExecutor(1) as threads, pytest.raises(InvalidRequest, match=said):
        await soon(Starter(threads).start(VersionEntry("m", 1, "d", ()), manifest, tmp_path))


@pytest.mark.parametrize("matches", [True, False])
async def test_the_newest_curve_of_such_a_host_starts_the_cost_model(
    tmp_path: Path, *, matches: bool
) -> None:
    folder = linear(tmp_path, np.ones((2, 3)))
    manifest = Manifest.read(folder)
    here = fingerprint(loading.load(manifest, folder, 1).backend, 1)
    asked_for: list[tuple[str, int]] = []

    async def profiles(model: str, version: int) -> list[ProfileEntry]:
        asked_for.append((model, version))
        entries = [ProfileEntry("another host", ((1, 9.0),))]
        if matches:
            entries += [ProfileEntry(here, ((1, 0.5), (2, 0.75))), ProfileEntry(here, ((1, 7.0),))]
        return entries

    with ThreadPoolExecutor(1) as threads:
        starter = Starter(threads, instances=1, profiles=profiles)
        runner = await soon(starter.start(VersionEntry("m", 3, "d", ()), manifest, folder))
        item = Encoded({"features": np.zeros(2, dtype=np.float32)}, 1)
        wait_s = runner.batcher.predicted_wait_s([item], Deadline.after(60.0))
        await soon(runner.close())
    assert asked_for == [("m", 3)]
    assert wait_s == pytest.approx(0.5 if matches else 0.0)
