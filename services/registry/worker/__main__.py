"""A worker apart from its registry: leases jobs over gRPC and runs each in a confined child."""

import asyncio
import sys
from contextlib import suppress

from services.registry.worker.config import WorkerConfig
from services.registry.worker.confine import Limits, keep_from_children
from services.registry.worker.remote import RemoteDesk
from services.registry.worker.runner import Runner
from services.registry.worker.sandbox import Sandbox
from services.runtime import logs, registry_client
from services.runtime.config import load
from services.runtime.health import Health
from services.runtime.server import Server, Service, main


async def run(config: WorkerConfig) -> None:
    """Work until a signal; what is in hand then is given back."""
    channel = registry_client.channel(
        config.registry, config.registry_ca, config.registry_token_file
    )
    sandbox = Sandbox(
        Limits(config.memory_bytes, round(config.time_s)),
        config.time_s,
        **({"python": config.python} if config.python else {}),
    )
    if config.scratch_dir is not None:
        config.scratch_dir.mkdir(parents=True, exist_ok=True)
    keep_from_children()
    runner = Runner(
        RemoteDesk(channel), sandbox, allow_pickle=config.allow_pickle, scratch=config.scratch_dir
    )
    working: list[asyncio.Task[None]] = []

    async def stop() -> None:
        for task in working:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await channel.close()

    # Health and metrics only: nobody calls a worker.
    server = Server(config, Service("worker", on_close=[stop]), Health())

    async def started() -> None:
        working.extend(asyncio.create_task(runner.run()) for _ in range(config.jobs))
        server.ready()

    await server.run(started)


if __name__ == "__main__":
    settings = load(WorkerConfig, sys.argv[1:])
    logs.configure("worker", settings.log_level, settings.log_format)
    main(lambda: run(settings))
