"""One classification model at work: preprocessing, admission, batcher, scores. Knows no wire."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.inference import loading
from services.inference.backend import Backend
from services.inference.batcher import Batcher
from services.inference.cost import CostModel
from services.inference.fingerprint import fingerprint
from services.inference.items import Encoded, Item, Scored
from services.inference.items import Timings as BatchTimings
from services.inference.manifest import Manifest
from services.inference.meter import Meter
from services.inference.preprocessing import Preprocessor
from services.inference.scoring import Choice, Label, choose, probabilities
from services.runtime import metrics
from services.runtime.admission import Admission, Cost, Limits, Permit
from services.runtime.catalog import ProfileEntry, VersionEntry
from services.runtime.deadline import Deadline
from services.runtime.errors import GristmillError, UnsupportedField


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants done with a message of items."""

    identity: str
    deadline: Deadline
    priority: int
    choice: Choice
    return_probabilities: bool = False
    refuse_longer: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one item."""

    labels: tuple[Label, ...] = ()
    probabilities: NDArray[np.float64] | None = None
    truncated: bool = False
    tokens: int = 0
    error: GristmillError | None = None
    preprocess_s: float = 0.0
    timings: BatchTimings | None = None


OnAnswer = Callable[[int, Answer], None]


class Classifier:
    """A version of a model, ready to answer."""

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        preprocessor: Preprocessor,
        batcher: Batcher,
        admission: Admission,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self._preprocessor = preprocessor
        self.batcher = batcher
        self.admission = admission
        self._threads = threads
        # Not `self`: the metric lives as long as the process, the model need not.
        metrics.QUEUE_ITEMS.labels(manifest.name).set_function(lambda: admission.items)
        metrics.QUEUE_LIMIT.labels(manifest.name).set(admission.limits.max_items)

    async def classify(
        self,
        items: Sequence[Item | GristmillError],
        asked: Asked,
        on_answer: OnAnswer | None = None,
    ) -> list[Answer]:
        """An answer for each item, in their order; an item that is an error already stays one."""
        if asked.choice.threshold is not None and not self.manifest.output.multi_label:
            raise UnsupportedField.field("options.threshold", "this model is not multi-label")
        started = time.monotonic()
        encoded = await self._encode(items, refuse_longer=asked.refuse_longer)
        preprocess_s = time.monotonic() - started
        answers: list[Answer] = [
            Answer(error=e) if isinstance(e, GristmillError) else Answer() for e in encoded
        ]
        fitting = [i for i, e in enumerate(encoded) if isinstance(e, Encoded)]

        def on_item(position: int, outcome: Scored | GristmillError) -> None:
            index = fitting[position]
            one = encoded[index]
            if isinstance(one, Encoded):
                answers[index] = self._answer(one, outcome, asked, preprocess_s)
                if on_answer:
                    on_answer(index, answers[index])

        good = [e for e in encoded if isinstance(e, Encoded)]
        with self._admit(good, asked) as permit:
            # Not before: a message that is refused is refused as a whole.
            for index in (i for i, e in enumerate(encoded) if isinstance(e, GristmillError)):
                if on_answer:
                    on_answer(index, answers[index])
            await self.batcher.submit(good, permit, asked.priority, on_item)
        return answers

    async def _encode(
        self, items: Sequence[Item | GristmillError], *, refuse_longer: bool
    ) -> list[Encoded | GristmillError]:
        """Each item encoded: on a thread of its own pool, unless that would cost more."""
        good = [item for item in items if not isinstance(item, GristmillError)]
        if self._preprocessor.is_cheap(good):
            encoded = self._preprocessor.encode(good, refuse_longer=refuse_longer)
        else:
            loop = asyncio.get_running_loop()
            encoded = await loop.run_in_executor(
                self._threads,
                lambda: self._preprocessor.encode(good, refuse_longer=refuse_longer),
            )
        done = iter(encoded)
        return [item if isinstance(item, GristmillError) else next(done) for item in items]

    def _admit(self, items: Sequence[Encoded], asked: Asked) -> Permit:
        cost = Cost(len(items), sum(item.nbytes for item in items), float(len(items)))
        try:
            return self.admission.admit(
                asked.identity,
                asked.deadline,
                cost,
                self.batcher.predicted_wait_s(items, asked.deadline, asked.priority),
                self.batcher.drain_s,
            )
        except GristmillError as error:
            metrics.REJECTED.labels(self.manifest.name, error.reason_given).inc()
            raise

    def _answer(
        self, item: Encoded, outcome: Scored | GristmillError, asked: Asked, preprocess_s: float
    ) -> Answer:
        if isinstance(outcome, GristmillError):
            return Answer(error=outcome, preprocess_s=preprocess_s)
        try:
            scores = probabilities(outcome.outputs, multi_label=self.manifest.output.multi_label)
        except GristmillError as error:
            return Answer(error=error, preprocess_s=preprocess_s, timings=outcome.timings)
        return Answer(
            tuple(choose(scores, self.manifest.output.labels, asked.choice)),
            scores if asked.return_probabilities else None,
            item.truncated,
            item.tokens,
            preprocess_s=preprocess_s,
            timings=outcome.timings,
        )

    async def close(self) -> None:
        """Finish what waits and give up the model."""
        await self.batcher.close()
        await asyncio.to_thread(self.backend.close)


async def _none_measured(model: str, version: int) -> list[ProfileEntry]:
    return []


@dataclass(frozen=True, slots=True)
class Starter:
    """Makes classifiers of model folders."""

    threads: ThreadPoolExecutor
    providers: tuple[str, ...] = ()
    instances: int = 0
    quota_items_per_s: float = 0.0
    profiles: Callable[[str, int], Awaitable[list[ProfileEntry]]] = _none_measured
    """The curves measured of a version, newest first; must not raise, nor wait for long."""

    async def start(self, entry: VersionEntry, manifest: Manifest, folder: Path) -> Classifier:
        """Load, warm up, and be ready."""
        profiles, loaded = await asyncio.gather(
            self.profiles(entry.model, entry.version),
            asyncio.to_thread(loading.load, manifest, folder, self.instances, self.providers),
        )
        cost = await asyncio.to_thread(_cost, loaded, profiles)
        batching = manifest.batching
        meter = Meter(entry.model, entry.version)
        batcher = Batcher(loaded.instances, batching, loaded.preprocessor.fill, meter, cost)
        limits = Limits(batching.max_queue_items, batching.max_queue_bytes, self.quota_items_per_s)
        admission = Admission(limits, time.monotonic)
        return Classifier(
            manifest, loaded.backend, loaded.preprocessor, batcher, admission, self.threads
        )


def _cost(loaded: loading.Loaded, profiles: Sequence[ProfileEntry]) -> CostModel:
    """A cost model; where a curve was measured on such a host, it starts from the newest."""
    cost = CostModel()
    if profiles:
        here = fingerprint(loaded.backend, len(loaded.instances))
        fitting = [profile for profile in profiles if profile.fingerprint == here]
        cost.start_from(fitting[0].points if fitting else ())
    return cost
