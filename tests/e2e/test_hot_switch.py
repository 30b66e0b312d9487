"""Models change under load, in real processes: no call fails, and nothing of the old is left.

Each version answers with its own number, by its arithmetic and by its labels, so that an answer
shows what computed it, whatever its `version` says.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.classifier.v1 import item_pb2, loaded_model_pb2, options_pb2
from gristmill.registry.v1 import model_pb2
from gristmill_client import AsyncClient

from services.runtime.health import NOT_SERVING, SERVING
from tests.e2e.load import FIGURES
from tests.e2e.pair import Pair, pair, until
from tests.harness import error_info, failure, health_list, reason
from tests.unit.registry_worker.folders import linear, lines

VERSIONS = 5
WARM_MOVES = 20
BURST_EVERY = 10
"""Every so many moves, several are made without waiting for the first."""
GROWTH_MIB = 30.0
FLOWER = item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[5.1, 3.5, 1.4, 0.2]))
COMPUTED = options_pb2.ClassifyOptions(no_cache=True)
STATES = ("ready", "loading", "draining", "failed", "unloaded")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """One registry and one classifier; each test has a model of its own."""
    with pair(tmp_path_factory.mktemp("pair")) as found:
        yield found


def variant(root: Path, number: int, model: str, **manifest: Any) -> Path:
    """A model that always answers the label of its own number."""
    weights = np.zeros((4, VERSIONS), np.float32)
    weights[:, number - 1] = 1
    labels = [f"v{number}-{index}" for index in range(1, VERSIONS + 1)]
    fields = {"name": model, "output": {"labels": labels}, **manifest}
    return linear(root / f"v{number}", weights, **fields)


@dataclass
class Seen:
    """One answer: when its call began and ended, and which version gave it."""

    began: float
    ended: float
    version: int


@dataclass
class Moves:
    """Where `live` pointed: each move's beginning, and when it was first seen to have happened."""

    begun: list[tuple[float, int]] = field(default_factory=list)
    over: dict[int, float] = field(default_factory=dict)
    """By index: from when on no call that begins may be answered by it."""

    def allows(self, one: Seen) -> bool:
        """Whether the version was live at some moment of the call, as far as can be known."""
        return any(
            version == one.version
            and at <= one.ended
            and one.began <= self.over.get(index, float("inf"))
            for index, (at, version) in enumerate(self.begun)
        )


