"""The servers that `bench.overhead` measures: a bare no-op, the classifier on a fake backend."""

import asyncio
import cProfile
import json
import pstats
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc

from services.classifier.classifier import Classifier
from services.classifier.servicer import ClassifierServicer
from services.inference.backends.fake import FakeBackend
from services.inference.batcher import Batcher
from services.inference.manifest import Manifest
from services.inference.meter import Meter
from services.inference.preprocessing import FeaturesPreprocessor
from services.inference.serving import Serving
from services.runtime import logs, transports
from services.runtime.admission import Admission, Limits
from services.runtime.catalog import Catalog, VersionEntry
from services.runtime.config import ServerConfig, load
from services.runtime.health import Health
from services.runtime.server import Server, Service, main

MANIFEST = """
schema: gristmill.dev/model/v1
name: noop
task: classification
backend: onnxruntime
files: {model: none.onnx}
input: {kind: float_features, names: [a, b, c, d]}
output: {labels: [low, high]}
batching: {max_batch_size: 64}
"""


class BareServicer(rpc.ClassifierServiceServicer):
    """Answers at once with nothing."""

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> Any:  # noqa: N802
        return pb.ClassifyResponse()


async def fetch(entry: VersionEntry) -> Path:
    """A folder with the manifest alone."""
    folder = Path("/tmp") / f"gristmill-bench-{entry.digest}"  # noqa: S108  # holds no secret
    folder.mkdir(exist_ok=True)
    (folder / "model.yaml").write_text(MANIFEST)
    return folder


async def start(entry: VersionEntry, manifest: Manifest, folder: Path) -> Classifier:
    """The real path, on a backend that costs next to nothing."""
    backend = FakeBackend()
    if manifest.input is None:
        raise ValueError("the manifest has an input")
    preprocessor = FeaturesPreprocessor(manifest.input, backend.inputs)
    batcher = Batcher([backend.instance()], manifest.batching, {}, Meter("noop", 1))
    admission = Admission(Limits(100_000, 2**40), time.monotonic)
    return Classifier(manifest, backend, preprocessor, batcher, admission, ThreadPoolExecutor(1))


async def ours(config: ServerConfig) -> Server:
    """The classifier with everything around it."""
    serving: Serving[Classifier] = Serving("classification", fetch, start)
    catalog = Catalog(1)
    catalog.set_model("noop", "classification", archived=False)
    catalog.set_version(VersionEntry("noop", 1, "d", ()), servable=True)
    catalog.set_alias("noop", "live", 1)
    await serving.update(catalog)
    await serving.synced.wait()
    servicer = ClassifierServicer(serving, 5)  # type: ignore[abstract]
    service = Service("bench", [(rpc.add_ClassifierServiceServicer_to_server, servicer)])
    server = Server(config, service, Health())
    await server.start()
    return server


async def bare(config: ServerConfig) -> tuple[grpc.aio.Server, int]:
    """The transport with a handler that does nothing."""
    name, _ = transports.choose(config)
    server, port = transports.build(name, config)
    rpc.add_ClassifierServiceServicer_to_server(BareServicer(), server)  # type: ignore[abstract]
    await server.start()
    return server, port


def top(profile: cProfile.Profile, calls: int) -> list[list[Any]]:
    """Functions by their own time: microseconds a call, calls a call, where."""
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # not in the stubs
    rows = [
        [own / calls * 1e6, count / calls, f"{Path(file).name}:{name}"]
        for (file, _, name), (_, count, own, _, _) in stats.items()
    ]
    return sorted(rows, reverse=True)[:14]


async def run(mode: str, config: ServerConfig, profiled: int) -> None:
    """Serve until SIGTERM; print the port first, and a profile last where one was asked for."""
    server: Any
    if mode == "bare":
        server, port = await bare(config)
    else:
        served = await ours(config)
        server, port = served._grpc, served.port
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    profile = cProfile.Profile() if profiled else None
    if profile:
        profile.enable()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await stop.wait()
    if profile:
        profile.disable()
        sys.stdout.write(json.dumps(top(profile, profiled)) + "\n")
    await server.stop(0)


if __name__ == "__main__":
    settings = load(ServerConfig, [f"--transport={sys.argv[2]}", "--admin-port=-1"])
    logs.configure("bench", "error", "json")
    main(lambda: run(sys.argv[1], settings, int(sys.argv[3])))
