"""A disk that fails under the registry: old state or new state, a clear error, nothing else.

Each step on the disk that a publish takes is made to fail in turn, by strace, until a publish comes
through without having met the fault. Then a full disk, and single bytes that rot.

The short form takes at most 4 steps of each kind, spread from the first to the last: about half of
the fsyncs, one in 12 of the database's writes, all of the others. `make soak` takes every one.
"""

import asyncio
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as serving
from gristmill.classifier.v1 import classifier_service_pb2_grpc as serving_rpc
from gristmill.classifier.v1 import item_pb2, loaded_model_pb2
from gristmill.registry.v1 import alias_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from tests.harness import SOON_S, reason, soon
from tests.unit.registry.parts import MANIFEST, below, sha, weights
from tests.unit.registry.wire import (
    ROOT,
    START_S,
    RegistryProcess,
    Sending,
    Wire,
    artifacts,
    registry,
)

READY = model_pb2.VERSION_STATE_READY
EVERY = 16 * 1024
LIVE = "models/m/aliases/live"
NEVER = 60_000
"""No publish has so many steps."""
STORAGE_FULL = "RESOURCE_EXHAUSTED/STORAGE_FULL"
CALLS = ("fsync", "fdatasync", "write", "pwrite64", "rename")


@dataclass
class Publish:
    """A new version with an artifact in three chunks, and the alias moved to it; step by step."""

    number: int
    version: str = ""
    """Its name, once that was acknowledged."""
    whole: bool = False
    ready: bool = False
    live: bool = False
    errors: list[Any] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        """Its bytes, which no other publish has."""
        data = weights(random.Random(self.number).randbytes(3 * EVERY - 200))
        return {"model.yaml": MANIFEST, "model.onnx": data}

    async def run(self, wire: Wire) -> None:
        """Take the steps that were not acknowledged yet; the first failure ends it."""
        try:
            await self._run(wire)
        except grpc.aio.AioRpcError as error:
            self.errors.append(error)

    async def _run(self, wire: Wire) -> None:
        version = model_pb2.ModelVersion(artifacts=artifacts(self.files))
        request = pb.CreateModelVersionRequest(
            parent="models/m", version=version, request_id=f"publish-{self.number}"
        )
        self.version = (await soon(wire.stub.CreateModelVersion(request))).version.name
        for path, data in self.files.items():
            await _upload(wire, self.version, path, data)
        self.whole = True
        found = await wire.finalize(self.version)
        assert found.state == READY, found.rejections
        self.ready = True
        alias = alias_pb2.Alias(name=LIVE, version=int(self.version.rpartition("/")[2]))
        await soon(wire.stub.SetAlias(pb.SetAliasRequest(alias=alias)))
        self.live = True


async def _upload(wire: Wire, version: str, path: str, data: bytes) -> None:
    sending = Sending(wire.stub)
    answer = await sending.start(version, path)
    at = answer.durable_bytes
    while not answer.complete:
        if at < len(data):
            run = data[at : at + EVERY]
            await sending.send(at, run)
            at += len(run)
            if len(run) < EVERY:
                await sending.call.done_writing()
        answer = await sending.answer()
    while await sending.answer() is not None:
        pass


class Strace:
    """Makes the n-th call of one kind fail, in each thread that the registry has, on its data."""

    def __init__(self, process: RegistryProcess, log: Path) -> None:
        self._process = process
        self._log = log

    @contextmanager
    def failing(self, call: str, n: int, error: str, publish: Publish) -> Iterator[None]:
        """Until the end of the block."""
        pid = registry_pid(self._process)
        tasks = sorted(os.listdir(f"/proc/{pid}/task"), key=int)
        command = ["strace", "-qq", "-o", str(self._log), "-e", f"trace={call}"]
        command += ["-e", f"inject={call}:error={error}:when={n}"]
        for path in watched(self._process.data, publish):
            command += ["-P", str(path)]
        # Its children are left alone; they work for it and not on its data.
        command += [word for task in tasks for word in ("-p", task)]
        self._log.unlink(missing_ok=True)
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE)
        try:
            _until_traced(pid, tasks, tracer)
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.communicate(timeout=SOON_S)

    @property
    def steps(self) -> int:
        """The most calls that one thread made."""
        threads = Counter(line.split()[0] for line in self._log.read_text().splitlines())
        return max(threads.values())

    @property
    def fired(self) -> int:
        """How often it made a call fail."""
        return self._log.read_text().count("(INJECTED)") if self._log.exists() else 0


def registry_pid(process: RegistryProcess) -> int:
    """The id of the process."""
    running = process._process
    assert running is not None
    return running.pid


