"""What the registry costs beside bare limits: bytes, references, watchers, pages, an import.

    python -m bench.registry [--megabytes 256] [--watchers 1000] [--versions 100000]
                             [--database postgresql://...]

Each figure stands beside a bare one of the same run. Needs h2load (Debian's nghttp2-client).
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
from google.longrunning import operations_pb2
from google.protobuf import duration_pb2
from gristmill.registry.v1 import alias_pb2, artifact_pb2, model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as rpc
from grpc_health.v1 import health_pb2

from services.registry.database import Database
from services.registry.resources import ArtifactRecord, VersionRecord
from services.registry.tables import VERSIONS

CHUNK = 1 << 20
RESOLVE = "/gristmill.registry.v1.RegistryService/ResolveModel"
CHECK = "/grpc.health.v1.Health/Check"
MANIFEST = b"""schema: gristmill.dev/model/v1
name: m
task: classification
backend: onnxruntime
files: {model: model.onnx}
input: {kind: float_features}
"""
Timed = Callable[[], Awaitable[float]]


def weights(megabytes: int) -> bytes:
    """An ONNX model of about this size that does nothing."""
    from onnx import TensorProto, helper

    held = helper.make_tensor(
        "held", TensorProto.UINT8, [megabytes << 20], os.urandom(megabytes << 20), raw=True
    )
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 2]) for n in "xy"]
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [held])
    opsets = [helper.make_opsetid("", 17)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@contextmanager
def registry(folder: Path, *flags: str) -> Iterator[int]:
    """A registry process; gives its port."""
    log = folder / "registry.log"
    command = [sys.executable, "-m", "services.registry", "--port=0", "--admin-port=-1"]
    command += [f"--data-dir={folder / 'data'}", "--worker=headers", *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        while not (found := re.search(r'"address": "[^"]*:(\d+)"', log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text())
            time.sleep(0.05)
        yield int(found[1])
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


class Bare(rpc.RegistryServiceServicer):
    """Takes and gives bytes and does nothing with them."""

    async def UploadArtifact(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Count to the end."""
        total = 0
        async for request in requests:
            total += len(request.chunk.data)
        yield pb.UploadArtifactResponse(durable_bytes=total, complete=True)

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """As many chunks as the length asks for."""
        data = bytes(CHUNK)
        for at in range(0, request.length, CHUNK):
            yield pb.DownloadArtifactResponse(chunk=pb.Chunk(offset=at, data=data))


@contextmanager
def bare() -> Iterator[int]:
    """A bare server as a process of its own; gives its port."""
    command = [sys.executable, "-m", "bench.registry", "--bare"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("no standard output")
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def serve_bare() -> None:
    """What the process of `bare` does."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 16 << 20)])
    rpc.add_RegistryServiceServicer_to_server(Bare(), server)  # type: ignore[abstract]  # the others are not called
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await server.wait_for_termination()


def channel(port: int) -> grpc.aio.Channel:
    """A connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20))
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


async def upload(stub: Any, version: str, path: str, data: bytes) -> float:
    """Seconds to send bytes until they are acknowledged as complete."""
    call = stub.UploadArtifact()
    started = time.perf_counter()
    if version:
        start = pb.UploadStart(version=version, path=path)
        await call.write(pb.UploadArtifactRequest(start=start))
        await call.read()
    for at in range(0, len(data), CHUNK):
        chunk = pb.Chunk(offset=at, data=data[at : at + CHUNK])
        await call.write(pb.UploadArtifactRequest(chunk=chunk))
    await call.done_writing()
    while (answer := await call.read()) is not grpc.aio.EOF and not answer.complete:
        pass
    return time.perf_counter() - started


async def download(stub: Any, **fields: Any) -> float:
    """Seconds to receive bytes."""
    started = time.perf_counter()
    async for _ in stub.DownloadArtifact(pb.DownloadArtifactRequest(**fields)):
        pass
    return time.perf_counter() - started


def copied(data: bytes, folder: Path) -> float:
    """Seconds to write bytes to a file and make it durable."""
    started = time.perf_counter()
    with (folder / "copy").open("wb") as file:
        for at in range(0, len(data), CHUNK):
            file.write(data[at : at + CHUNK])
        file.flush()
        os.fsync(file.fileno())
    return time.perf_counter() - started


async def create(stub: Any, files: dict[str, bytes]) -> str:
    """A new version of the model `m`, in state uploading."""
    artifacts = [
        artifact_pb2.Artifact(
            path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()
        )
        for path, data in files.items()
    ]
    request = pb.CreateModelVersionRequest(
        parent="models/m", version=model_pb2.ModelVersion(artifacts=artifacts)
    )
    return str((await stub.CreateModelVersion(request)).version.name)


