"""The settings of a process that follows the registry, and what it needs to do so."""

from pathlib import Path

from services.runtime.config import ServerConfig


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