def watched(data: Path, publish: Publish) -> Iterator[Path]:
    """The files and folders that a publish writes to."""
    blobs, uploads = data / "artifacts" / "blobs", data / "artifacts" / "uploads"
    yield from (data / f"registry.db{tail}" for tail in ("", "-wal", "-shm", "-journal"))
    yield from (blobs, uploads)
    for bytes_ in publish.files.values():
        digest = sha(bytes_)
        yield from (uploads / digest, blobs / digest[:2], blobs / digest[:2] / digest)


def _until_traced(pid: int, tasks: list[str], tracer: "subprocess.Popen[bytes]") -> None:
    pattern = re.compile(rf"TracerPid:\s+{tracer.pid}\b")
    for task in tasks:
        status = Path(f"/proc/{pid}/task/{task}/status")
        while not pattern.search(status.read_text()):
            assert tracer.poll() is None, tracer.stderr and tracer.stderr.read()


async def check(wire: Wire, publishes: list[Publish]) -> None:
    """Old state or new state: nothing acknowledged is gone, nothing ready lacks its bytes."""
    versions = (
        await soon(
            wire.stub.ListModelVersions(
                pb.ListModelVersionsRequest(parent="models/m", page_size=1000)
            )
        )
    ).versions
    by_name = {version.name: version for version in versions}
    last = publishes[-1]
    named = {publish.version for publish in publishes if publish.version}
    assert named <= by_name.keys(), "an acknowledged version is gone"
    assert len(by_name) <= len(publishes), "one request made two versions"
    for publish in publishes[-2:]:
        version = by_name.get(publish.version)
        if version is None:
            continue
        assert not publish.ready or version.state == READY
        if publish.whole:
            assert version.state != READY or await _whole(wire, publish)
            assert all(one.stored for one in (await wire.get(version.name)).artifacts) or (
                version.state == READY
            )
    for version in versions:
        if version.name not in named and version.state == READY:
            raise AssertionError("a version became ready that nobody finalized")
    alias = (await soon(wire.stub.GetAlias(pb.GetAliasRequest(name=LIVE)))).alias
    old = publishes[-2].version.rpartition("/")[2]
    new = last.version.rpartition("/")[2]
    assert str(alias.version) in ((new,) if last.live else (old, new))
    assert by_name[f"models/m/versions/{alias.version}"].state == READY


async def _whole(wire: Wire, publish: Publish) -> bool:
    for path, data in publish.files.items():
        assert await wire.download(publish.version, path) == data
    return True


@pytest.fixture
def process(tmp_path: Path) -> Iterator[RegistryProcess]:
    """A registry that acknowledges each 16 KiB."""
    # A check whose end the disk did not take is begun again when its lease has run out.
    found = RegistryProcess(
        tmp_path, f"--fsync-every-bytes={EVERY}", "--worker=headers", "--lease-s=1"
    )
    yield found
    found.kill()


async def published(process: RegistryProcess, publish: Publish) -> Publish:
    """A publish that meets nothing; the registry has its threads then."""
    async with process.connected() as wire:
        await publish.run(wire)
    assert publish.live, publish.errors
    return publish


async def fail(
    process: RegistryProcess, strace: Strace, call: str, n: int, publishes: list[Publish]
) -> str:
    """A publish that meets the n-th failure, and a restart; gives what the client was told."""
    publish = Publish(len(publishes))
    publishes.append(publish)
    async with process.connected() as wire:
        with strace.failing(call, n, "EIO", publish):
            await publish.run(wire)
    process.kill()
    process.start()
    async with process.connected() as wire:
        await check(wire, publishes)
        told = [f"{error.code().name}/{reason(error)}" for error in publish.errors]
        await publish.run(wire)
        assert publish.live, publish.errors
        await check(wire, publishes)
    return told[0] if told else "nothing"


