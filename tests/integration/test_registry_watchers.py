"""Watches over the wire: many at once, cut and resumed, and told when the past is compacted."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.registry.v1 import model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as rpc

from tests.harness import TRANSPORTS, error_info, reason, soon
from tests.unit.registry.wire import Here, registry

WATCHERS, CONNECTIONS = 1000, 8


async def describe(wire: Here, *texts: str) -> None:
    """Change the model's description to each of these."""
    for text in texts:
        model = model_pb2.Model(name="models/m", description=text)
        await soon(wire.stub.UpdateModel(pb.UpdateModelRequest(model=model)))


def told(responses: Sequence[Any]) -> list[tuple[int, str]]:
    """The changes among what a watcher was sent."""
    return [
        (one.revision, one.change.after.model.description)
        for one in responses
        if one.WhichOneof("event") == "change"
    ]


async def read(call: Any, count: int) -> list[tuple[int, str]]:
    """So many changes of a watch."""
    found: list[tuple[int, str]] = []
    while len(found) < count:
        response = await call.read()
        assert response is not grpc.aio.EOF, (await call.code(), await call.details())
        found += told([response])
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_thousand_watchers_are_told_each_change_once_in_order(
    tmp_path: Path, transport: str
) -> None:
    async with registry(tmp_path / "r", transport) as wire:
        await wire.model()
        stubs: list[Any] = [rpc.RegistryServiceStub(wire.served.open()) for _ in range(CONNECTIONS)]
        calls = [
            stubs[n % CONNECTIONS].Watch(pb.WatchRequest(after_revision=n % 2))
            for n in range(WATCHERS)
        ]
        # Each has begun once it was told what was there: half of them begin before the model.
        async with asyncio.timeout(60):
            await asyncio.gather(*(read(call, 1) for call in calls[0::2]))
            reading = [asyncio.create_task(read(call, 5)) for call in calls]
            await describe(wire, *"abcde")
            found = await asyncio.gather(*reading)
        expected = [(2 + n, text) for n, text in enumerate("abcde")]
        assert all(one == expected for one in found)
        for call in calls:
            call.cancel()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_watch_that_is_cut_after_each_change_misses_nothing(
    tmp_path: Path, transport: str
) -> None:
    async with registry(tmp_path / "r", transport, page=3) as wire:
        await wire.model()
        writing = asyncio.create_task(describe(wire, *(f"{n}" for n in range(40))))
        found: list[tuple[int, str]] = []
        at = 1
        async with asyncio.timeout(60):
            while len(found) < 40:
                stub: Any = rpc.RegistryServiceStub(wire.served.open())
                call = stub.Watch(pb.WatchRequest(after_revision=at))
                found += await read(call, 1 + len(found) % 3)
                at = found[-1][0]
                call.cancel()
        await writing
        assert found[:40] == [(2 + n, f"{n}") for n in range(40)]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_who_is_behind_the_compacted_past_begins_with_a_snapshot(
    tmp_path: Path, transport: str
) -> None:
    async with registry(tmp_path / "r", transport, watch_keep_changes=5) as wire:
        await wire.model()
        live = wire.stub.Watch(pb.WatchRequest(after_revision=0))
        assert await soon(read(live, 1)) == [(1, "")]
        await describe(wire, *(f"{n}" for n in range(19)))
        await wire.parts.keep_house()
        info = await soon(wire.stub.GetServerInfo(pb.GetServerInfoRequest()))
        assert (info.revision, info.oldest_revision) == (20, 15)
        for after in (0, 14):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await soon(wire.stub.Watch(pb.WatchRequest(after_revision=after)).read())
            error = caught.value
            said = (error.code(), reason(error))
            assert said == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_COMPACTED")
            assert error_info(error).metadata["oldest_revision"] == "15"
        # What was watching before goes on, and what is kept can still be begun after.
        assert [n for n, _ in await soon(read(live, 19))] == list(range(2, 21))
        kept = wire.stub.Watch(pb.WatchRequest(after_revision=15))
        assert [n for n, _ in await soon(read(kept, 5))] == list(range(16, 21))
        # The way back for those who are behind.
        fresh = wire.stub.Watch(pb.WatchRequest())
        first, mark = await soon(fresh.read()), await soon(fresh.read())
        assert first.snapshot.model.description == "18"
        assert mark.bookmark.snapshot_complete
        assert mark.revision == 20
        await describe(wire, "new")
        assert await soon(read(fresh, 1)) == [(21, "new")]
        # The history itself is kept whole.
        history = pb.GetModelHistoryRequest(name="models/m", page_size=100)
        changes = (await soon(wire.stub.GetModelHistory(history))).changes
        assert [one.revision for one in changes] == list(range(21, 0, -1))
        for call in (live, kept, fresh):
            call.cancel()
