"""The settings of the classifier."""

from pathlib import Path

from pydantic import Field
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