class Callers:
    """Callers in every shape, what they saw, and what failed."""

    def __init__(self, channel: grpc.aio.Channel, model: str) -> None:
        self._stub: Any = rpc.ClassifierServiceStub(channel)
        self._ref = model_pb2.ModelRef(model=model)
        self.model = model
        self.seen: list[Seen] = []
        self.failed: list[str] = []
        self._more = asyncio.Event()
        self._end = False

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator["Callers"]:
        """For as long as the block lasts."""
        shapes = (self._bidi, self._unary, self._unary, self._many, self._stream)
        tasks = [asyncio.ensure_future(self._call_on(shape)) for shape in shapes]
        try:
            yield self
        finally:
            self._end = True
            await asyncio.gather(*tasks)

    async def first(self, version: int, since: float) -> Seen:
        """The first answer of a version to have ended after a moment."""
        at = len(self.seen)
        while at and self.seen[at - 1].ended > since:
            at -= 1
        async with asyncio.timeout(30):
            while True:
                for one in self.seen[at:]:
                    at += 1
                    if one.version == version:
                        return one
                assert not self.failed, self.failed[:3]
                self._more.clear()
                await self._more.wait()

    async def _call_on(self, call: Callable[[], Awaitable[None]]) -> None:
        while not self._end:
            try:
                await call()
            except Exception as error:
                self.failed.append(f"{call.__name__}: {error!r}")
                self._more.set()
                return

    def _note(self, began: float, response: Any, *results: Any) -> None:
        for result in results:
            assert result.WhichOneof("outcome") == "classification", result
            label = result.classification.labels[0].label
            assert label == f"v{response.version}-{response.version}", (label, response.version)
        assert response.model == self.model
        self.seen.append(Seen(began, time.monotonic(), response.version))
        self._more.set()

    async def _unary(self, count: int = 3) -> None:
        began = time.monotonic()
        request = pb.ClassifyRequest(model=self._ref, items=[FLOWER] * count, options=COMPUTED)
        answer = await self._stub.Classify(request)
        assert len(answer.results) == count
        self._note(began, answer, *answer.results)

    async def _many(self) -> None:
        """So many that they are looked at on a thread, between version and queue."""
        await self._unary(300)

    async def _stream(self) -> None:
        began, count, versions = time.monotonic(), 0, set()
        items = [FLOWER] * 20
        request = pb.ClassifyStreamRequest(model=self._ref, items=items, options=COMPUTED)
        async for one in self._stub.ClassifyStream(request):
            versions.add(one.version)
            count += 1
            self._note(began, one, one.result)
        assert (count, len(versions)) == (20, 1), "one version answers a whole call"

    async def _bidi(self) -> None:
        """The same question again and again: from the cache, of the right version."""
        call, began = self._stub.ClassifyBidi(), {}
        for number in range(50):
            began[str(number)] = time.monotonic()
            item = pb.BidiItem(id=str(number), item=FLOWER)
            await call.write(pb.ClassifyBidiRequest(items=[item], model=self._ref))
            if number % 3 == 2:
                self._take(began, await call.read())
        await call.done_writing()
        while (response := await call.read()) is not grpc.aio.EOF:
            self._take(began, response)
        assert not began, "items were not answered"

    def _take(self, began: dict[str, float], response: Any) -> None:
        for one in response.results:
            self._note(began.pop(one.id), one, one.result)


async def move(client: AsyncClient, callers: Callers, moves: Moves, targets: list[int]) -> None:
    """Point `live` to each, without waiting between, until calls are answered by the last."""
    first = len(moves.begun)
    for target in targets:
        began = time.monotonic()
        moves.begun.append((began, target))
        await client.models.promote(callers.model, target)
    seen = await callers.first(targets[-1], began)
    for index in range(max(0, first - 1), len(moves.begun) - 1):
        moves.over[index] = seen.ended


