"""One classification model at work: preprocessing, admission, batcher, scores. Knows no wire."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.inference.backend import Backend
from services.inference.batcher import Batcher
from services.inference.items import Array, Encoded, Item
from services.inference.manifest import Manifest
from services.inference.outcomes import Outcome, Scored, Timings
from services.inference.preprocessing import Preprocessor
from services.inference.scoring import Choice, Floats, Label
from services.inference.statistics import Statistics
from services.runtime import metrics
from services.runtime.admission import Admission, Cost, Permit
from services.runtime.deadline import Deadline
from services.runtime.errors import GristmillError, UnsupportedField


@dataclass(slots=True)
class Asked:
    """What a caller wants done with a message of items."""

    identity: str
    deadline: Deadline
    priority: int
    choice: Choice
    return_probabilities: bool = False
    refuse_longer: bool = False
    no_cache: bool = False
    raw: bool = False
    """Only the model's outputs are wanted: no labels are made of them."""


@dataclass(slots=True, eq=False)
class Answer:
    """What became of one item."""

    labels: Sequence[Label] = ()
    probabilities: Floats | None = None
    truncated: bool = False
    tokens: int = 0
    error: GristmillError | None = None
    preprocess_s: float = 0.0
    timings: Timings | None = None
    scored: Scored | None = None
    """What the model gave; None where it failed."""
    cached: bool = False
    names: Sequence[str] = ()
    """The model's labels, by index."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The model's own outputs for this item, without batch dimension."""
        return self.scored.outputs if self.scored else {}


OnAnswer = Callable[[int, Answer], None]
Given = Sequence[Item | GristmillError]


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
        statistics: Statistics | None = None,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.statistics = statistics or Statistics()
        self._preprocessor = preprocessor
        self.batcher = batcher
        self.admission = admission
        self._threads = threads
        # Not `self`: the metric lives as long as the process, the model need not.
        metrics.QUEUE_ITEMS.labels(manifest.name).set_function(lambda: admission.items)
        metrics.QUEUE_LIMIT.labels(manifest.name).set(admission.limits.max_items)

    async def classify(
        self, items: Given, asked: Asked, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """An answer for each item, in their order; an item that is an error already stays one."""
        started = time.monotonic()
        spent = self.statistics.fail
        try:
            if asked.choice.threshold is not None and not self.manifest.output.multi_label:
                raise UnsupportedField.field("options.threshold", "this model is not multi-label")
            encoded = self._encode_here(items, refuse_longer=asked.refuse_longer)
            if encoded is None:
                encoded = await self._encode_aside(items, refuse_longer=asked.refuse_longer)
            preprocess_s = time.monotonic() - started
            good = [e for e in encoded if isinstance(e, Encoded)]
            with self._admit(good, asked) as permit:
                if len(good) == len(encoded) and on_answer is None:
                    outcomes = await self.batcher.submit(good, permit, asked.priority)
                    answers = [
                        self._answer(one, outcome, asked, preprocess_s)
                        for one, outcome in zip(good, outcomes, strict=True)
                    ]
                else:
                    answers = await self._each(encoded, permit, asked, on_answer, preprocess_s)
            if not [None for answer in answers if answer.error is not None]:
                spent = self.statistics.success
            return answers
        finally:
            spent.add(time.monotonic() - started)

    async def _each(
        self,
        encoded: Sequence[Encoded | GristmillError],
        permit: Permit,
        asked: Asked,
        on_answer: OnAnswer | None,
        preprocess_s: float,
    ) -> list[Answer]:
        """The same where some have failed already, or somebody hears of each as it is known."""
        answers = [
            Answer(error=e, preprocess_s=preprocess_s)
            if isinstance(e, GristmillError)
            else Answer()
            for e in encoded
        ]
        fitting = [(i, e) for i, e in enumerate(encoded) if isinstance(e, Encoded)]

        def on_item(position: int, outcome: Outcome) -> None:
            index, one = fitting[position]
            answers[index] = self._answer(one, outcome, asked, preprocess_s)
            if on_answer:
                on_answer(index, answers[index])

        if on_answer:
            # Not before a permit was given: a message that is refused is refused as a whole.
            for index, answer in enumerate(answers):
                if answer.error is not None:
                    on_answer(index, answer)
        good = [one for _, one in fitting]
        await self.batcher.submit(good, permit, asked.priority, on_item)
        return answers

    def _encode_here(
        self, items: Given, *, refuse_longer: bool
    ) -> Sequence[Encoded | GristmillError] | None:
        """Each item encoded; None where handing them to a thread costs less."""
        good = [item for item in items if not isinstance(item, GristmillError)]
        if not self._preprocessor.is_cheap(good):
            return None
        encoded = self._preprocessor.encode(good, refuse_longer=refuse_longer)
        return encoded if len(good) == len(items) else _merged(items, encoded)

    async def _encode_aside(
        self, items: Given, *, refuse_longer: bool
    ) -> Sequence[Encoded | GristmillError]:
        """The same on a thread of the pool."""
        good = [item for item in items if not isinstance(item, GristmillError)]
        loop = asyncio.get_running_loop()
        encoded = await loop.run_in_executor(
            self._threads, lambda: self._preprocessor.encode(good, refuse_longer=refuse_longer)
        )
        return _merged(items, encoded)

    def _admit(self, items: Sequence[Encoded], asked: Asked) -> Permit:
        cost = Cost(len(items), sum([item.nbytes for item in items]), len(items))
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

    def _answer(self, item: Encoded, outcome: Outcome, asked: Asked, preprocess_s: float) -> Answer:
        answer = Answer((), None, item.truncated, item.tokens, None, preprocess_s)
        if isinstance(outcome, GristmillError):
            answer.error = outcome
            return answer
        answer.timings = outcome.timings
        answer.scored = outcome
        answer.names = self.manifest.output.labels
        if asked.raw:
            return answer
        try:
            scores = outcome.batch.scores
            names = self.manifest.output.labels
            answer.labels = scores.labels(outcome.index, names, asked.choice)
            if asked.return_probabilities:
                answer.probabilities = scores.row(outcome.index)
        except GristmillError as error:
            answer.error = error
        return answer

    async def close(self) -> None:
        """Finish what waits and give up the model."""
        await self.batcher.close()
        await asyncio.to_thread(self.backend.close)


def _merged(
    items: Given, encoded: Sequence[Encoded | GristmillError]
) -> list[Encoded | GristmillError]:
    """What was encoded, between the items that are errors already."""
    done = iter(encoded)
    return [item if isinstance(item, GristmillError) else next(done) for item in items]
