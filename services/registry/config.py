"""The settings of the registry."""

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.registry.sources.choosing import MOST_BYTES
from services.registry.sources.settings import SourceId, SourceSettings
from services.runtime.config import ServerConfig


class RegistryConfig(ServerConfig):
    """What the registry can be told."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_REGISTRY_")

    port: int = Field(default=50051, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    admin_port: int = Field(default=9151, ge=-1, le=65535)
    """Port for /metrics (HTTP); 0 takes a free one, -1 opens none."""
    data_dir: Path = Path("data/registry")
    """Folder of the embedded database and, unless they are kept elsewhere, of the artifacts."""
    database: str = Field(default="", repr=False)
    """postgresql://user:password@host/name, for several replicas; empty: SQLite in data_dir."""
    artifacts: str = ""
    """Where artifacts are: s3://bucket/prefix, gs://, az://, or a folder; empty: in data_dir."""
    artifact_options: dict[str, str] = Field(default={}, repr=False)
    """Options of an object store, such as endpoint and region; the rest from its environment."""
    fsync_every_bytes: int = Field(default=8 * 2**20, ge=1)
    """An upload is made durable, and acknowledged, each time this much has come."""
    collect_every_s: float = Field(default=3600.0, ge=0)
    """How often bytes that no version holds are removed; 0: never."""
    collect_min_age_s: float = Field(default=86_400.0, ge=0)
    """Younger bytes are left alone."""

    watch_page: int = Field(default=500, ge=1, le=10_000)
    """Changes that a watcher is read at once."""
    watch_keep_changes: int = Field(default=100_000, ge=1)
    """A watcher further behind than this begins with a snapshot; the history is kept whole."""
    watch_send_timeout_s: float = Field(default=20.0, gt=0)
    """A watcher that leaves a message unread for so long is cut."""

    sources: dict[SourceId, SourceSettings] = Field(default={})
    """Where models may be imported from, by ids such as hub; each has a kind: huggingface
    (endpoint, token_file), object_store (url, options) or folder (path)."""
    import_max_bytes: int = Field(default=MOST_BYTES, ge=1)
    """A larger model is not imported."""

    worker: Literal["embedded", "external", "headers"] = "embedded"
    """Who runs models: children of this process, worker processes elsewhere, or nobody (files are
    still checked)."""
    worker_python: str = ""
    """The interpreter of the children, for an environment of their own; empty: this one."""
    worker_memory_bytes: int = Field(default=8 * 2**30, ge=2**28)
    """Most memory of a child."""
    worker_time_s: float = Field(default=3600.0, gt=0)
    """Most time of a child."""
    lease_s: float = Field(default=30.0, gt=0)
    """A job whose worker is silent for so long is given to another."""
    allow_pickle: bool = False
    """Take formats that execute what they read, such as TorchScript. Trust every uploader first."""

    @property
    def lease(self) -> timedelta:
        """How long a lease holds."""
        return timedelta(seconds=self.lease_s)