def spread(steps: int, most: int) -> list[int]:
    """Of so many steps the first, the last, and others evenly between, `most` in all."""
    count = min(steps, most)
    return sorted({1 + index * (steps - 1) // max(1, count - 1) for index in range(count)})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("most", [4, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("call", CALLS)
async def test_each_step_on_the_disk_fails_in_turn(
    process: RegistryProcess, tmp_path: Path, call: str, most: int
) -> None:
    strace, told = Strace(process, tmp_path / "strace.log"), Counter[str]()
    process.start()
    async with process.connected() as wire:
        await wire.model()
        publishes = [await published(process, Publish(0)), Publish(1)]
        with strace.failing(call, NEVER, "EIO", publishes[1]):
            await publishes[1].run(wire)
    steps = strace.steps
    chosen = spread(steps, most)
    for n in chosen:
        publishes.append(await published(process, Publish(len(publishes))))
        said = await fail(process, strace, call, n, publishes)
        if strace.fired:
            told[said] += 1
    print(f"{call}: {len(chosen)} of {steps} steps, told {dict(told)}")
    assert sum(told.values()) >= (len(chosen) + 1) // 2, "too few steps failed"
    # A failure that no client hears of is one of a step that is taken again: the end of a check.
    assert told.keys() <= {"UNAVAILABLE/STORAGE_FAILED", "nothing"}


class Full:
    """A disk without room: a small file system of its own, or a limit on the size of all files."""

    def __init__(self, process: RegistryProcess, *, mounted: bool) -> None:
        self._process = process
        self._filler = process.data / "filler"
        process.data.mkdir()
        self.mounted = mounted and not _run(
            "mount", "-t", "tmpfs", "-o", "size=16m", "t", process.data
        )

    def fill(self) -> None:
        """Leave no room."""
        if not self.mounted:
            self._limit(0)
            return
        with self._filler.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room(self) -> None:
        """Give it back."""
        if self.mounted:
            self._filler.unlink()
        else:
            self._limit(resource.RLIM_INFINITY)

    def close(self) -> None:
        """Unmount."""
        if self.mounted:
            assert _run("umount", self._process.data) == 0

    def _limit(self, size: int) -> None:
        hard = resource.RLIM_INFINITY
        resource.prlimit(registry_pid(self._process), resource.RLIMIT_FSIZE, (size, hard))


def _run(*command: object) -> int:
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, check=False).returncode


async def refused(writing: Any) -> set[str]:
    """What a write is refused with."""
    try:
        await writing
    except grpc.aio.AioRpcError as error:
        return {f"{error.code().name}/{reason(error)}"}
    return set()


async def readable(wire: Wire, publish: Publish) -> None:
    """All the ways to read go on."""
    assert await _whole(wire, publish)
    number = int(publish.version.rpartition("/")[2])
    assert len((await soon(wire.stub.ListModels(pb.ListModelsRequest()))).models) == 1
    found = await soon(wire.stub.ResolveModel(pb.ResolveModelRequest(model={"model": "m"})))
    assert (found.version.version, found.chosen_by) == (number, "live")
    for request in (pb.WatchRequest(), pb.WatchRequest(after_revision=0)):
        call = wire.stub.Watch(request)
        assert (await soon(call.read())).WhichOneof("event") in ("snapshot", "change")
        call.cancel()


@pytest.mark.parametrize("mounted", [True, False], ids=["tmpfs", "limit"])
async def test_a_full_disk_is_readable_refuses_and_recovers(tmp_path: Path, mounted: bool) -> None:
    process = RegistryProcess(tmp_path, f"--fsync-every-bytes={EVERY}", "--worker=headers")
    full = Full(process, mounted=mounted)
    try:
        process.start()
        async with process.connected() as wire:
            await wire.model()
            old, new = await published(process, Publish(0)), Publish(1)
            model = model_pb2.Model(name="models/m", description="x" * 4096)
            update = pb.UpdateModelRequest(model=model)
            full.fill()
            await readable(wire, old)
            told: set[str] = set()
            for _ in range(2000):
                # Room that the database has already, it goes on to use.
                told |= await refused(soon(wire.stub.UpdateModel(update)))
                if told:
                    break
            assert told == {STORAGE_FULL if full.mounted else "UNAVAILABLE/STORAGE_FAILED"}
            for _ in range(2):
                new = Publish(1)
                await new.run(wire)
                assert not new.live
            await readable(wire, old)
            full.make_room()
            new = Publish(2)
            await new.run(wire)
            assert new.live, new.errors
            await readable(wire, new)
            # An upload that meets the end of the room goes on where it was acknowledged.
            cut = Publish(3)
            version = await wire.version(cut.files)
            full.fill()
            data = cut.files["model.onnx"]
            assert await refused(_upload(wire, version.name, "model.onnx", data)) == {STORAGE_FULL}
            full.make_room()
            await cut.run(wire)
            assert cut.live, cut.errors
            await readable(wire, cut)
    finally:
        process.kill()
        full.close()


FLIPS = 50


async def test_a_flipped_byte_is_data_loss_and_nothing_is_deleted(tmp_path: Path) -> None:
    async with registry(tmp_path / "r", "native", fsync_every_bytes=EVERY) as wire:
        await wire.model()
        publish = Publish(0)
        await publish.run(wire)
        assert publish.live, publish.errors
        data = publish.files["model.onnx"]
        blobs = wire.parts.root / "artifacts"
        rng = random.Random(7)
        places = {0, len(data) - 1, *rng.sample(range(1, len(data) - 1), FLIPS - 2)}
        for number, place in enumerate(sorted(places), 1):
            damaged = flip(blobs, data, place)
            failed = await refused(wire.download(publish.version, "model.onnx"))
            assert failed == {"DATA_LOSS/ARTIFACT_CORRUPT"}
            found = await wire.get(publish.version)
            assert found.state == model_pb2.VERSION_STATE_QUARANTINED
            assert {one.path: one.stored for one in found.artifacts}["model.onnx"] is False
            kept = {path.read_bytes() for path in below(blobs / "quarantine")}
            assert damaged in kept
            assert len(kept) == number
            alias = (await soon(wire.stub.GetAlias(pb.GetAliasRequest(name=LIVE)))).alias
            assert alias.version == 1
            await _upload(wire, publish.version, "model.onnx", data)
            assert (await wire.finalize(publish.version)).state == READY
            assert await wire.download(publish.version, "model.onnx") == data


def flip(blobs: Path, data: bytes, place: int) -> bytes:
    """Flip a bit of a stored blob as rot does, which leaves the times as they are."""
    path = blobs / "blobs" / sha(data)[:2] / sha(data)
    before = path.stat()
    damaged = bytearray(data)
    damaged[place] ^= 1 << place % 8
    path.chmod(0o600)
    path.write_bytes(damaged)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return bytes(damaged)


VECTORS = b"""schema: gristmill.dev/model/v1
name: vectors
task: classification
backend: onnxruntime
files: {model: model.onnx}
input: {kind: float_features}
output: {labels: [a, b]}
"""


@contextmanager
def classifier(folder: Path, registry: str) -> Iterator[str]:
    """`python -m services.classifier`; gives its address."""
    log = folder / "classifier.log"
    flags = ["--port=0", "--admin-port=-1", f"--registry={registry}", f"--cache-dir={folder}/cache"]
    with log.open("wb") as out:
        command = [sys.executable, "-m", "services.classifier", *flags]
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT)
    try:
        ends = time.monotonic() + START_S
        while '"event": "listening"' not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < ends, log.read_text()
            time.sleep(0.02)
        line = next(one for one in log.read_text().splitlines() if '"event": "listening"' in one)
        yield "127.0.0.1:" + json.loads(line)["address"].rpartition(":")[2]
    finally:
        process.kill()
        process.wait()


