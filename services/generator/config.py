"""The settings of the generator."""

from pathlib import Path
from typing import Any, Literal

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
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the key-value cache of one model, where the engine is told in GiB."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Prompts that the engine runs at once; more wait outside, where priority, fair shares and
    deadlines decide."""
    max_num_batched_tokens: int = Field(default=512, ge=16)
    """Tokens that the engine computes in one step."""
    max_unsent_tokens: int = Field(default=4096, ge=1)
    """Tokens generated for a stream whose caller does not read them; beyond, it is cut off."""
    coalesce_ms: float = Field(default=0.0, ge=0, le=1000)
    """Text that comes within this time of a message goes into one with what follows; 0: every step
    is sent as it is made."""
    max_turns: int = Field(default=256, ge=1)
    """Turns of one conversation."""
    max_history_bytes: int = Field(default=1_048_576, ge=1024)
    """What is remembered of one conversation."""
    idle_timeout_s: float = Field(default=600.0, gt=0)
    """After so long without a turn a conversation is ended."""
    memory_budget_bytes: int = Field(default=0, ge=0)
    """Memory for loaded models, each counted as its model.yaml says or by its files; 0: no limit.
    Where a new version does not fit beside the old, the old one goes first."""
    vllm_python: str = ""
    """The Python that vLLM is installed for; empty: the one that runs this service."""
    vllm_dtype: str | None = None
    """Of weights and activations, such as "bfloat16"; none: float32 on a CPU, else the model's."""
    vllm_quantization: str | None = None
    """How weights are quantised, such as "fp8" or "awq"; none: as the model says."""
    vllm_gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes; none: vLLM's own default."""
    vllm_tensor_parallel_size: int | None = Field(default=None, ge=1)
    """GPUs that share each layer; none: 1."""
    vllm_pipeline_parallel_size: int | None = Field(default=None, ge=1)
    """Groups of GPUs that each hold some layers; none: 1."""
    vllm_distributed_executor_backend: Literal["mp", "ray", "uni", "external_launcher"] | None = (
        None
    )
    """How vLLM runs on several GPUs; "ray" for several hosts. None: vLLM chooses."""
    vllm_enforce_eager: bool | None = None
    """Whether vLLM captures no graphs; none: captured on a GPU, not on a CPU."""
    vllm_lora_adapter: str | None = None
    """Folder of a LoRA adapter that every prompt goes through; none: the model as it is."""
    vllm_max_lora_rank: int | None = Field(default=None, ge=1)
    """The largest rank of an adapter; none: vLLM's own default."""
    preprocess_threads: int = Field(default=2, ge=1, le=64)
    """Threads that tokenise."""

    @property
    def vllm(self) -> dict[str, Any]:
        """What only vLLM is told, by vLLM's own names."""
        names = (
            *("dtype", "quantization", "gpu_memory_utilization", "tensor_parallel_size"),
            *("pipeline_parallel_size", "distributed_executor_backend", "enforce_eager"),
            *("lora_adapter", "max_lora_rank"),
        )
        given = {name: getattr(self, f"vllm_{name}") for name in names}
        return {name: value for name, value in given.items() if value is not None}