async def ended(connection: Any, name: str) -> operations_pb2.Operation:
    """An operation when it has ended."""
    wait = connection.unary_unary(
        "/google.longrunning.Operations/WaitOperation",
        request_serializer=operations_pb2.WaitOperationRequest.SerializeToString,
        response_deserializer=operations_pb2.Operation.FromString,
    )
    timeout = duration_pb2.Duration(seconds=20)
    while True:
        found: operations_pb2.Operation = await wait(
            operations_pb2.WaitOperationRequest(name=name, timeout=timeout)
        )
        if found.done:
            if found.HasField("error"):
                raise RuntimeError(found.error.message)
            return found


async def transfers(connection: Any, bare_port: int, data: bytes, folder: Path) -> None:
    """Upload and download beside a bare stream and a durable copy; the best of three each."""
    stub: Any = rpc.RegistryServiceStub(connection)
    mib = len(data) / 2**20
    best: dict[str, float] = {}

    def note(name: str, seconds: float) -> None:
        best[name] = max(best.get(name, 0.0), mib / seconds)

    async with channel(bare_port) as other:
        plain: Any = rpc.RegistryServiceStub(other)
        for n in range(3):
            note("bare up", await upload(plain, "", "", data))
            fresh = data + str(n).encode()
            version = await create(stub, {"model.bin": fresh})
            note("upload", await upload(stub, version, "model.bin", fresh))
            note("copy", await asyncio.to_thread(copied, data, folder))
            note("bare down", await download(plain, length=len(data)))
            note("download", await download(stub, version=version, path="model.bin"))
    for name, limits in (("upload", ("bare up", "copy")), ("download", ("bare down",))):
        ratios = ", ".join(
            f"{best[name] / best[limit]:.2f} of {limit} ({best[limit]:,.0f})" for limit in limits
        )
        print(f"{name:<24}{best[name]:>10,.0f} MiB/s   {ratios}")


def load(port: int, path: str, body: bytes, calls: int) -> float:
    """Calls a second of one method, from 64 callers."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(struct.pack(">BI", 0, len(body)) + body)
        file.flush()
        result = subprocess.run(
            [
                *("h2load", "-n", str(calls), "-c", "8", "-m", "8", "-t", "1", "-d", file.name),
                *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                f"http://127.0.0.1:{port}{path}",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    rate = re.search(r"([\d.]+) req/s", result)
    if rate is None or f"{calls} succeeded" not in result:
        raise RuntimeError(result)
    return float(rate[1])


async def watchers(stub: Any, port: int, count: int) -> None:
    """Time from the request of an alias move to each watcher's message."""
    channels = [channel(port) for _ in range(8)]
    moves, arrivals = 20, asyncio.Queue[tuple[int, float]]()
    ready = asyncio.Semaphore(0)

    async def watch(one: Any) -> None:
        call = rpc.RegistryServiceStub(one).Watch(pb.WatchRequest())
        async for response in call:
            if response.bookmark.snapshot_complete:
                ready.release()
            elif response.HasField("change") and response.change.after.HasField("alias"):
                arrivals.put_nowait((response.revision, time.perf_counter()))

    tasks = [asyncio.create_task(watch(channels[n % 8])) for n in range(count)]
    for _ in range(count):
        await ready.acquire()
    delays: list[float] = []
    for n in range(moves):
        alias = alias_pb2.Alias(name="models/m/aliases/live", version=2 - n % 2)
        started = time.perf_counter()
        await stub.SetAlias(pb.SetAliasRequest(alias=alias))
        delays += [(await arrivals.get())[1] - started for _ in range(count)]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for one in channels:
        await one.close()
    cuts = statistics.quantiles(delays, n=100)
    print(
        f"{'alias move to watchers':<24}{cuts[49] * 1000:>10.1f} ms p50   "
        f"{cuts[98] * 1000:.1f} ms p99, {max(delays) * 1000:.1f} ms worst; {count} watchers"
    )


async def fill(database: Database, count: int) -> None:
    """Versions 3 to `count` of the model, written past the wire: the API would take minutes."""
    now = datetime.now(UTC)
    artifacts = (ArtifactRecord(path="model.onnx", size_bytes=1, sha256="0" * 64),)
    for begin in range(10, count, 5000):
        rows = []
        for number in range(begin, min(begin + 5000, count)):
            record = VersionRecord(
                model="m",
                version=number,
                state="ready" if number % 10 else "rejected",
                artifacts=artifacts,
                labels={"team": f"t{number % 100}"},
                metrics={"accuracy": number % 997 / 997},
                create_time=now,
            )
            body = record.model_dump_json()
            rows.append({"model": "m", "version": number, "state": record.state, "body": body})
        async with database.write() as connection:
            await connection.execute(VERSIONS.insert(), rows)


