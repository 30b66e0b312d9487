"""Reads the /metrics of the services and adds up what the console draws; knows no route, no caller.

What it gives are running totals, as Prometheus has them: whoever draws takes the differences. An
instance that does not answer in time, answers too much or not Prometheus text counts as down.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from services.runtime import logs

TIMEOUT_S = 2.0
"""Time that an instance has to answer."""
MAX_BYTES = 8 * 2**20
"""Longest answer that is read."""
FRESH_S = 1.0
"""Those who ask within this time share an answer."""

Json = dict[str, Any]
Totals = dict[tuple[str, float], float]
"""A figure and the bound of its bucket, NOT_BOUND for the figure itself, to its value."""
NOT_BOUND = -math.inf

_PLAIN = {
    "gristmill_queue_items": "queue",
    "gristmill_rejected_total": "rejected_total",
    "gristmill_generator_running": "running",
    "gristmill_generator_waiting": "waiting",
}
_HISTOGRAMS = {
    "gristmill_batch_size": "batch",
    "gen_ai_server_time_to_first_token_seconds": "first_token",
}
_CALLS = "grpc_server_call_duration_seconds"
_TOKENS = "gristmill_generator_tokens_total"
# Faults of the server, as the alerts have them.
_ERRORS = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE"})
# Calls that last as long as their caller likes say nothing about how fast a service is.
_LASTING = ("/Watch", "Bidi", "/ModelStreamInfer", "/WaitOperation", "/LeaseJob")


class Scraper:
    """The totals of each service that has instances to ask."""

    def __init__(self, targets: Mapping[str, Sequence[str]]) -> None:
        self._targets = {name: tuple(urls) for name, urls in targets.items() if urls}
        self._client: httpx2.AsyncClient | None = None
        self._asked: asyncio.Task[Json] | None = None
        self._asked_at = -math.inf
        self._down: set[str] = set()
        self._log = logs.get_logger()

    async def totals(self) -> Json:
        """{"time": Unix seconds, "services": {name: totals}}."""
        now = time.monotonic()
        if self._asked is None or (self._asked.done() and now - self._asked_at >= FRESH_S):
            self._asked_at = now
            self._asked = asyncio.create_task(self._ask())
        return await asyncio.shield(self._asked)

    async def close(self) -> None:
        """Let go of the connections."""
        if self._asked is not None:
            self._asked.cancel()
            await asyncio.gather(self._asked, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self) -> Json:
        names = list(self._targets)
        answers = await asyncio.gather(*(self._service(name) for name in names))
        return {"time": time.time(), "services": dict(zip(names, answers, strict=True))}

    async def _service(self, name: str) -> Json:
        urls = self._targets[name]
        found = await asyncio.gather(*(self._instance(name, i) for i in range(len(urls))))
        answered = [index for index, one in enumerate(found) if one is not None]
        state = {"up": bool(answered), "instances": len(urls), "answered": answered}
        if not answered:
            return state
        totals: Totals = defaultdict(float)
        for one in found:
            for key, value in (one or {}).items():
                totals[key] += value
        return state | _shown(totals)

    async def _instance(self, name: str, index: int) -> Totals | None:
        """What one instance has counted; None where that cannot be read."""
        instance = f"{name} {index + 1}"
        try:
            text = await self._read(self._targets[name][index])
            totals = await asyncio.to_thread(read, text)
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            if instance not in self._down:
                said = f"{type(error).__name__}: {error}"[:200]
                self._log.warning("metrics cannot be read", instance=instance, error=said)
            self._down.add(instance)
            return None
        self._down.discard(instance)
        return totals

    async def _read(self, url: str) -> str:
        if self._client is None:
            self._client = httpx2.AsyncClient(
                timeout=TIMEOUT_S,
                follow_redirects=False,
                trust_env=False,
                # What is compressed may be any length.
                headers={"accept-encoding": "identity"},
            )
        body = bytearray()
        # The client's own timeout is for each read: an answer could trickle for ever.
        async with asyncio.timeout(TIMEOUT_S), self._client.stream("GET", url) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}")
            async for part in response.aiter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    raise ValueError(f"more than {MAX_BYTES} bytes")
        return body.decode()


def read(text: str) -> Totals:
    """What Prometheus text says of the figures, over all models; ValueError where it is none."""
    totals: Totals = defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if not math.isfinite(sample.value):
                continue
            for figure in _figures(sample):
                bound = float(sample.labels["le"]) if "le" in sample.labels else NOT_BOUND
                totals[figure, bound] += sample.value
    return totals


def _figures(sample: Sample) -> tuple[str, ...]:
    """The figures that a sample is a part of."""
    if plain := _PLAIN.get(sample.name):
        return (plain,)
    if sample.name.startswith(_CALLS):
        return _of_calls(sample.name.removeprefix(_CALLS), sample.labels)
    if sample.name == _TOKENS:
        return ("tokens_total",) if sample.labels.get("kind") == "completion" else ()
    name, _, part = sample.name.rpartition("_")
    figure = _HISTOGRAMS.get(name)
    if figure is None or part not in ("bucket", "sum"):
        return ()
    return (figure if part == "bucket" else f"{figure}_sum",)


def _of_calls(part: str, labels: Mapping[str, str]) -> tuple[str, ...]:
    method = labels.get("grpc_method", "")
    if method.startswith("/grpc."):  # health and reflection, which no caller waits for
        return ()
    if part == "_count":
        failed = labels.get("grpc_status") in _ERRORS
        return ("requests_total", "errors_total") if failed else ("requests_total",)
    if method.endswith(_LASTING):
        return ()
    return {"_bucket": ("latency",), "_sum": ("latency_sum",)}.get(part, ())


def _shown(totals: Totals) -> Json:
    """Totals as JSON: plain figures, and histograms whose last count has no bound."""
    plain = ("requests_total", "errors_total", "tokens_total", *_PLAIN.values())
    shown: Json = {figure: totals.get((figure, NOT_BOUND), 0.0) for figure in plain}
    for figure in ("latency", *_HISTOGRAMS.values()):
        bounds = sorted(bound for name, bound in totals if name == figure)
        shown[figure] = {
            "bounds": [bound for bound in bounds if bound < math.inf],
            "counts": [totals[figure, bound] for bound in bounds],
            "sum": totals.get((f"{figure}_sum", NOT_BOUND), 0.0),
        }
    return shown