async def listed(stub: Any, accept: Any) -> list[Any]:
    """What a classifier has loaded, once that is as it should be."""
    async with asyncio.timeout(START_S):
        while True:
            models = list((await stub.ListLoadedModels(serving.ListLoadedModelsRequest())).models)
            if accept({one.version: one for one in models}):
                return models
            await asyncio.sleep(0.05)


async def test_a_classifier_goes_on_with_the_old_version(
    process: RegistryProcess, tmp_path: Path
) -> None:
    process.start()
    async with process.connected() as wire:
        await wire.model()
        versions = []
        for seed in (b"old", b"new"):
            files = {"model.yaml": VECTORS, "model.onnx": weights(seed)}
            version = await wire.version(files)
            for path, data in files.items():
                await wire.upload(version.name, path, data)
            assert (await wire.finalize(version.name)).state == READY
            versions.append(version)
        await wire.alias(1)
        with classifier(tmp_path, process.target) as target:
            async with grpc.aio.insecure_channel(target) as channel:
                stub: Any = serving_rpc.ClassifierServiceStub(channel)
                ready = loaded_model_pb2.LOAD_STATE_READY
                await listed(stub, lambda found: 1 in found and found[1].state == ready)
                flip(process.data / "artifacts", weights(b"new"), 50)
                await wire.alias(2)
                failed = loaded_model_pb2.LOAD_STATE_FAILED
                models = await listed(stub, lambda found: 2 in found and found[2].state == failed)
                states = {one.version: one for one in models}
                assert states[1].state == ready
                assert states[2].reason
                item = item_pb2.Item(float_features=item_pb2.FloatFeatures(values=[1.0, 3.0]))
                request = serving.ClassifyRequest(items=[item])
                answer = await soon(stub.Classify(request))
                assert answer.version == 1
                assert answer.results[0].WhichOneof("outcome") == "classification"
        found = await wire.get(versions[1].name)
        assert found.state == model_pb2.VERSION_STATE_QUARANTINED
