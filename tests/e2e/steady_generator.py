"""A generator of its own process whose engine takes a known time for a step.

The real server, admission, queue and streams; only the model is not one: it repeats its prompt.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from pydantic_settings import SettingsConfigDict

from services.generator.engines.fake import FakeEngine
from services.generator.generator import Generator, Limits
from services.generator.servicer import GeneratorServicer
from services.inference.manifest import Manifest
from services.runtime import logs
from services.runtime.admission import Admission
from services.runtime.admission import Limits as QueueLimits
from services.runtime.config import ServerConfig, load
from services.runtime.health import Health
from services.runtime.server import Server, Service, main
from tests.unit.generator.stack import manifest, serving


class Config(ServerConfig):
    """The settings of this process."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_STEADY_GENERATOR_")

    folder: Path = Path()
    """Where the model's description goes."""
    step_ms: float = 20.0
    """What a step takes, of whatever size."""
    max_running: int = 8
    """Prompts in a step."""
    max_queue: int = 64
    """Prompts waiting or running."""


async def _steps(engine: FakeEngine, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    at = loop.time()
    while True:
        at += seconds
        await asyncio.sleep(max(0.0, at - loop.time()))
        engine.step()


async def run(config: Config) -> None:
    """Serve until a signal."""
    engine = FakeEngine()
    clock = asyncio.get_running_loop().time
    with ThreadPoolExecutor(1) as threads:
        queue = Admission(QueueLimits(config.max_queue, 10**9), clock)
        limits = Limits(max_running=config.max_running)
        one = Generator(Manifest.parse(manifest(512)), engine, queue, threads, limits, clock)
        servicer = GeneratorServicer(await serving(one, config.folder))
        service = Service(
            "generator", servicers=[(rpc.add_GeneratorServiceServicer_to_server, servicer)]
        )
        server = Server(config, service, Health())
        stepping = asyncio.ensure_future(_steps(engine, config.step_ms / 1000))

        async def started() -> None:
            server.ready()

        await server.run(started)
        stepping.cancel()


if __name__ == "__main__":
    settings = load(Config, sys.argv[1:])
    logs.configure("steady-generator", settings.log_level, settings.log_format)
    main(lambda: run(settings))
