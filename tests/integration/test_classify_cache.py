"""The response cache behind the wire: what is answered from it, what never is, and who shares."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from gristmill.classifier.v1 import item_pb2, options_pb2
from gristmill.registry.v1 import model_pb2

from services.classifier.answers import Asked
from services.inference.cache import Cache
from services.inference.cache.keys import Keys
from services.inference.cache.memory import Memory
from services.inference.scoring import Choice
from services.runtime.admission import Limits
from services.runtime.deadline import Deadline
from tests.harness import (
    SOON_S,
    classifier,
    collect,
    details,
    failure,
    metric,
    pb,
    reason,
    serve,
    soon,
)
from tests.unit.classifier.models import World, message, number_in, text_item
from tests.unit.inference.fakes import Device

Code = grpc.StatusCode


class Rig:
    """A served classifier with a cache, and its device."""

    def __init__(self, stub: Any, world: World, device: Device) -> None:
        self.stub, self.world, self.device = stub, world, device

    async def asked(self, items: int) -> None:
        """Wait until so many items were not found in the cache."""
        async with asyncio.timeout(SOON_S):
            while self.world.runner().statistics.cache_miss.count < items:
                await asyncio.sleep(0.001)

    async def classify(self, *items: item_pb2.Item, **options: Any) -> Any:
        """One call; probabilities come back, since they say whose answer it is."""
        return await soon(self.call(*items, **options))

    def call(
        self, *items: item_pb2.Item, model: str = "", timeout: float = 20.0, **how: Any
    ) -> Any:
        """The same, not awaited."""
        options = options_pb2.ClassifyOptions(return_probabilities=True, **how)
        request = pb.ClassifyRequest(
            model=model_pb2.ModelRef(model=model), items=items, options=options
        )
        return self.stub.Classify(request, timeout=timeout)

    async def computed(self, *items: item_pb2.Item, **options: Any) -> int:
        """How many rows the device ran for a call."""
        before = len(self.device.computed)
        await self.classify(*items, **options)
        return len(self.device.computed) - before


@asynccontextmanager
async def rig(transport: str, folder: Path, *, most: int = 2**20, **how: Any) -> AsyncIterator[Rig]:
    """A text model m with a cache of so many bytes."""
    device = Device()
    cache = Cache(Keys(b"a secret of the test"), Memory(most))
    world = World(folder, device, cache=cache, **how)
    await world.add("m")
    async with serve(classifier(world.servicer, on_close=[world.close]), transport) as served:
        try:
            yield Rig(served.stub, world, device)
        finally:
            device.open()


def cached(response: Any) -> list[bool]:
    """Which results came from the cache."""
    return [result.classification.cached for result in response.results]


async def test_an_equal_item_is_answered_without_the_model(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        first = await r.classify(message(7), message(8))
        again = await r.classify(message(8), message(9), message(7))
        assert (cached(first), cached(again)) == ([False, False], [True, False, True])
        assert [number_in(result) for result in again.results] == [8, 9, 7]
        assert len(r.device.computed) == 3
        kept = again.results[0]
        assert (kept.timings.batch_size, kept.classification.tokens) == (0, 1)
        hits = metric("gristmill_cache_hits_total", model="m", level="memory")
        assert hits >= 2


async def test_options_are_applied_to_what_is_kept(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.classify(message(7), top_k=1)
        assert await r.computed(message(7), top_k=2) == 0
        two = await r.classify(message(7), top_k=2)
        assert [label.label for label in two.results[0].classification.labels] == [
            "second",
            "first",
        ]


async def test_what_is_kept_out_is_neither_read_nor_stored(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        assert await r.computed(message(7), no_cache=True) == 1
        assert await r.computed(message(7)) == 1, "the first call stored nothing"
        assert await r.computed(message(7), no_cache=True) == 1, "the third read nothing"


async def test_equal_items_at_once_are_computed_once(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        calls = [asyncio.ensure_future(_answer(r.call(message(5)))) for _ in range(8)]
        await r.device.entered()
        await r.asked(8)
        r.device.open()
        answers = await soon(asyncio.gather(*calls))
        assert {number_in(answer.results[0]) for answer in answers} == {5}
        assert r.device.computed == [5 + 4]


async def _answer(call: Any) -> Any:
    return await call


async def test_who_gives_up_harms_nobody_that_waits(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.held = True
        leader = r.call(message(5))
        await r.device.entered()
        follower = asyncio.ensure_future(_answer(r.call(message(5))))
        await r.asked(2)
        leader.cancel()
        r.device.open()
        assert number_in((await soon(follower)).results[0]) == 5


async def test_an_error_is_not_kept(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        r.device.bad = {9.0}
        for _ in range(2):
            (result,) = (await r.classify(message(5))).results
            (info,) = details(result.error, error_details_pb2.ErrorInfo)
            assert info.reason == "BACKEND_FAILED"
        r.device.bad = set()
        assert number_in((await r.classify(message(5))).results[0]) == 5


async def test_a_hit_needs_no_place_in_the_queue(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path, limits=Limits(2, 2**40)) as r:
        await r.classify(message(1))
        r.device.held = True
        stuck = [asyncio.ensure_future(_answer(r.call(message(n)))) for n in (2, 3)]
        async with asyncio.timeout(SOON_S):
            while r.world.runner().admission.items < 2:
                await asyncio.sleep(0.001)
        assert cached(await r.classify(message(1))) == [True]
        refused = await failure(r.call(message(1), message(4)))
        assert refused.code() is Code.RESOURCE_EXHAUSTED, "the rest of the message found no place"
        r.device.open()
        await soon(asyncio.gather(*stuck))


async def test_hits_count_against_the_quota(transport: str, tmp_path: Path) -> None:
    limits = Limits(100, 2**40, quota_units_per_s=0.001, quota_burst_units=3)
    async with rig(transport, tmp_path, limits=limits) as r:
        for _ in range(3):
            await r.classify(message(1))
        refused = await failure(r.call(message(1)))
        assert (refused.code(), reason(refused)) == (Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")


async def test_another_version_has_answers_of_its_own(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.classify(message(7))
        await r.world.add("m", 2)
        assert await r.computed(message(7)) == 1


async def test_a_stream_tells_hits_and_the_rest(transport: str, tmp_path: Path) -> None:
    async with rig(transport, tmp_path) as r:
        await r.classify(message(7))
        options = options_pb2.ClassifyOptions(return_probabilities=True)
        request = pb.ClassifyStreamRequest(items=[message(8), message(7)], options=options)
        found = await collect(r.stub.ClassifyStream(request))
        answers = {
            one.index: (number_in(one.result), one.result.classification.cached) for one in found
        }
        assert answers == {0: (8, False), 1: (7, True)}


@pytest.mark.parametrize("mine", [True, False])
async def test_tenants_share_nothing(tmp_path: Path, *, mine: bool) -> None:
    device = Device()
    world = World(tmp_path, device, cache=Cache(Keys(b"a secret of the test"), Memory(2**20)))
    await world.add("m")
    for identity in ("me", "me" if mine else "you"):
        asked = Asked(identity, Deadline.after(20.0), 5, Choice())
        await soon(world.runner().classify([text_item(7)], asked))
    assert len(device.computed) == (1 if mine else 2)
    await world.close()
