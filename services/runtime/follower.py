"""What a process that follows the registry shares with others: settings, and how it begins."""

import asyncio
from pathlib import Path
from typing import Protocol

from services.runtime.catalog import Catalog
from services.runtime.config import ServerConfig
from services.runtime.registry_client import RegistryClient
from services.runtime.server import Server, Service


class FollowerConfig(ServerConfig):
    """What every service that serves models can be told."""

    registry: str = "localhost:50051"
    """Address of the registry."""
    registry_ca: Path | None = None
    """PEM certificates that sign the registry; set, the connection uses TLS."""
    registry_token_file: Path | None = None
    """File that holds the token shown to the registry."""
    cache_dir: Path = Path("data/cache")
    """Folder for fetched models and the last catalog seen."""
    models: frozenset[str] = frozenset()
    """Serve only these models; empty: all of this service's task with an alias `live`."""


class Follower(Protocol):
    """What is told of the catalog."""

    synced: asyncio.Event

    async def update(self, catalog: Catalog) -> None:
        """The registry says something new."""
        ...


async def begin(
    server: Server, service: Service, registry: RegistryClient, follower: Follower
) -> None:
    """Follow the registry until the drain; say SERVING once what should be served was tried."""
    following = asyncio.ensure_future(registry.follow(follower.update))
    waiting = asyncio.ensure_future(follower.synced.wait())
    waiting.add_done_callback(lambda done: None if done.cancelled() else server.ready())

    def stop() -> None:
        following.cancel()
        waiting.cancel()

    service.on_drain.append(stop)
