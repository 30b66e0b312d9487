"""One classification model at work: preprocessing, admission, batcher, scores. Knows no wire."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from services.classifier import caching
from services.classifier.answers import Answer, Asked, Given, OnAnswer
from services.inference.backend import Backend
from services.inference.batcher import Batcher
from services.inference.cache import Responses, Value
from services.inference.items import Encoded
from services.inference.manifest import Manifest
from services.inference.outcomes import Outcome
from services.inference.preprocessing import Preprocessor
from services.inference.statistics import Statistics
from services.runtime import metrics
from services.runtime.admission import Admission, Cost, Permit, hide, show
from services.runtime.errors import GristmillError, UnsupportedField


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
        responses: Responses | None = None,
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.statistics = statistics or Statistics()
        self.responses = responses
        self._preprocessor = preprocessor
        self.batcher = batcher
        self.admission = admission
        self._threads = threads
        show(manifest.name, admission)

    async def classify(
        self, items: Given, asked: Asked, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """An answer for each item, in their order; an item that is an error already stays one."""
        started = time.monotonic()
        spent = self.statistics.fail
        try:
            if asked.choice.threshold is not None and not self.manifest.output.multi_label:
                raise UnsupportedField.field("options.threshold", "this model is not multi-label")
            if self.responses is None or asked.no_cache:
                answers = await self.compute(items, asked, on_answer)
            else:
                answers = await caching.answered(self, self.responses, items, asked, on_answer)
            if not [None for answer in answers if answer.error is not None]:
                spent = self.statistics.success
            return answers
        finally:
            spent.add(time.monotonic() - started)

    async def compute(
        self, items: Given, asked: Asked, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """The same by the model itself, whatever the cache has."""
        started = time.monotonic()
        encoded = self._encode_here(items, refuse_longer=asked.refuse_longer)
        if encoded is None:
            encoded = await self._encode_aside(items, refuse_longer=asked.refuse_longer)
        preprocess_s = time.monotonic() - started
        good = [e for e in encoded if isinstance(e, Encoded)]
        with self._admit(good, asked) as permit:
            if len(good) == len(encoded) and on_answer is None:
                outcomes = await self.batcher.submit(good, permit, asked.priority)
                return [
                    self.answer(one, outcome, asked, preprocess_s)
                    for one, outcome in zip(good, outcomes, strict=True)
                ]
            return await self._each(encoded, permit, asked, on_answer, preprocess_s)

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
            answers[index] = self.answer(one, outcome, asked, preprocess_s)
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
        """The same on the threads of the pool, which share the items of a message."""
        good = [item for item in items if not isinstance(item, GristmillError)]
        loop = asyncio.get_running_loop()
        encode = partial(self._preprocessor.encode, refuse_longer=refuse_longer)
        share = -(-len(good) // self._threads._max_workers)
        parts = [good[at : at + share] for at in range(0, len(good), share)]
        encoded = await asyncio.gather(
            *[loop.run_in_executor(self._threads, encode, part) for part in parts]
        )
        return _merged(items, [one for part in encoded for one in part])

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

    def charge(self, asked: Asked, items: int) -> None:
        """Count items that take no place in the queue against the caller's quota."""
        self.admission.admit(asked.identity, asked.deadline, Cost(0, 0, items)).release()

    def answer(
        self, item: Encoded | Value, outcome: Outcome, asked: Asked, preprocess_s: float = 0.0
    ) -> Answer:
        """What a caller is told of an item that was computed, now or before."""
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
        hide(self.manifest.name, self.admission)
        await asyncio.to_thread(self.backend.close)


def _merged(
    items: Given, encoded: Sequence[Encoded | GristmillError]
) -> list[Encoded | GristmillError]:
    """What was encoded, between the items that are errors already."""
    done = iter(encoded)
    return [item if isinstance(item, GristmillError) else next(done) for item in items]
