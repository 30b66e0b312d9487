"""Makes a generator of a model folder: engine in its process, tokenizer, one token of warm-up."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from services.generator.config import GeneratorConfig
from services.generator.engine import EngineSettings, Sampling
from services.generator.engines.openvino import OpenVinoEngine
from services.generator.generator import Generator
from services.inference.manifest import Manifest
from services.runtime.admission import Admission, Cost, Limits
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
        if manifest.engine != "openvino-genai":
            raise InvalidRequest.field("model.yaml: engine", f"{manifest.engine} is not known")
        model = folder / manifest.files["model"]
        settings = EngineSettings(
            self.config.kv_cache_gib, self.config.max_num_seqs, self.config.max_num_batched_tokens
        )
        engine = OpenVinoEngine(
            model, settings, lambda serving: self.on_health(entry.model, serving)
        )
        await engine.start()
        limits = Limits(
            self.config.max_queue_requests,
            self.config.max_queue_prompt_tokens,
            self.config.quota_tokens_per_s,
        )
        admission = Admission(limits, time.monotonic)
        generator = Generator(
            manifest, engine, admission, self.threads, self.config.default_max_tokens
        )
        try:
            await _warm_up(generator)
        except BaseException:
            await generator.close()
            raise
        return generator


async def _warm_up(generator: Generator) -> None:
    prompt = generator.engine.tokenizer.encode("Hello")
    permit = generator.admission.admit("warm-up", Deadline.after(WARM_UP_S), Cost(1))
    with permit:
        async with aclosing(
            generator.engine.submit(prompt, Sampling(max_tokens=1), permit)  # type: ignore[type-var]
        ) as steps:
            async for _ in steps:
                pass
