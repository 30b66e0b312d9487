"""`kill -9` in the middle of uploads: what was acknowledged is there, and nothing is half there.

Pushers and a watcher keep books of their own. The moment of each kill is a number of messages,
drawn from a seed and counted as they are sent and answered.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.registry.v1 import model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from tests.harness import SOON_S, soon
from tests.unit.registry.parts import MANIFEST, below, sha, weights
from tests.unit.registry.wire import RegistryProcess, Sending, Wire, artifacts

EVERY = 16 * 1024
PUSHERS = 3
READY = model_pb2.VERSION_STATE_READY
UPLOADING = model_pb2.VERSION_STATE_UPLOADING


class Killed(Exception):
    """The registry was killed."""


@dataclass
class Push:
    """One version that a pusher makes, and how far it came."""

    op: str
    model: str
    files: dict[str, bytes]
    version: str = ""
    """Its name, once its creation was acknowledged."""
    durable: dict[str, int] = field(default_factory=dict)
    """Acknowledged bytes, by path."""
    whole: set[str] = field(default_factory=set)
    """The paths of which all was acknowledged as checked."""
    ready: bool = False
    done: bool = False


@dataclass
class Books:
    """All that was acknowledged."""

    pushes: list[Push] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    """The version each model's alias was last acknowledged to point to."""
    asked: dict[str, str] = field(default_factory=dict)
    """The version it was last asked to point to."""
    told: list[tuple[int, str, int, str]] = field(default_factory=list)
    """Every change that the watcher was told."""


def _line(change: Any) -> tuple[int, str, int, str]:
    after = change.after
    kind = after.WhichOneof("resource")
    return (change.revision, change.name, change.kind, getattr(after, kind).etag if kind else "")


class Fuse:
    """Kills the registry at a certain message."""

    def __init__(self, process: RegistryProcess, messages: int) -> None:
        self._process = process
        self._left = messages
        self.blown = False

    def count(self) -> None:
        """One more message was sent or answered."""
        if self.blown:
            raise Killed
        self._left -= 1
        if self._left <= 0:
            self.blown = True
            self._process.kill()
            raise Killed


