"""The servers that `bench.classifier` measures: a bare no-op, ours, and other ways of batching.

    python -m bench.classifier_server MODE TRANSPORT MODEL [PROFILED_CALLS]

MODE is `bare`, `ours` (as the model's own model.yaml says), `unbatched` (a batch of one on an
instance for each core) or `fifo-N` (padded batches of N in order of arrival, on all cores).
"""

import asyncio
import atexit
import cProfile
import json
import os
import pstats
import shutil
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import yaml
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc

from services.classifier.classifier import Classifier
from services.classifier.servicer import ClassifierServicer
from services.classifier.starter import Starter
from services.classifier.traffic import Traffic
from services.inference import batcher
from services.inference.manifest import FILE_NAME
from services.inference.scheduler import Entry, Released, Scheduler
from services.inference.serving import Serving
from services.runtime import logs, transports
from services.runtime.catalog import Catalog, VersionEntry
from services.runtime.config import ServerConfig, load
from services.runtime.health import Health
from services.runtime.server import Server, Service, main

CACHE = Path(os.environ.get("GRISTMILL_CACHE") or Path.home() / ".cache" / "gristmill")


class BareServicer(rpc.ClassifierServiceServicer):
    """Answers at once with nothing."""

    async def Classify(self, request: pb.ClassifyRequest, context: Any) -> Any:  # noqa: N802
        return pb.ClassifyResponse()


class Fifo(Scheduler):
    """What others do: whatever came first, padded to the longest."""

    def _fill(self, free_instances: int) -> tuple[list[Entry], Released]:
        return [entry for _, entry in self._waiting[: self.max_batch_size]], "size"


def batching_of(mode: str) -> dict[str, Any]:
    """What a mode changes in the model.yaml."""
    cores = os.cpu_count() or 1
    if mode == "unbatched":
        return {"max_batch_size": 1, "instances": cores}
    if mode.startswith("fifo-"):
        return {"max_batch_size": int(mode[5:]), "instances": 1}
    return {}


async def ours(mode: str, model: str, config: ServerConfig) -> Server:
    """The classifier with everything around it, on a model that `python -m models build` made."""
    scratch = Path(tempfile.mkdtemp(prefix="gristmill-bench-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)

    async def fetch(entry: VersionEntry) -> Path:
        folder = CACHE / "models" / entry.model
        for file in folder.iterdir():
            (scratch / file.name).symlink_to(file)
        manifest = yaml.safe_load((folder / FILE_NAME).read_text())
        if changes := batching_of(mode):
            manifest["batching"] = manifest["batching"] | {"max_batch_tokens": 0} | changes
        (scratch / FILE_NAME).unlink()
        (scratch / FILE_NAME).write_text(yaml.safe_dump(manifest))
        return scratch

    if mode.startswith("fifo-"):
        vars(batcher)["Scheduler"] = Fifo  # all else stays the same
    starter = Starter(ThreadPoolExecutor(2))
    serving: Serving[Classifier] = Serving("classification", fetch, starter.start)
    catalog = Catalog(1)
    catalog.set_model(model, "classification", archived=False)
    catalog.set_version(VersionEntry(model, 1, "d", ()), servable=True)
    catalog.set_alias(model, "live", 1)
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
    return sorted(rows, reverse=True)[:12]


async def run(mode: str, config: ServerConfig, model: str, profiled: int) -> None:
    """Serve until SIGTERM; print the port and the metrics' port first, and a profile last."""
    server: Any
    admin = 0
    if mode == "bare":
        server, port = await bare(config)
    else:
        served = await ours(mode, model, config)
        server, port, admin = served._grpc, served.port, served.admin_port or 0
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    profile = cProfile.Profile() if profiled else None
    if profile:
        profile.enable()
    sys.stdout.write(f"{port} {admin}\n")
    sys.stdout.flush()
    await stop.wait()
    if profile:
        profile.disable()
        sys.stdout.write(json.dumps(top(profile, profiled)) + "\n")
    await server.stop(0)


if __name__ == "__main__":
    settings = load(ServerConfig, [f"--transport={sys.argv[2]}"])
    logs.configure("bench", "error", "json")
    calls = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    main(lambda: run(sys.argv[1], settings, sys.argv[3], calls))
