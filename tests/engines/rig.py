"""Real engines as tests hold them, and a prompt's way through one; knows no wire."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.generator.engine import Engine, EngineSettings, Sampling, Top
from services.generator.engines.fake import FakeEngine
from services.generator.engines.openvino import OpenVinoEngine
from services.generator.engines.vllm import VllmEngine
from services.runtime.admission import Cost, Permit
from services.runtime.deadline import Deadline
from services.runtime.errors import EngineRestarting

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("GRISTMILL_CACHE", Path.home() / ".cache" / "gristmill")) / "models"
GGUF = CACHE / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = CACHE / "smollm2-vllm"
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
SEQUENCES = 64
CONTEXT = 2048
PATIENCE_S = 60.0
NAMES = ("fake", "openvino-genai", "vllm")


def made(name: str, on_health: Any = lambda serving: None) -> Any:
    """An engine that has not been started."""
    if name == "fake":
        return FakeEngine()
    if name == "openvino-genai":
        assert GGUF.exists(), f"{GGUF} is missing: run `make models`"
        return OpenVinoEngine(GGUF, EngineSettings(max_num_seqs=SEQUENCES), on_health)
    assert FOLDER.exists(), f"{FOLDER} is missing: run `make vllm`"
    settings = EngineSettings(
        max_num_seqs=SEQUENCES, max_num_batched_tokens=2048, max_context_tokens=CONTEXT
    )
    return VllmEngine(FOLDER, settings, str(VLLM_PYTHON), on_health)


@asynccontextmanager
async def running(name: str, on_health: Any = lambda serving: None) -> AsyncIterator[Engine]:
    """An engine at work."""
    engine = made(name, on_health)
    if isinstance(engine, FakeEngine):
        stepping = asyncio.ensure_future(_step(engine))
        try:
            yield engine
        finally:
            stepping.cancel()
        return
    await engine.start()  # type: ignore[attr-defined]  # what is no fake is a process
    try:
        yield engine
    finally:
        await engine.close()


async def _step(engine: FakeEngine) -> None:
    while True:
        engine.step()
        await asyncio.sleep(0.0005)


@dataclass
class Heard:
    """What a prompt was given."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    finish: str | None = None
    cached: int = 0


def permit(seconds: float = PATIENCE_S) -> Permit:
    """The right to submit."""
    return Permit("ann", Deadline.after(seconds), Cost(1), lambda cost: None)


async def hear(engine: Engine, prompt: str | Sequence[int], **sampling: Any) -> Heard:
    """A prompt to its end; greedy, 12 tokens, unless told otherwise."""
    ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    given = Sampling(**{"max_tokens": 12, "temperature": 0.0, **sampling})
    heard = Heard()
    async with aclosing(engine.submit(ids, given, permit())) as steps:
        async for tokens in steps:
            heard.ids += tokens.ids
            heard.logprobs += tokens.logprobs
            heard.top += tokens.top
            heard.finish = tokens.finish
            heard.cached = max(heard.cached, tokens.cached)
    return heard


def text(engine: Engine, heard: Heard) -> str:
    """The same as a person reads it."""
    return engine.tokenizer.decode(heard.ids)


async def empty(engine: Engine, within_s: float = 1.0) -> float:
    """Wait until the engine holds nothing; the time that took."""
    started = time.monotonic()
    while engine.stats.running or engine.stats.waiting:
        await asyncio.sleep(0.002)  # it says so only in its own time
        assert time.monotonic() - started < within_s, f"still there: {engine.stats}"
    return time.monotonic() - started


async def patiently(work: Awaitable[Any], seconds: float = PATIENCE_S) -> Any:
    """Not for ever."""
    async with asyncio.timeout(seconds):
        return await work


async def back(engine: Engine) -> None:
    """Wait until an engine that died takes prompts again."""
    while True:
        try:
            await hear(engine, "x", max_tokens=1)
        except EngineRestarting:
            await asyncio.sleep(0.05)  # it says so only in its own time
        else:
            return