@pytest.mark.parametrize(
    "count", [100, pytest.param(2000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]
)
async def test_many_moves_under_load_fail_no_call(
    running: Pair, count: int, tmp_path: Path
) -> None:
    moves, resident, model = Moves(), {}, f"moved-{count}"
    async with running.client() as client, running.connect() as channel:
        for number in range(1, VERSIONS + 1):
            pushed = await client.models.push(variant(tmp_path, number, model))
            assert pushed.version == number
        moves.begun.append((time.monotonic(), 1))
        await client.models.promote(model, 1)
        await running.serves(f"models/{model}")
        started = time.monotonic()
        async with Callers(channel, model).at_work() as callers:
            await callers.first(1, started)
            order = itertools.cycle([2, 3, 1, 5, 4])
            while len(moves.begun) <= count:
                burst = 3 if len(moves.begun) % BURST_EVERY == 0 else 1
                await move(client, callers, moves, [next(order) for _ in range(burst)])
                if len(moves.begun) > WARM_MOVES:
                    resident.setdefault(WARM_MOVES, running.resident_mib)
            resident[count] = running.resident_mib
        took_s = time.monotonic() - started
        assert callers.failed == []
        wrong = [one for one in callers.seen if not moves.allows(one)]
        assert wrong == [], moves
        assert {one.version for one in callers.seen} == set(range(1, VERSIONS + 1))
        last = moves.begun[-1][1]
        await until(lambda: _only(running, channel, model, last))
        states = {s: await running.metric("gristmill_model_versions", state=s) for s in STATES}
        assert states == {"ready": 1, "loading": 0, "draining": 0, "failed": 0, "unloaded": 0}
        assert await running.metric("gristmill_model_load_failures_total", model=model) == 0
        names = {name for name in await health_list(channel) if "/versions/" in name}
        assert names == {f"models/{model}/versions/{last}"}
        growth = resident[count] - resident[WARM_MOVES]
        FIGURES.append(
            f"hot switch: {len(moves.begun) - 1} moves in {took_s:.1f} s under "
            f"{len(callers.seen)} answers, none failed; memory {resident[WARM_MOVES]:.0f} MiB "
            f"after {WARM_MOVES} moves, {growth:+.1f} MiB after {count}"
        )
        assert growth < GROWTH_MIB


async def _only(running: Pair, channel: grpc.aio.Channel, model: str, version: int) -> bool:
    """Whether nothing else of a model is loaded."""
    return set(await running.loaded(channel, model)) == {version}


GOLDEN = {
    "label": {"features": [1, 2, 3, 4], "label": "v2-1"},
    "probabilities": {
        "features": [1, 1, 1, 1],
        "label": "v2-2",
        "probabilities": [0.2, 0.2, 0.2, 0.2, 0.2],
    },
}


@pytest.mark.parametrize("wrong", GOLDEN)
async def test_a_version_that_fails_its_golden_items_never_takes_over(
    running: Pair, wrong: str, tmp_path: Path
) -> None:
    model, files = f"golden-{wrong}", {"model": "model.onnx", "golden": "golden.jsonl"}
    bad = variant(tmp_path, 2, model, files=files)
    lines(bad / "golden.jsonl", GOLDEN[wrong])
    good = variant(tmp_path, 3, model, files=files)
    lines(good / "golden.jsonl", {"features": [1, 2, 3, 4], "label": "v3-3"})
    async with running.client() as client, running.connect() as channel:
        await client.models.push(variant(tmp_path, 1, model), alias="live")
        assert (await client.models.push(bad)).version == 2
        assert (await client.models.push(good)).version == 3
        await running.serves(f"models/{model}")
        started = time.monotonic()
        async with Callers(channel, model).at_work() as callers:
            await callers.first(1, started)
            await client.models.promote(model, 2)
            await until(lambda: _has_failed(running, channel, model))
            await callers.first(1, time.monotonic())
            await _says_that_the_second_is_broken(running, channel, model)
            assert {one.version for one in callers.seen} == {1}
            await client.models.promote(model, 3)
            await callers.first(3, started)
        assert callers.failed == []
        assert {one.version for one in callers.seen} == {1, 3}
        await until(lambda: _only(running, channel, model, 3))
        assert f"models/{model}/versions/2" not in await health_list(channel)


async def _has_failed(running: Pair, channel: grpc.aio.Channel, model: str) -> bool:
    found = (await running.loaded(channel, model)).get(2)
    return found is not None and found.state == loaded_model_pb2.LOAD_STATE_FAILED


async def _says_that_the_second_is_broken(
    running: Pair, channel: grpc.aio.Channel, model: str
) -> None:
    listed = await running.loaded(channel, model)
    assert listed[1].state == loaded_model_pb2.LOAD_STATE_READY
    assert (list(listed[1].aliases), list(listed[2].aliases)) == (["live"], [])
    assert "golden.jsonl: line 1" in listed[2].reason
    health = await health_list(channel)
    assert health[""] == health[f"models/{model}"] == SERVING
    assert health[f"models/{model}/versions/1"] == SERVING
    assert health[f"models/{model}/versions/2"] == NOT_SERVING
    assert await running.metric("gristmill_model_load_failures_total", model=model) == 1
    assert await running.metric("gristmill_model_versions", state="failed") == 1
    stub: Any = rpc.ClassifierServiceStub(channel)
    asked = pb.ClassifyRequest(model=model_pb2.ModelRef(model=model, version=2), items=[FLOWER])
    error = await failure(stub.Classify(asked))
    assert (error.code(), reason(error)) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_READY")
    assert error_info(error).metadata["state"] == "failed"
