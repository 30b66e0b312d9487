"""The settings of the registry."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.config import ServerConfig


class RegistryConfig(ServerConfig):
    """What the registry can be told."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_REGISTRY_")

    port: int = Field(default=50051, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    admin_port: int = Field(default=9151, ge=-1, le=65535)
    """Port for /metrics (HTTP); 0 takes a free one, -1 opens none."""
    data_dir: Path = Path("data/registry")
    """Folder of the embedded database and of the artifacts."""
    fsync_every_bytes: int = Field(default=8 * 2**20, ge=1)
    """An upload is made durable, and acknowledged, each time this much has come."""
    watch_page: int = Field(default=500, ge=1, le=10_000)
    """Changes that a watcher is read at once."""
