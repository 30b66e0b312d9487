"""What a generator counts, where it can under the names of OpenTelemetry's GenAI conventions."""

from services.generator.engine import Engine
from services.generator.generation import Generation
from services.generator.slots import Slots
from services.runtime import metrics
from services.runtime.summed import Summed

_RUNNING: Summed[Engine] = Summed(metrics.GEN_RUNNING, lambda e: e.stats.running)
_WAITING: Summed[Slots] = Summed(metrics.GEN_WAITING, lambda s: s.waiting)
_IN_ENGINE: Summed[Engine] = Summed(metrics.GEN_ENGINE_WAITING, lambda e: e.stats.waiting)
_CACHE: Summed[Engine] = Summed(metrics.GEN_CACHE, lambda e: e.stats.cache_usage)
_ORPHANED: Summed[Engine] = Summed(metrics.GEN_ORPHANED, lambda e: e.stats.orphaned_steps)


def show(model: str, engine: Engine, slots: Slots) -> None:
    """Show what an engine holds and what waits for it."""
    for gauge in (_RUNNING, _IN_ENGINE, _CACHE, _ORPHANED):
        gauge.add(model, engine)
    _WAITING.add(model, slots)


def hide(model: str, engine: Engine, slots: Slots) -> None:
    """No longer."""
    for gauge in (_RUNNING, _IN_ENGINE, _CACHE, _ORPHANED):
        gauge.remove(model, engine)
    _WAITING.remove(model, slots)


def measure(model: str, generation: Generation, error: str) -> None:
    """One prompt has ended, well or with the reason that is its error."""
    tokens = {
        "prompt": len(generation.prompt),
        "completion": generation.completion_tokens,
        "cached": generation.cached,
    }
    for kind, count in tokens.items():
        metrics.GEN_TOKENS.labels(model, kind).inc(count)
    if generation.first_token_s:
        metrics.GEN_FIRST_TOKEN.labels(model).observe(generation.first_token_s)
    if generation.per_token_s:
        metrics.GEN_PER_TOKEN.labels(model).observe(generation.per_token_s)
    complete = all(choice.finish for choice in generation.choices)
    kind = error or ("" if complete else "CANCELLED")
    metrics.GEN_DURATION.labels(model, kind).observe(generation.total_s)
