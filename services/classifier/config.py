"""The settings of the classifier."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.follower import FollowerConfig


class ClassifierConfig(FollowerConfig):
    """What the classifier can be told. How items are batched is the model's own `model.yaml`."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_CLASSIFIER_")

    port: int = Field(default=50052, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    admin_port: int = Field(default=9152, ge=-1, le=65535)
    """Port for /metrics (HTTP); 0 takes a free one, -1 opens none."""
    cache_dir: Path = Path("data/cache/classifier")
    """Folder for fetched models and the last catalog seen."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime execution providers, best first; empty: CPU."""
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:[0-9]+)?)?$")] = ""
    """Where PyTorch runs models, cpu or cuda:0; empty: on a GPU where there is one."""
    instances: int = Field(default=0, ge=0, le=64)
    """Batches that one model runs at once; 0: as its model.yaml says."""
    default_priority: int = Field(default=5, ge=1, le=9)
    """Priority of a call that gives none."""
    quota_items_per_s: float = Field(default=0.0, ge=0)
    """Items that one identity may send in a second; 0: no quota."""
    memory_budget_bytes: int = Field(default=0, ge=0)
    """What loaded versions may take together, by their files or model.yaml; 0: no limit."""
    preprocess_threads: int = Field(default=2, ge=1, le=64)
    """Threads that tokenise."""

    cache: Literal["memory", "redis", "off"] = "memory"
    """Where answers are kept: in this process, or there and in Redis for all replicas."""
    cache_bytes: int = Field(default=64 * 2**20, ge=2**16)
    """What cached answers may take of this process's memory."""
    cache_salt_file: Path | None = None
    """File with a secret of 16 bytes or more that keys are salted with, the same for replicas; left
    out: a random one, which does not do for redis."""
    cache_ttl_s: float = Field(default=3600.0, gt=0, le=365 * 86_400)
    """How long Redis keeps an answer."""
    cache_redis_url: str = Field(default="", repr=False)
    """redis://host:6379/0, or rediss:// for TLS, or unix:///path."""
    cache_redis_password_file: Path | None = None
    """File that holds the password of Redis."""
    cache_redis_timeout_ms: float = Field(default=20.0, gt=0, le=10_000)
    """A call waits no longer than this for Redis."""

    @model_validator(mode="after")
    def _redis_is_whole(self) -> Self:
        if self.cache != "redis":
            return self
        if not self.cache_redis_url.startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("cache redis needs cache_redis_url: redis://, rediss:// or unix://")
        if self.cache_salt_file is None:
            raise ValueError("cache redis needs cache_salt_file, the same for all replicas")
        return self
