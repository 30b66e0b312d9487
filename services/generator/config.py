"""The settings of the generator."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.follower import FollowerConfig


class GeneratorConfig(FollowerConfig):
    """What the generator can be told."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_GENERATOR_")

    port: int = Field(default=50053, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    admin_port: int = Field(default=9153, ge=-1, le=65535)
    """Port for /metrics (HTTP); 0 takes a free one, -1 opens none."""
    cache_dir: Path = Path("data/cache/generator")
    """Folder for fetched models and the last catalog seen."""
    default_timeout_s: float = Field(default=120.0, gt=0)
    """Deadline of a call that brings none."""
    default_priority: int = Field(default=5, ge=1, le=9)
    """Priority of a call that gives none."""
    default_max_tokens: int = Field(default=512, ge=1)
    """Most tokens generated for a prompt whose caller names no limit."""
    max_queue_requests: int = Field(default=256, ge=1)
    """Prompts waiting or running; more are refused."""
    max_queue_prompt_tokens: int = Field(default=262_144, ge=1)
    """Prompt tokens waiting or running; more are refused."""
    quota_tokens_per_s: float = Field(default=0.0, ge=0)
    """Tokens, read and written, that one identity may use in a second; 0: no quota."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Memory for the key-value cache of one model."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Prompts that the engine runs at once."""
    max_num_batched_tokens: int = Field(default=512, ge=16)
    """Tokens that the engine computes in one step."""
    preprocess_threads: int = Field(default=2, ge=1, le=64)
    """Threads that tokenise."""
