"""The settings of a worker that runs apart from its registry."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.config import ServerConfig


class WorkerConfig(ServerConfig):
    """What a worker can be told."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_WORKER_")

    port: int = Field(default=50054, ge=0, le=65535)
    """Port for health; 0 takes a free one."""
    admin_port: int = Field(default=9155, ge=-1, le=65535)
    """Port for /metrics (HTTP); 0 takes a free one, -1 opens none."""
    registry: str = "localhost:50051"
    """Address of the registry."""
    registry_ca: Path | None = None
    """PEM certificates that sign the registry; set, the connection uses TLS."""
    registry_token_file: Path | None = None
    """File that holds the token shown to the registry; it needs the scope admin."""
    scratch_dir: Path | None = None
    """Folder for the files of jobs in hand; absent: the system's folder for temporary files."""
    jobs: int = Field(default=1, ge=1, le=64)
    """How many jobs run at once."""
    python: str = ""
    """The interpreter of the children, for an environment of their own; empty: this one."""
    memory_bytes: int = Field(default=8 * 2**30, ge=2**28)
    """Most memory of a child."""
    time_s: float = Field(default=3600.0, gt=0)
    """Most time of a child."""
    allow_pickle: bool = False
    """Take formats that execute what they read, such as TorchScript. Trust every uploader first."""
