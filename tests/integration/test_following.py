"""A follower and a real registry process: nothing missed, nothing trusted that was not checked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.registry.v1 import model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from services.runtime.catalog import ArtifactEntry, Catalog, VersionEntry
from services.runtime.errors import DataLoss, UpstreamUnavailable
from services.runtime.registry_client import RegistryClient, channel
from tests.harness import metric, soon
from tests.unit.registry.parts import MANIFEST, below, sha, weights
from tests.unit.registry.wire import RegistryProcess, Wire

SEED = bytes(range(256)) * 5000
WEIGHTS = weights(SEED)
FILES = {"model.yaml": MANIFEST, "model.onnx": WEIGHTS}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """One registry for all tests here; who ends it starts it again."""
    process = RegistryProcess(tmp_path_factory.mktemp("registry"), "--worker=headers")
    process.start()
    yield process
    process.kill()


@pytest.fixture
async def wire(running: RegistryProcess) -> AsyncIterator[Wire]:
    """A client of the registry, which has no model any more."""
    async with running.connected() as found:
        answer = await soon(found.stub.ListModels(pb.ListModelsRequest()))
        for model in answer.models:
            request = pb.DeleteModelRequest(name=model.name, force=True)
            await soon(found.stub.DeleteModel(request))
        yield found


@dataclass
class Following:
    """A follower, and every state of the catalog that it was told."""

    client: RegistryClient
    states: list[dict[str, Any]] = field(default_factory=list)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def note(self, catalog: Catalog) -> None:
        """Keep a copy: the catalog itself goes on changing."""
        self.states.append(json.loads(json.dumps(catalog.to_json())))
        self._news.set()

    async def until(self, accept: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first state that `accept` takes."""
        seen = 0
        async with asyncio.timeout(30):
            while True:
                for state in self.states[seen:]:
                    seen += 1
                    if accept(state):
                        return state
                self._news.clear()
                await self._news.wait()

    async def reaches(self, wire: Wire) -> dict[str, Any]:
        """The state at the registry's present revision, or after it."""
        revision = await wire.revision()
        return await self.until(lambda state: (state["revision"] or 0) >= revision)

    def lives(self, model: str) -> list[int | None]:
        """Where the alias `live` pointed, each time that it changed."""
        found: list[int | None] = []
        for state in self.states:
            live = state["models"].get(model, {}).get("aliases", {}).get("live")
            if not found or found[-1] != live:
                found.append(live)
        return found


@asynccontextmanager
async def following(target: str, cache: Path) -> AsyncIterator[Following]:
    """A follower at work."""
    client = RegistryClient(channel(target, None, None), cache)
    found = Following(client)
    task = asyncio.create_task(client.follow(found.note))
    try:
        yield found
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await client.close()


@asynccontextmanager
async def fetching(target: str, cache: Path) -> AsyncIterator[RegistryClient]:
    """A client that only fetches."""
    client = RegistryClient(channel(target, None, None), cache)
    try:
        yield client
    finally:
        await client.close()


def entry(version: Any) -> VersionEntry:
    """A version as a catalog has it."""
    files = tuple(ArtifactEntry(a.path, a.size_bytes, a.sha256) for a in version.artifacts)
    model = version.name.split("/")[1]
    return VersionEntry(model, version.version, version.digest, files)


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in below(folder)}


