"""The profiles of a version as a follower asks for them: what is told, and when nothing is."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as rpc

from services.runtime import registry_client
from services.runtime.catalog import ProfileEntry
from services.runtime.registry_client import RegistryClient, channel
from tests.harness import soon


class _Registry(rpc.RegistryServiceServicer):
    answer: Any = None

    async def GetModelVersionProfile(self, request: Any, context: Any) -> Any:  # noqa: N802
        assert request.name == "models/m/versions/3"
        return await self.answer(context)


@pytest.fixture
async def registry() -> AsyncIterator[tuple[_Registry, str]]:
    """A registry that does what the test says."""
    servicer, server = _Registry(), grpc.aio.server()
    rpc.add_RegistryServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield servicer, f"127.0.0.1:{port}"
    await server.stop(None)


async def asked(target: str, cache: Path) -> list[ProfileEntry]:
    client = RegistryClient(channel(target, None, None), cache)
    try:
        return await soon(client.profiles("m", 3))
    finally:
        await client.close()


async def test_curves_come_newest_first(registry: tuple[_Registry, str], tmp_path: Path) -> None:
    servicer, target = registry

    async def answer(context: Any) -> Any:
        points = [pb.ProfilePoint(batch_size=4, length=16, p50_us=2500, p95_us=9999)]
        return pb.GetModelVersionProfileResponse(
            profiles=[
                pb.ModelVersionProfile(fingerprint="new", points=points),
                pb.ModelVersionProfile(fingerprint="old"),
            ]
        )

    servicer.answer = answer
    assert await asked(target, tmp_path) == [
        ProfileEntry("new", ((64, 0.0025),)),
        ProfileEntry("old", ()),
    ]


@pytest.mark.parametrize("code", [grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED])
async def test_a_refusal_is_no_curve(
    registry: tuple[_Registry, str], tmp_path: Path, code: grpc.StatusCode
) -> None:
    servicer, target = registry

    async def answer(context: Any) -> Any:
        await context.abort(code, "no")

    servicer.answer = answer
    assert await asked(target, tmp_path) == []


async def test_a_registry_that_is_slow_or_away_is_no_curve(
    registry: tuple[_Registry, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servicer, target = registry
    monkeypatch.setattr(registry_client, "PROFILES_S", 0.1)

    async def answer(context: Any) -> Any:
        await asyncio.sleep(30)

    servicer.answer = answer
    assert await asked(target, tmp_path) == []
    assert await asked("127.0.0.1:1", tmp_path) == []
