"""A registry over real sockets: in this process on either transport, or as a process of its own."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import grpc
from google.protobuf import duration_pb2, message_factory
from gristmill.registry.v1 import alias_pb2, artifact_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as rpc

from services.registry import operations
from tests.harness import SOON_S, Served, collect, serve, soon
from tests.unit.registry.parts import MANIFEST, Parts, opened, sha, weights

ROOT = Path(__file__).parents[3]
CHUNK = 256 * 1024
START_S = 60.0


def artifacts(files: dict[str, bytes]) -> list[artifact_pb2.Artifact]:
    """What a version declares of its files."""
    return [
        artifact_pb2.Artifact(path=path, size_bytes=len(data), sha256=sha(data))
        for path, data in files.items()
    ]


class Sending:
    """One UploadArtifact call, step by step."""

    def __init__(self, stub: Any) -> None:
        self.call = stub.UploadArtifact()

    async def start(self, version: str, path: str) -> Any:
        """Name the artifact; gives the first answer."""
        start = pb.UploadStart(version=version, path=path)
        await soon(self.call.write(pb.UploadArtifactRequest(start=start)))
        return await self.answer()

    async def send(self, offset: int, data: bytes) -> None:
        """Send a run of bytes; what it brings is read with `answer`."""
        chunk = pb.Chunk(offset=offset, data=data)
        await soon(self.call.write(pb.UploadArtifactRequest(chunk=chunk)))

    async def answer(self) -> Any:
        """The next answer; the end of the call is None, a failure an AioRpcError."""
        found = await soon(self.call.read())
        if found is not grpc.aio.EOF:
            return found
        if await soon(self.call.code()) is not grpc.StatusCode.OK:
            raise AssertionError("the call ended with no error that read() told of")
        return None

    async def failure(self) -> Any:
        """The error that ends the call, whatever is answered before."""
        try:
            while await self.answer() is not None:
                pass
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError("the call ended in order")


@dataclass
class Wire:
    """A client of a registry, in the words of the tests."""

    channel: Any

    def __post_init__(self) -> None:
        self.stub: Any = rpc.RegistryServiceStub(self.channel)

    async def model(self, model: str = "m", task: int = model_pb2.TASK_CLASSIFICATION) -> Any:
        """Create a model."""
        request = pb.CreateModelRequest(model_id=model, model=model_pb2.Model(task=task))  # type: ignore[arg-type]  # a test may name one that does not exist
        return (await soon(self.stub.CreateModel(request))).model

    async def version(self, files: dict[str, bytes], model: str = "m", **fields: Any) -> Any:
        """Create a version."""
        version = model_pb2.ModelVersion(artifacts=artifacts(files), **fields)
        request = pb.CreateModelVersionRequest(parent=f"models/{model}", version=version)
        return (await soon(self.stub.CreateModelVersion(request))).version

    async def upload(self, version: str, path: str, data: bytes, chunk: int = CHUNK) -> list[int]:
        """Upload all of an artifact from where it stands; gives the durable offsets.

        Where another call has the same bytes in hand, either may be told to begin again.
        """
        while True:
            try:
                return await self._upload(Sending(self.stub), version, path, data, chunk)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.ABORTED:
                    raise
                await asyncio.sleep(random.random() * 0.02)

    async def _upload(
        self, sending: Sending, version: str, path: str, data: bytes, chunk: int
    ) -> list[int]:
        answers = [await sending.start(version, path)]
        if not answers[0].complete:
            at = answers[0].durable_bytes
            while at < len(data):
                await sending.send(at, data[at : at + chunk])
                at += chunk
            await sending.call.done_writing()
        while (answer := await sending.answer()) is not None:
            answers.append(answer)
        assert answers[-1].complete
        return [answer.durable_bytes for answer in answers]

    async def finalize(self, version: str) -> Any:
        """Finalize a version; gives it as the operation's response has it."""
        answer = await soon(
            self.stub.FinalizeModelVersion(pb.FinalizeModelVersionRequest(name=version))
        )
        ended = await soon(self.wait(answer.operation.name))
        assert ended.done, ended
        found = model_pb2.ModelVersion()
        assert ended.response.Unpack(found), ended.error
        return found

    async def ready(self, seed: bytes = b"w", model: str = "m", **fields: Any) -> Any:
        """A version that may be served."""
        files = {"model.yaml": MANIFEST, "model.onnx": weights(seed)}
        version = await self.version(files, model, **fields)
        for path, data in files.items():
            await self.upload(version.name, path, data)
        found = await self.finalize(version.name)
        assert found.state == model_pb2.VERSION_STATE_READY, found.rejections
        return found

    async def get(self, version: str) -> Any:
        """Read a version."""
        request = pb.GetModelVersionRequest(name=version)
        return (await soon(self.stub.GetModelVersion(request))).version

    async def alias(self, version: int, name: str = "models/m/aliases/live", **fields: Any) -> Any:
        """Create or move an alias."""
        alias = alias_pb2.Alias(name=name, version=version, **fields)
        return (await soon(self.stub.SetAlias(pb.SetAliasRequest(alias=alias)))).alias

    async def download(self, version: str, path: str, offset: int = 0, length: int = 0) -> bytes:
        """Read bytes, checking that each run follows on the one before."""
        request = pb.DownloadArtifactRequest(
            version=version, path=path, offset=offset, length=length
        )
        found = b""
        for response in await collect(self.stub.DownloadArtifact(request)):
            assert response.chunk.offset == offset + len(found) or not response.chunk.data
            assert len(response.chunk.data) <= 1 << 20
            found += response.chunk.data
        return found

    async def operations(self, method: str, **fields: Any) -> Any:
        """A call of google.longrunning.Operations."""
        described = operations.SERVICE.methods_by_name[method]
        request = message_factory.GetMessageClass(described.input_type)
        answer = message_factory.GetMessageClass(described.output_type)
        call = self.channel.unary_unary(
            f"/google.longrunning.Operations/{method}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return await call(request(**fields))

    async def operation(self, name: str) -> Any:
        """What google.longrunning.Operations says of an operation."""
        return await self.operations("GetOperation", name=name)

    async def wait(self, name: str, seconds: int = 15) -> Any:
        """An operation when it has ended."""
        timeout = duration_pb2.Duration(seconds=seconds)
        return await self.operations("WaitOperation", name=name, timeout=timeout)

    async def revision(self) -> int:
        """The newest revision."""
        return int((await soon(self.stub.GetServerInfo(pb.GetServerInfoRequest()))).revision)


@dataclass
class Here(Wire):
    """A registry in this process."""

    parts: Parts
    served: Served


@asynccontextmanager
async def registry(
    root: Path, transport: str, *, fsync_every_bytes: int = 1 << 20, **settings: Any
) -> AsyncIterator[Here]:
    """A registry in this process, put together as its own entry does."""
    async with opened(root, fsync_every_bytes=fsync_every_bytes, **settings) as parts:
        async with serve(parts.service(), transport) as served:
            yield Here(served.channel, parts, served)


class RegistryProcess:
    """`python -m services.registry`, on one folder and, once it has one, on one port."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.data = folder / "data"
        self._log = folder / "registry.log"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def start(self, *flags: str) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("wb") as log:
            self._process = self._spawned(log, *flags)
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            assert self._process.poll() is None, self._log.read_text()
            for line in self._log.read_text().splitlines():
                if '"event": "listening"' in line:
                    self.port = int(json.loads(line)["address"].rpartition(":")[2])
                    return
            time.sleep(0.02)
        raise AssertionError("the registry did not come up: " + self._log.read_text())

    def _spawned(self, log: IO[bytes], *more: str) -> "subprocess.Popen[bytes]":
        here = (f"--data-dir={self.data}", f"--port={self.port}", "--admin-port=-1")
        flags = (*here, *self._flags, *more)
        bare = {k: v for k, v in os.environ.items() if not k.startswith("GRISTMILL_")}
        if bare.pop("PYTHONDONTWRITEBYTECODE", ""):
            # Compiling everything anew takes longer than the rest of a start.
            bare["PYTHONPYCACHEPREFIX"] = str(self._log.with_name("compiled"))
        return subprocess.Popen(
            [sys.executable, "-m", "services.registry", *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=ROOT,
            env=bare,
        )

    def kill(self) -> None:
        """End it as a crash does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(SOON_S)
            self._process = None

    def stop(self) -> int:
        """Ask it to drain; gives its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(SOON_S)
        self._process = None
        return status

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Wire]:
        """A client on a connection of its own."""
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(self.target, options=options) as channel:
            async with asyncio.timeout(SOON_S):
                await channel.channel_ready()
            yield Wire(channel)
