"""Makes classifiers of model folders: loads, warms up, and sets the cost model. Knows no wire."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from services.classifier.classifier import Classifier
from services.inference import loading
from services.inference.batcher import INLINE_S, Batcher
from services.inference.cache import Cache
from services.inference.cost import CostModel
from services.inference.fingerprint import fingerprint
from services.inference.manifest import Manifest
from services.inference.meter import Meter
from services.runtime.admission import Admission, Limits
from services.runtime.catalog import ProfileEntry, VersionEntry


async def _none_measured(model: str, version: int) -> list[ProfileEntry]:
    return []


@dataclass(frozen=True, slots=True)
class Starter:
    """Makes classifiers of model folders."""

    threads: ThreadPoolExecutor
    providers: tuple[str, ...] = ()
    instances: int = 0
    quota_items_per_s: float = 0.0
    device: str = ""
    cache: Cache | None = None
    """Of the process; a version whose model.yaml does not want it has none."""
    profiles: Callable[[str, int], Awaitable[list[ProfileEntry]]] = _none_measured
    """The curves measured of a version, newest first; must not raise, nor wait for long."""

    async def start(self, entry: VersionEntry, manifest: Manifest, folder: Path) -> Classifier:
        """Load, warm up, and be ready."""
        profiles, loaded = await asyncio.gather(
            self.profiles(entry.model, entry.version),
            asyncio.to_thread(
                loading.load,
                manifest,
                folder,
                self.instances,
                self.providers,
                device=self.device,
            ),
        )
        cost = await asyncio.to_thread(_cost, loaded, profiles)
        batching = manifest.batching
        meter = Meter(entry.model, entry.version)
        batcher = Batcher(
            loaded.instances,
            batching,
            loaded.preprocessor.fill,
            meter,
            cost,
            inline_s=INLINE_S if loaded.warm_s <= INLINE_S else 0.0,
            device=loaded.backend.device,
            scores=bool(manifest.output.labels),
            multi_label=manifest.output.multi_label,
        )
        limits = Limits(batching.max_queue_items, batching.max_queue_bytes, self.quota_items_per_s)
        return Classifier(
            manifest,
            loaded.backend,
            loaded.preprocessor,
            batcher,
            Admission(limits, time.monotonic),
            self.threads,
            meter.statistics,
            self.cache.of(entry.model, entry.digest, self.threads)
            if self.cache and manifest.cache
            else None,
        )


def _cost(loaded: loading.Loaded, profiles: Sequence[ProfileEntry]) -> CostModel:
    """A cost model; where a curve was measured on such a host, it starts from the newest."""
    cost = CostModel()
    if profiles:
        here = fingerprint(loaded.backend, len(loaded.instances))
        if fitting := [profile for profile in profiles if profile.fingerprint == here]:
            cost.start_from(fitting[0].points)
            return cost
    cost.guess(1, loaded.warm_s)
    return cost