async def pages(stub: Any, count: int) -> None:
    """A page of 50 out of many versions: first, far in, filtered, ordered."""
    token = ""
    for _ in range(20):
        request = pb.ListModelVersionsRequest(parent="models/m", page_size=1000, page_token=token)
        token = (await stub.ListModelVersions(request)).next_page_token
    asked = {
        "first page": {},
        "page after 20,000": {"page_token": token},
        "page of a filter": {"filter": "state = REJECTED AND labels.team = t50"},
        "page of an order": {"order_by": "metrics.accuracy desc"},
    }
    for name, fields in asked.items():
        times = []
        for _ in range(10):
            request = pb.ListModelVersionsRequest(parent="models/m", page_size=50, **fields)
            started = time.perf_counter()
            answer = await stub.ListModelVersions(request)
            times.append(time.perf_counter() - started)
            if len(answer.versions) != 50:
                raise RuntimeError(f"{name}: {len(answer.versions)} versions")
        middle = statistics.median(times) * 1000
        print(f"{name:<24}{middle:>10.1f} ms       50 of {count:,} versions")


async def imported(connection: Any, stub: Any, megabytes: int, copy_s: float) -> None:
    """A model from a folder to READY, beside a durable copy of its bytes."""
    request = pb.ImportModelRequest(parent="models/m", source="here", path="large")
    started = time.perf_counter()
    answer = await stub.ImportModel(request)
    await ended(connection, answer.operation.name)
    seconds = time.perf_counter() - started
    ratio = f"{megabytes} MiB; {seconds / copy_s:.1f} times a durable copy"
    print(f"{'import to READY':<24}{seconds:>10.2f} s        {ratio}")


async def measure(options: argparse.Namespace, folder: Path) -> None:
    """All figures, each printed as it is known."""
    data = weights(options.megabytes)
    large = folder / "source" / "large"
    large.mkdir(parents=True)
    (large / "model.onnx").write_bytes(weights(250))
    (large / "model.yaml").write_bytes(MANIFEST)
    settings = folder / "registry.yaml"
    sources = {"here": {"kind": "folder", "path": str(folder / "source")}}
    settings.write_text(json.dumps({"sources": sources}))
    flags = [f"--config={settings}"]
    flags += [f"--database={options.database}"] if options.database else []
    small = weights(1)
    with registry(folder, *flags) as port, bare() as bare_port:
        async with channel(port) as connection:
            stub: Any = rpc.RegistryServiceStub(connection)
            model = model_pb2.Model(task=model_pb2.TASK_CLASSIFICATION)
            await stub.CreateModel(pb.CreateModelRequest(model_id="m", model=model))
            for _ in range(2):
                files = {"model.onnx": small, "model.yaml": MANIFEST}
                version = await create(stub, files)
                for path, content in files.items():
                    await upload(stub, version, path, content)
                request = pb.FinalizeModelVersionRequest(name=version)
                answer = await stub.FinalizeModelVersion(request)
                await ended(connection, answer.operation.name)
            alias = alias_pb2.Alias(name="models/m/aliases/live", version=1)
            await stub.SetAlias(pb.SetAliasRequest(alias=alias))
            await transfers(connection, bare_port, data, folder)
            reference = pb.ResolveModelRequest(model=model_pb2.ModelRef(model="m"))
            no_op = health_pb2.HealthCheckRequest().SerializeToString()
            for path, body in ((CHECK, no_op), (RESOLVE, reference.SerializeToString())):
                load(port, path, body, 2000)
            idle = load(port, CHECK, no_op, 20000)
            resolved = load(port, RESOLVE, reference.SerializeToString(), 20000)
            ratio = f"{resolved / idle:.2f} of a no-op call ({idle:,.0f})"
            print(f"{'resolve':<24}{resolved:>10,.0f} calls/s {ratio}")
            await watchers(stub, port, options.watchers)
            copy_s = copied((large / "model.onnx").read_bytes(), folder)
            await imported(connection, stub, 250, copy_s)
    database = Database(options.database or folder / "data" / "registry.db")
    await fill(database, options.versions)
    await database.close()
    with registry(folder, *flags) as port:
        async with channel(port) as connection:
            await pages(rpc.RegistryServiceStub(connection), options.versions)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--watchers", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--database", default="")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        asyncio.run(serve_bare())
        return
    if shutil.which("h2load") is None:
        sys.exit("h2load is needed: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measure(options, Path(name)))


if __name__ == "__main__":
    main()
