"""vLLM: `AsyncLLM` in a process of its own, run by the Python that vLLM is installed for."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from services.generator.engine import Capabilities, EngineSettings
from services.generator.engines.huggingface import FolderTokenizer
from services.generator.engines.process import EngineProcess

NAME = "vllm"
WORKER = Path(__file__).with_name("vllm_worker.py")
CAPABILITIES = Capabilities(
    max_logprobs=20,
    logit_bias=True,
    min_p_of_one=True,
    constraints=frozenset({"json_schema", "regex", "choices", "json_object"}),
    cached_tokens=True,
    crash_alone=True,
)


class VllmEngine(EngineProcess):
    """vLLM with the model in a Hugging Face folder."""

    def __init__(
        self,
        folder: Path,
        settings: EngineSettings,
        python: str,
        on_health: Callable[[bool], None] = lambda serving: None,
    ) -> None:
        def command(fd: int) -> list[str]:
            return [
                # -P: modules beside the script must not stand before the installed ones.
                *(python, "-P", str(WORKER), str(fd)),
                *(str(folder), json.dumps(asdict(settings))),
            ]

        environment = {
            "VLLM_CPU_KVCACHE_SPACE": f"{max(1, round(settings.kv_cache_gib))}",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
        super().__init__(
            NAME, CAPABILITIES, command, lambda: FolderTokenizer(folder), on_health, environment
        )
