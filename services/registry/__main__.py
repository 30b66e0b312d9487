"""The registry's composition root: config, the registry, server."""

import sys

from services.registry.config import RegistryConfig
from services.registry.registry import Registry
from services.runtime import logs
from services.runtime.config import load
from services.runtime.errors import GristmillError
from services.runtime.health import Health
from services.runtime.server import CannotStart, Server, main


async def run(config: RegistryConfig) -> None:
    """Serve until a signal."""
    registry = Registry(config)
    try:
        await registry.open()
    except GristmillError as error:
        raise CannotStart(error.message) from error
    server = Server(config, registry.service(), Health())

    async def started() -> None:
        server.ready()

    await server.run(started)


if __name__ == "__main__":
    settings = load(RegistryConfig, sys.argv[1:])
    logs.configure("registry", settings.log_level, settings.log_format)
    main(lambda: run(settings))