async def test_a_follower_is_told_the_state_and_then_every_change(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    await wire.model()
    await wire.ready(b"1")
    await wire.alias(1)
    async with following(running.target, tmp_path) as follower:
        first = await follower.reaches(wire)
        assert len(follower.states) == 1, "a snapshot is told whole, once"
        model = first["models"]["m"]
        assert (model["task"], model["archived"]) == ("classification", False)
        assert (model["aliases"], list(model["versions"])) == ({"live": 1}, ["1"])
        assert metric("gristmill_registry_connected") == 1

        await wire.ready(b"2")
        for version in (2, 1, 2, 1):
            await wire.alias(version)
        await wire.version({"x": b"not ready"})
        await wire.stub.DeleteAlias(pb.DeleteAliasRequest(name="models/m/aliases/live"))
        request = pb.DeleteModelVersionRequest(name="models/m/versions/1")
        await soon(wire.stub.DeleteModelVersion(request))
        last = await follower.reaches(wire)
        assert follower.lives("m") == [1, 2, 1, 2, 1, None]
        assert list(last["models"]["m"]["versions"]) == ["2"]
        revisions = [state["revision"] for state in follower.states]
        assert revisions == list(range(revisions[0], revisions[-1] + 1))
        await soon(wire.stub.DeleteModel(pb.DeleteModelRequest(name="models/m", force=True)))
        await follower.until(lambda state: "m" not in state["models"])


async def test_a_follower_misses_nothing_while_the_registry_is_killed_and_comes_back(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    await wire.model()
    await wire.ready(b"1")
    await wire.ready(b"2")
    await wire.alias(1)
    async with following(running.target, tmp_path) as follower:
        await follower.reaches(wire)
        for end in (running.kill, running.stop):
            end()
            async with asyncio.timeout(20):
                while metric("gristmill_registry_connected"):
                    await asyncio.sleep(0.01)
            running.start()
            async with running.connected() as again:
                for version in (2, 1, 2, 1):
                    await again.alias(version)
                await follower.reaches(again)
        assert follower.lives("m") == [1, *(2, 1, 2, 1) * 2]
        assert metric("gristmill_registry_connected") == 1
        revisions = [state["revision"] for state in follower.states]
        assert revisions == list(range(revisions[0], revisions[-1] + 1))


async def test_a_follower_starts_from_what_it_remembers_while_the_registry_is_away(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    await wire.model()
    version = entry(await wire.ready(SEED))
    other = entry(await wire.ready(b"never fetched"))
    await wire.alias(1)
    async with following(running.target, tmp_path) as follower:
        known = await follower.reaches(wire)
        await follower.client.fetch(version)
    running.kill()
    async with following(running.target, tmp_path) as follower:
        remembered = await follower.until(lambda state: True)
        assert remembered == known
        assert contents(await follower.client.fetch(version)) == FILES
        with pytest.raises(UpstreamUnavailable, match=r"model\.onnx"):
            await follower.client.fetch(other)
        running.start()
        async with running.connected() as again:
            await again.alias(2)
            await follower.reaches(again)
        assert follower.lives("m") == [1, 2]
        assert contents(await follower.client.fetch(other))["model.onnx"] == weights(
            b"never fetched"
        )


async def test_a_registry_that_begins_anew_is_believed(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    """Its history is shorter than what the follower knows: it asks for the whole again."""
    await wire.model("old")
    empty = RegistryProcess(tmp_path / "other", "--worker=headers")
    async with following(running.target, tmp_path / "cache") as follower:
        await follower.reaches(wire)
        running.kill()
        (tmp_path / "other").mkdir()
        empty.port = running.port
        empty.start()
        try:
            async with empty.connected() as another:
                await another.model("new")
            state = await follower.until(lambda state: "new" in state["models"])
            assert list(state["models"]) == ["new"]
            assert state["revision"] == 1
        finally:
            empty.kill()
            running.start()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '{"revision": 3}',
        '{"revision": 3, "models": []}',
        '{"revision": 3, "models": {"m": {}}}',
        '{"revision": 3, "models": {"m": 7}}',
        '{"revision": 3, "models": {"m": {"task": "x", "archived": false, "aliases": {}, '
        '"versions": {"one": {}}}}}',
        "\0" * 100,
    ],
)
async def test_a_remembered_catalog_that_cannot_be_read_is_forgotten(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "catalog.json").write_text(text)
    async with fetching("127.0.0.1:9", tmp_path) as client:
        assert client.catalog == Catalog()


async def test_a_disk_that_takes_no_catalog_does_not_end_the_following(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    (tmp_path / "catalog.json" / "in the way").mkdir(parents=True)
    async with following(running.target, tmp_path) as follower:
        await follower.reaches(wire)
        await wire.model()
        await follower.until(lambda state: "m" in state["models"])


async def test_a_version_is_fetched_once_and_checked_each_time(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    await wire.model()
    files = FILES | {"sub/copy.onnx": WEIGHTS, "empty": b""}
    created = await wire.version(files)
    for path, data in files.items():
        await wire.upload(created.name, path, data)
    version = entry(await wire.finalize(created.name))
    async with fetching(running.target, tmp_path) as client:
        folders = await asyncio.gather(*(client.fetch(version) for _ in range(4)))
        (folder,) = set(folders)
        assert contents(folder) == files
        assert folder == tmp_path / "versions" / version.digest
        blob = tmp_path / "blobs" / sha(WEIGHTS)
        before = blob.stat()
        assert await client.fetch(version) == folder
        assert blob.stat().st_ino == before.st_ino, "fetched although it was here"
        for damage in (
            lambda: blob.write_bytes(WEIGHTS[:-1] + b"\xfe"),
            lambda: blob.write_bytes(WEIGHTS[:-1]),
            lambda: blob.write_bytes(b""),
            blob.unlink,
            (folder / "model.onnx").unlink,
            lambda: (folder / "sub" / "copy.onnx").unlink(),
        ):
            damage()
            await client.fetch(version)
            assert contents(folder) == files
    assert {path.name for path in below(tmp_path / "blobs")} == {sha(d) for d in files.values()}


async def test_bytes_that_rotted_at_the_registry_are_data_loss(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    await wire.model()
    data = weights(b"to be damaged")
    version = entry(await wire.ready(b"to be damaged"))
    stored = running.data / "artifacts" / "blobs" / sha(data)[:2] / sha(data)
    async with fetching(running.target, tmp_path) as client:
        stored.write_bytes(data[:-1] + b"X")
        for _ in range(2):
            with pytest.raises(DataLoss, match=r"model\.onnx"):
                await client.fetch(version)
        assert [path.name for path in below(tmp_path / "blobs")] == [sha(MANIFEST)]
        assert not stored.exists(), "put aside"
        name = f"models/m/versions/{version.version}"
        await wire.upload(name, "model.onnx", data)
        await wire.finalize(name)
        assert (await client.fetch(version) / "model.onnx").read_bytes() == data


class Hostile:
    """A registry that sends what it likes for as long as it likes."""

    def __init__(self, data: bytes, times: int | None) -> None:
        self._data = data
        self._times = times
        self.sent = 0

    async def download(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """DownloadArtifact."""
        while self._times is None or self.sent < self._times * len(self._data):
            self.sent += len(self._data)
            yield pb.DownloadArtifactResponse(chunk=pb.Chunk(data=self._data))


@asynccontextmanager
async def hostile(behaviour: Hostile) -> AsyncIterator[str]:
    """Its address."""
    handler = grpc.unary_stream_rpc_method_handler(
        behaviour.download,
        request_deserializer=pb.DownloadArtifactRequest.FromString,
        response_serializer=pb.DownloadArtifactResponse.SerializeToString,
    )
    server = grpc.aio.server()
    name = "gristmill.registry.v1.RegistryService"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(name, {"DownloadArtifact": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


BAD = b"pwned"
GOOD = ArtifactEntry("a", len(BAD), sha(BAD))
DIGEST = "d" * 64
PLACES = (
    "../../outside",
    "/tmp/outside",
    "a/../../../outside",
    "..",
    ".",
    "",
    "a//../..",
    "a\0b",
    "../" * 9 + "outside",
    "a\n",
    ".hidden/../../x",
)


@pytest.mark.parametrize("cached", [False, True])
async def test_a_registry_cannot_write_outside_the_cache(tmp_path: Path, cached: bool) -> None:
    cache = tmp_path / "one" / "two" / "cache"
    behaviour = Hostile(BAD, None)
    versions = [VersionEntry("m", 1, DIGEST, (ArtifactEntry(p, 5, sha(BAD)),)) for p in PLACES]
    versions += [VersionEntry("m", 1, place, (GOOD,)) for place in PLACES]
    versions += [VersionEntry("m", 1, DIGEST, (ArtifactEntry("a", 5, p),)) for p in PLACES]
    versions += [VersionEntry("m", 1, "D" * 64, (GOOD,)), VersionEntry("m", 1, "d" * 63, (GOOD,))]
    async with hostile(behaviour) as target, fetching(target, cache) as client:
        if cached:
            (cache / "blobs" / sha(BAD)).write_bytes(BAD)
        before = sorted(tmp_path.rglob("*"))
        for version in versions:
            with pytest.raises(DataLoss):
                await soon(client.fetch(version))
            assert sorted(tmp_path.rglob("*")) == before, version
    assert behaviour.sent == 0, "nothing is asked for that has no place to go"


async def test_a_registry_cannot_fill_the_disk(tmp_path: Path) -> None:
    behaviour = Hostile(b"x" * 1_000_000, None)
    version = VersionEntry("m", 1, DIGEST, (ArtifactEntry("a", 1000, "a" * 64),))
    async with hostile(behaviour) as target, fetching(target, tmp_path) as client:
        with pytest.raises(DataLoss):
            await soon(client.fetch(version))
    assert behaviour.sent < 50_000_000
    assert list(below(tmp_path)) == []


@pytest.mark.parametrize("data", [b"", b"pwneX", b"pwn", b"pwnedpwned"])
async def test_what_is_not_what_the_catalog_says_is_not_kept(tmp_path: Path, data: bytes) -> None:
    version = VersionEntry("m", 1, DIGEST, (GOOD,))
    async with hostile(Hostile(data or b"?", int(bool(data)))) as target:
        async with fetching(target, tmp_path) as client:
            with pytest.raises(DataLoss):
                await soon(client.fetch(version))
    assert list(below(tmp_path)) == []


async def test_a_follower_hears_only_of_what_its_task_can_use(
    running: RegistryProcess, wire: Wire, tmp_path: Path
) -> None:
    await wire.model("c")
    await wire.ready(b"1", "c")
    await wire.model("g", model_pb2.TASK_GENERATION)
    await wire.alias(1, "models/c/aliases/live")
    async with following(running.target, tmp_path) as follower:
        await follower.reaches(wire)
        catalog = follower.client.catalog
        assert list(catalog.wanted("classification")) == ["c"]
        assert catalog.wanted("generation") == {}, "it has no alias `live`"
        assert list(catalog.wanted("generation", frozenset({"g"}))) == ["g"]