class Pusher:
    """Makes versions of one model, one after the other, and moves its alias to each."""

    def __init__(self, number: int, rng: random.Random, books: Books) -> None:
        self._model = f"model-{number}"
        self._rng = rng
        self._books = books
        self._count = 0

    async def run(self, wire: Wire, fuse: Fuse) -> None:
        """Push until the registry dies; what was begun before is ended first."""
        with suppress(Killed, grpc.aio.AioRpcError):
            await self._model_there(wire)
            while True:
                await self.finish(wire, fuse)
                self._begin()

    async def finish(self, wire: Wire, fuse: Fuse) -> None:
        """Bring to its end whatever was begun."""
        for push in self._books.pushes:
            if push.model == self._model and not push.done:
                await self._push(wire, fuse, push)

    def _begin(self) -> None:
        self._count += 1
        seed = self._rng.randbytes(self._rng.randrange(1, 300_000))
        files = {"model.yaml": MANIFEST, "model.onnx": weights(seed)}
        if self._rng.random() < 0.3:
            files["shared.dat"] = random.Random(len(self._books.pushes) // 4).randbytes(150_000)
        op = f"{self._model}-{self._count}"
        self._books.pushes.append(Push(op, self._model, files))

    async def _model_there(self, wire: Wire) -> None:
        try:
            await wire.model(self._model)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise

    async def _push(self, wire: Wire, fuse: Fuse, push: Push) -> None:
        if not push.version:
            version = model_pb2.ModelVersion(
                artifacts=artifacts(push.files), labels={"op": push.op}
            )
            answer = await soon(
                wire.stub.CreateModelVersion(
                    pb.CreateModelVersionRequest(
                        parent=f"models/{push.model}", version=version, request_id=push.op
                    )
                )
            )
            push.version = answer.version.name
            fuse.count()
        for path, data in push.files.items():
            await self._upload(wire, fuse, push, path, data)
        if not push.ready:
            found = await wire.finalize(push.version)
            assert found.state == READY, found.rejections
            push.ready = True
            fuse.count()
        name = f"models/{push.model}/aliases/live"
        self._books.asked[name] = push.version
        await wire.alias(int(push.version.rpartition("/")[2]), name)
        self._books.aliases[name] = push.version
        push.done = True
        fuse.count()

    async def _upload(self, wire: Wire, fuse: Fuse, push: Push, path: str, data: bytes) -> None:
        while path not in push.whole:
            try:
                await self._send(Sending(wire.stub), fuse, push, path, data)
            except grpc.aio.AioRpcError as error:
                # Another pusher has the same bytes in hand: the newer call goes on.
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise
                await asyncio.sleep(self._rng.random() * 0.02)

    async def _send(self, sending: Sending, fuse: Fuse, push: Push, path: str, data: bytes) -> None:
        answer = await sending.start(push.version, path)
        known = answer.durable_bytes
        assert known >= push.durable.get(path, 0), "acknowledged bytes are gone"
        at = known
        most = self._rng.choice((4_000, 60_000))  # small runs wait in buffers, large ones do not
        while at < len(data):
            run = data[at : at + self._rng.randrange(1, most)]
            await sending.send(at, run)
            at += len(run)
            fuse.count()
            if at - known >= EVERY:
                known = (await sending.answer()).durable_bytes
                assert known == at
                push.durable[path] = known
                fuse.count()
        while not answer.complete:
            answer = await sending.answer()
        assert answer.durable_bytes == len(data)
        push.durable[path] = len(data)
        push.whole.add(path)
        fuse.count()


async def watch(wire: Wire, books: Books) -> None:
    """Note every change from where the books end, until the registry dies."""
    after = books.told[-1][0] if books.told else 0
    with suppress(grpc.aio.AioRpcError):
        async for response in wire.stub.Watch(pb.WatchRequest(after_revision=after)):
            if response.WhichOneof("event") == "change":
                assert response.change.revision == response.revision
                books.told.append(_line(response.change))


async def changes(wire: Wire, after: int) -> list[tuple[int, str, int, str]]:
    """All changes after a revision, up to now."""
    last = await wire.revision()
    found: list[tuple[int, str, int, str]] = []
    call = wire.stub.Watch(pb.WatchRequest(after_revision=after))
    while not found or found[-1][0] < last:
        if last == after:
            break
        response = await soon(call.read())
        if response.WhichOneof("event") == "change":
            found.append(_line(response.change))
    call.cancel()
    return found


async def everything(wire: Wire) -> AsyncIterator[Any]:
    """All resources, as a watch's snapshot has them."""
    call = wire.stub.Watch(pb.WatchRequest())
    while True:
        response = await soon(call.read())
        if response.WhichOneof("event") == "bookmark":
            break
        yield response.snapshot
    call.cancel()


async def settled(wire: Wire) -> None:
    """Wait for the checks that the registry took up again: they make changes of their own."""
    while left := (await soon(wire.operations("ListOperations", filter="done = false"))).operations:
        await soon(wire.wait(left[0].name))


async def check(wire: Wire, books: Books) -> None:
    """Hold a registry that came back against the books."""
    await settled(wire)
    versions, aliases = {}, {}
    async with aclosing(everything(wire)) as resources:
        async for resource in resources:
            if resource.HasField("version"):
                versions[resource.version.name] = resource.version
            elif resource.HasField("alias"):
                aliases[resource.alias.name] = resource.alias
    begun = {push.op: push for push in books.pushes}
    ops = [version.labels["op"] for version in versions.values()]
    assert len(ops) == len(set(ops)), "one request made two versions"
    for version in versions.values():
        push = begun[version.labels["op"]]
        assert push.version in ("", version.name)
        if version.state == READY:
            for path, data in push.files.items():
                found = await wire.download(version.name, path)
                assert sha(found) == sha(data), f"{version.name} {path}"
        else:
            assert version.state == UPLOADING
    for push in books.pushes:
        assert not push.version or push.version in versions
        if push.version:
            version = await wire.get(push.version)
            assert push.whole <= {one.path for one in version.artifacts if one.stored}
        assert not push.ready or versions[push.version].state == READY
    for name, alias in aliases.items():
        target = f"{name.partition('/aliases/')[0]}/versions/{alias.version}"
        assert versions[target].state == READY
        assert target in (books.aliases.get(name), books.asked[name])
    assert set(books.aliases) <= set(aliases)
    await check_watch(wire, books)


async def check_watch(wire: Wire, books: Books) -> None:
    """The history is what the watcher was told, and goes on from there without a gap."""
    full = await changes(wire, 0)
    revisions = [revision for revision, *_ in full]
    assert revisions == sorted(set(revisions))
    assert full[: len(books.told)] == books.told
    rng = random.Random(len(full))
    for after in {0, rng.choice(revisions), revisions[-1]}:
        assert await changes(wire, after) == [line for line in full if line[0] > after]


def check_disk(data: Path) -> None:
    """Every stored file has the digest that its name says."""
    for path in below(data / "artifacts" / "blobs"):
        assert sha(path.read_bytes()) == path.name


@pytest.fixture
def process(tmp_path: Path) -> Iterator[RegistryProcess]:
    """A registry that acknowledges each 16 KiB."""
    found = RegistryProcess(tmp_path, "--worker=headers", f"--fsync-every-bytes={EVERY}")
    yield found
    found.kill()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("rounds", "seed"), [(5, 20260102), pytest.param(50, 4711, marks=pytest.mark.soak)]
)
async def test_what_was_acknowledged_survives_a_kill(
    process: RegistryProcess, rounds: int, seed: int
) -> None:
    rng, books = random.Random(seed), Books()
    pushers = [Pusher(n, random.Random(rng.random()), books) for n in range(PUSHERS)]
    for number in range(rounds):
        process.start(f"--transport={('native', 'grpcio')[number % 2]}")
        async with process.connected() as wire:
            if number:
                await check(wire, books)
            fuse = Fuse(process, rng.randrange(5, 150))
            watching = asyncio.create_task(watch(wire, books))
            async with asyncio.timeout(3 * SOON_S):
                await asyncio.gather(*(pusher.run(wire, fuse) for pusher in pushers))
            assert fuse.blown
            await soon(watching)
        check_disk(process.data)
    process.start()
    async with process.connected() as wire:
        await check(wire, books)
        unhurt = Fuse(process, 10**9)
        for pusher in pushers:
            await pusher.finish(wire, unhurt)
        await check(wire, books)
    assert all(push.done for push in books.pushes)
    assert len(books.pushes) >= rounds
    assert books.told
    assert process.stop() == 0
    check_disk(process.data)
