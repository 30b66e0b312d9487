"""A message between the response cache and the model: what is known, what others compute, the rest.

Knows neither where answers are kept nor how they are computed.
"""

import time
from collections.abc import Sequence
from typing import Protocol

from services.classifier.answers import Answer, Asked, Given, OnAnswer
from services.inference.cache import Responses, Value
from services.inference.cache.flight import Outcome
from services.inference.cache.sharing import Settle
from services.inference.manifest import Manifest
from services.inference.outcomes import Scored
from services.inference.statistics import Statistics
from services.runtime.errors import GristmillError


class Model(Protocol):
    """What computes what the cache does not have."""

    manifest: Manifest
    statistics: Statistics

    async def compute(
        self, items: Given, asked: Asked, on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """An answer for each item, by the model itself."""
        ...

    def charge(self, asked: Asked, items: int) -> None:
        """Count items that were known against the caller's quota; raises what refuses them."""
        ...

    def answer(self, item: Value, outcome: Scored, asked: Asked) -> Answer:
        """What a caller is told of outputs that were computed before."""
        ...


async def answered(
    model: Model,
    responses: Responses,
    items: Given,
    asked: Asked,
    on_answer: OnAnswer | None,
) -> list[Answer]:
    """An answer for each item: from the cache, from a message that computes the same, or ours.

    What is known is told only once the rest is admitted: a message is refused as a whole.
    """
    started = time.monotonic()
    found = await responses.look_up(asked.identity, items, refuse_longer=asked.refuse_longer)
    message = _Message(model, items, asked, on_answer, found.values)
    missing = len(found.missing)
    known = len([None for value in found.values if value is not None])
    spent = time.monotonic() - started
    if known:
        model.charge(asked, known)
        model.statistics.cache_hit.add(spent, known)
    if missing:
        model.statistics.cache_miss.add(spent, missing)
        order = (asked.priority, asked.deadline.at)
        await responses.resolve(found, order, asked.deadline, message.compute, message.tell)
    message.tell_known()
    return [answer for answer in message.answers if answer is not None]


class _Message:
    """The answers of one message as they become known."""

    def __init__(
        self,
        model: Model,
        items: Given,
        asked: Asked,
        on_answer: OnAnswer | None,
        values: Sequence[Value | None],
    ) -> None:
        self._model = model
        self._items = items
        self._asked = asked
        self._on_answer = on_answer
        self.answers: list[Answer | None] = [
            Answer(error=item) if isinstance(item, GristmillError) else self._kept(value)
            for item, value in zip(items, values, strict=True)
        ]
        self._told = False
        """Whether somebody heard of an item that was not known from the start."""
        self._untold = [i for i, answer in enumerate(self.answers) if answer is not None]

    def tell_known(self) -> None:
        """Tell, once, what was known before anything was computed."""
        untold, self._untold = self._untold, []
        for index in untold:
            answer = self.answers[index]
            if self._on_answer and answer is not None:
                self._on_answer(index, answer)

    def tell(self, index: int, outcome: Outcome) -> None:
        """Somebody else has had the answer of an item."""
        self._set(index, self._kept(outcome) or Answer())

    async def compute(self, indices: Sequence[int], settle: Settle) -> None:
        """Have the model answer these items."""

        def computed(position: int, answer: Answer) -> None:
            index = indices[position]
            outcome: Outcome | None = answer.error
            if answer.scored is not None and outcome is None:
                scored = answer.scored
                outcome = Value.of(
                    scored.batch, scored.index, answer.tokens, truncated=answer.truncated
                )
            if outcome is None or settle(index, outcome):
                self._set(index, answer)

        try:
            await self._model.compute([self._items[i] for i in indices], self._asked, computed)
        except GristmillError as error:
            if not self._told:
                raise
            # Too late to refuse the message: what is left of it has failed each for itself.
            for index in indices:
                if self.answers[index] is None and settle(index, error):
                    self._set(index, Answer(error=error))

    def _set(self, index: int, answer: Answer) -> None:
        self._told = True
        self.tell_known()
        self.answers[index] = answer
        if self._on_answer:
            self._on_answer(index, answer)

    def _kept(self, outcome: Outcome | None) -> Answer | None:
        if outcome is None:
            return None
        if isinstance(outcome, GristmillError):
            return Answer(error=outcome)
        scored = outcome.scored(multi_label=self._model.manifest.output.multi_label)
        answer = self._model.answer(outcome, scored, self._asked)
        answer.cached = True
        return answer
