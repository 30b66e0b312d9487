"""The server that `bench.generator` measures: an engine behind our gRPC, without a registry.

python -m bench.generator_server openvino|vllm TRANSPORT MODEL
"""

import asyncio
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gristmill.generator.v1 import generator_service_pb2_grpc as rpc

from services.generator.engine import EngineSettings
from services.generator.engines.openvino import OpenVinoEngine
from services.generator.engines.process import EngineProcess
from services.generator.engines.vllm import VllmEngine
from services.generator.generator import Generator, Limits
from services.generator.servicer import GeneratorServicer
from services.inference.manifest import Manifest
from services.inference.serving import Serving
from services.runtime import logs
from services.runtime.admission import Admission
from services.runtime.admission import Limits as QueueLimits
from services.runtime.catalog import Catalog, VersionEntry
from services.runtime.config import ServerConfig, load
from services.runtime.health import Health
from services.runtime.server import Server, Service, main

SEQUENCES = 64
VLLM_PYTHON = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"


def engine_of(kind: str, model: Path) -> EngineProcess:
    """The engine as `generator_bare` has it."""
    if kind == "openvino":
        return OpenVinoEngine(model, EngineSettings(1, SEQUENCES, 512))
    return VllmEngine(model, EngineSettings(1, SEQUENCES, 2048, 2048), str(VLLM_PYTHON))


async def run(kind: str, config: ServerConfig, model: Path) -> None:
    """Serve until SIGTERM; print the port first."""
    engine = engine_of(kind, model)
    await engine.start()

    folder = model if model.is_dir() else model.parent  # noqa: ASYNC240  # before anything runs

    async def fetch(entry: VersionEntry) -> Path:
        return folder

    async def start(entry: VersionEntry, manifest: Manifest, folder: Path) -> Generator:
        queue = Admission(QueueLimits(1000, 10**9), time.monotonic)
        threads = ThreadPoolExecutor(2)
        return Generator(manifest, engine, queue, threads, Limits(max_running=SEQUENCES))

    serving: Serving[Generator] = Serving("generation", fetch, start)
    catalog = Catalog(1)
    catalog.set_model("m", "generation", archived=False)
    catalog.set_version(VersionEntry("m", 1, "d", ()), servable=True)
    catalog.set_alias("m", "live", 1)
    await serving.update(catalog)
    await serving.synced.wait()
    servicer = GeneratorServicer(serving)
    service = Service("bench", [(rpc.add_GeneratorServiceServicer_to_server, servicer)])
    server = Server(config, service, Health())
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    sys.stdout.write(f"{server.port} {engine.pid}\n")
    sys.stdout.flush()
    await stop.wait()
    await server._grpc.stop(0)
    await serving.close()


if __name__ == "__main__":
    settings = load(ServerConfig, [f"--transport={sys.argv[2]}"])
    logs.configure("bench", "error", "json")
    main(lambda: run(sys.argv[1], settings, Path(sys.argv[3])))
