"""The servers that `bench.overhead` measures: a bare no-op, the classifier on a fake backend."""

import asyncio
import cProfile
import json
import os
import pstats
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc

from services.classifier.classifier import Classifier
from services.classifier.servicer import ClassifierServicer
from services.classifier.starter import Starter
from services.classifier.traffic import Traffic
from services.inference.serving import Serving
from services.runtime import logs, transports
from services.runtime.catalog import Catalog, VersionEntry
from services.runtime.config import ServerConfig, load
from services.runtime.health import Health
from services.runtime.server import Server, Service, main


class BareServicer(rpc.ClassifierServiceServicer):
    """Answers at once with nothing."""

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> Any:  # noqa: N802
        return pb.ClassifyResponse()


async def fetch(entry: VersionEntry) -> Path:
    """The folder that `python -m models build` made."""
    root = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")
    return root / "models" / entry.model


async def ours(config: ServerConfig) -> Server:
    """The classifier with everything around it, on the model of four numbers."""
    starter = Starter(ThreadPoolExecutor(1))
    serving: Serving[Classifier] = Serving("classification", fetch, starter.start)
    catalog = Catalog(1)
    catalog.set_model("iris", "classification", archived=False)
    catalog.set_version(VersionEntry("iris", 1, "d", ()), servable=True)
    catalog.set_alias("iris", "live", 1)
    await serving.update(catalog)
    await serving.synced.wait()
    servicer = ClassifierServicer(serving, Traffic(serving))
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
