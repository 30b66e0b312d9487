"""Makes a generator of a model folder: engine in its process, tokenizer, one token of warm-up."""

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from services.generator.config import GeneratorConfig
from services.generator.engine import EngineSettings, Sampling
from services.generator.engines import openvino, vllm
from services.generator.engines.process import EngineProcess
from services.generator.generator import Generator, Limits
from services.inference.manifest import Manifest
from services.runtime import admission
from services.runtime.admission import Admission, Cost
from services.runtime.catalog import VersionEntry
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidRequest

WARM_UP_S = 120.0


@dataclass(frozen=True, slots=True)
class Starter:
    """Makes generators as the configuration says."""

    config: GeneratorConfig
    threads: ThreadPoolExecutor
    on_health: Callable[[str, bool | None], None]

    async def start(self, entry: VersionEntry, manifest: Manifest, folder: Path) -> Generator:
        """Load, warm up, and be ready."""
        engine = self._engine(entry, manifest, folder)
        await engine.start()
        config = self.config
        generator = Generator(
            manifest,
            engine,
            Admission(
                admission.Limits(
                    config.max_queue_requests,
                    config.max_queue_prompt_tokens,
                    config.quota_tokens_per_s,
                ),
                time.monotonic,
            ),
            self.threads,
            Limits(
                config.default_max_tokens,
                config.max_num_seqs,
                config.max_unsent_tokens,
                config.coalesce_ms / 1000,
            ),
        )
        try:
            await _warm_up(generator)
        except BaseException:
            await generator.close()
            raise
        return generator

    def _engine(self, entry: VersionEntry, manifest: Manifest, folder: Path) -> EngineProcess:
        """The engine that the model asks for."""
        config = self.config

        def on_health(serving: bool) -> None:
            self.on_health(entry.model, serving)

        settings = EngineSettings(
            config.kv_cache_gib,
            config.max_num_seqs,
            config.max_num_batched_tokens,
            manifest.limits.max_context_tokens,
        )
        if manifest.engine == openvino.NAME:
            return openvino.OpenVinoEngine(folder / manifest.files["model"], settings, on_health)
        if manifest.engine == vllm.NAME:
            settings.extra = config.vllm
            return vllm.VllmEngine(
                folder, settings, config.vllm_python or sys.executable, on_health
            )
        raise InvalidRequest.field("model.yaml: engine", f"{manifest.engine} is not known")


async def _warm_up(generator: Generator) -> None:
    prompt = generator.engine.tokenizer.encode("Hello")
    permit = generator.admission.admit("warm-up", Deadline.after(WARM_UP_S), Cost(1))
    with permit:
        async with aclosing(
            generator.engine.submit(prompt, Sampling(max_tokens=1), permit)  # type: ignore[type-var]
        ) as steps:
            async for _ in steps:
                pass
