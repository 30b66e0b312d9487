"""Two registries on one PostgreSQL and one place for artifacts: one history, whoever is killed."""

import asyncio
import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.registry.v1 import alias_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from tests.harness import reason, soon
from tests.integration.registry_load import (
    READY,
    STAGE,
    Replica,
    follow,
    history,
    round_of,
    stage,
    until,
)
from tests.postgres import Postgres, postgres
from tests.s3 import running
from tests.unit.registry.wire import RegistryProcess, Wire

MOVES = 100
LIVE = f"models/{STAGE}/aliases/live"
SEEDS = [*range(1000, 1003), *(pytest.param(n, marks=pytest.mark.soak) for n in range(1003, 1050))]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that may be killed, though not with the machine."""
    with postgres("fsync=off", "full_page_writes=off") as found:
        yield found


def processes(folder: Path, server: Postgres, artifacts: str, *flags: str) -> list[RegistryProcess]:
    """Two registries, not started, on one new database."""
    given = ("--worker=headers", f"--database={server.database()}", f"--artifacts={artifacts}")
    found = []
    for name in "ab":
        (folder / name).mkdir()
        found.append(RegistryProcess(folder / name, *given, *flags))
    return found


@pytest.fixture(scope="module")
def shared(
    server: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RegistryProcess]]:
    """Two registries that several tests go on with."""
    folder = tmp_path_factory.mktemp("replicas")
    found = processes(folder, server, str(folder / "artifacts"))
    yield found
    for process in found:
        process.kill()


@asynccontextmanager
async def connected(running: list[RegistryProcess]) -> AsyncIterator[list[Replica]]:
    """Both started, with a model to work on."""
    replicas = [Replica(process) for process in running]
    fresh = not running[0].port
    try:
        for replica, transport in zip(replicas, ("native", "grpcio"), strict=True):
            await (replica.start(transport) if fresh else replica.connect())
        if fresh:
            await stage(await replicas[0].wire)
        yield replicas
    finally:
        for replica in replicas:
            await replica.disconnect()


@asynccontextmanager
async def pair(
    folder: Path, server: Postgres, artifacts: str, *flags: str
) -> AsyncIterator[list[Replica]]:
    """Two replicas for one test."""
    found = processes(folder, server, artifacts, *flags)
    try:
        async with connected(found) as replicas:
            yield replicas
    finally:
        for process in found:
            process.kill()


@pytest.mark.parametrize("seed", SEEDS)
async def test_writers_on_both_make_one_linear_history(
    shared: list[RegistryProcess], seed: int
) -> None:
    async with connected(shared) as replicas:
        run = await round_of(replicas, seed, calls=320, kills=2)
        run.judge()
        assert len(run.recorded.history) > 40


async def test_both_serve_what_either_took_in_to_an_object_store(
    tmp_path: Path, server: Postgres
) -> None:
    (tmp_path / "s3").mkdir()
    with running(tmp_path / "s3") as s3:
        options = ",".join(f'"{name}":"{value}"' for name, value in s3.options.items())
        flags = (f"--artifact-options={{{options}}}",)
        async with pair(tmp_path, server, s3.url("models"), *flags) as replicas:
            run = await round_of(replicas, 7, calls=160, kills=1)
            run.judge()
            for replica in replicas:
                wire = await replica.wire
                assert await wire.download(f"models/{STAGE}/versions/1", "model.yaml")


async def move(wire: Wire, version: int) -> int:
    """Move the alias, and give the revision that it made."""
    alias = alias_pb2.Alias(name=LIVE, version=version)
    await soon(wire.stub.SetAlias(pb.SetAliasRequest(alias=alias)))
    return await wire.revision()


async def test_a_watch_on_one_sees_at_once_what_the_other_writes(
    shared: list[RegistryProcess],
) -> None:
    async with connected(shared) as replicas:
        a, b = [await replica.wire for replica in replicas]
        start = await a.revision()
        call = a.stub.Watch(pb.WatchRequest(after_revision=start))
        loop, took, seen = asyncio.get_running_loop(), [], []
        for number in range(MOVES):
            alias = alias_pb2.Alias(name=LIVE, version=1 + number % READY)
            await soon(b.stub.SetAlias(pb.SetAliasRequest(alias=alias)))
            began = loop.time()
            response = await soon(call.read())
            took.append(loop.time() - began)
            seen.append((response.revision, response.change.after.alias.version))
        call.cancel()
        assert seen == [(start + 1 + n, 1 + n % READY) for n in range(MOVES)]
        median, most = statistics.median(took) * 1e3, max(took) * 1e3
        print(f"from the answer on b to the watch on a: median {median:.1f} ms, max {most:.1f} ms")
        assert median < 1000


async def test_the_database_goes_and_comes_back_under_both(tmp_path: Path) -> None:
    with postgres("full_page_writes=off") as server:
        async with pair(tmp_path, server, str(tmp_path / "artifacts")) as replicas:
            a, b = [await replica.wire for replica in replicas]
            start = await a.revision()
            followed: list[Any] = []
            following = asyncio.create_task(follow(replicas[0], start, followed))
            await move(b, 1)
            await until(lambda: len(followed) == 1)
            for version in (2, 3):
                await asyncio.to_thread(server.kill)
                for wire in (a, b):
                    await refused(wire)
                await asyncio.to_thread(server.start, "full_page_writes=off")
                for wire in (a, b):
                    await back(wire)
                await soon(move(b, version))
            await move(a, 1)
            found = await history(a, start)
            await until(lambda: len(followed) >= len(found))
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            assert [one.after and one.after["version"] for one in found] == [1, 2, 3, 1]
            assert followed == found


async def refused(wire: Wire) -> None:
    """Reads and writes say that the database is away."""
    writing = pb.SetAliasRequest(alias=alias_pb2.Alias(name=LIVE, version=1))
    for call in (
        wire.stub.SetAlias(writing),
        wire.stub.GetAlias(pb.GetAliasRequest(name=LIVE)),
        wire.stub.ListModels(pb.ListModelsRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await soon(call)
        said = (caught.value.code().name, reason(caught.value))
        assert said == ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")


async def back(wire: Wire) -> None:
    """The registry answers again, without having been started again."""
    async with asyncio.timeout(20):
        while True:
            with suppress(grpc.aio.AioRpcError):
                await wire.stub.GetAlias(pb.GetAliasRequest(name=LIVE))
                return
            await asyncio.sleep(0.02)
