"""Copies of answered calls to a version that only watches: compared, counted, never waited for.

A shadow goes last: the least urgent priority, a place only while few are under way, and nothing of
it reaches the caller. Knows no wire.
"""

import asyncio
from collections.abc import Sequence

import numpy as np
import structlog

from services.classifier.answers import Answer, Asked, Given
from services.classifier.classifier import Classifier
from services.inference.loaded import Loaded, Use
from services.inference.scoring import Choice
from services.runtime import metrics
from services.runtime.deadline import Deadline
from services.runtime.errors import BackendFailed, GristmillError

MOST_ITEMS = 1024
"""Under way at once, of all models; more are dropped."""
TIMEOUT_S = 30.0
LEAST_URGENT = 9
IDENTITY = "shadow"
_log = structlog.get_logger()


class Shadows:
    """The copies under way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._items = 0

    def watch(self, shadow: Loaded[Classifier], items: Given, answers: Sequence[Answer]) -> None:
        """Let a shadow see what was answered."""
        model, version = shadow.entry.model, str(shadow.entry.version)
        count = len(items)
        if self._items + count > MOST_ITEMS:
            metrics.SHADOW_ITEMS.labels(model, version, "dropped").inc(count)
            return
        self._items += count
        task = asyncio.ensure_future(self._compare(Use(shadow), items, answers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(self, use: Use[Classifier], items: Given, answers: Sequence[Answer]) -> None:
        model, version = use.loaded.entry.model, str(use.loaded.entry.version)
        try:
            with use as shadow:
                if shadow.runner is None:
                    return
                deadline = Deadline.after(TIMEOUT_S)
                # Outputs alone: labels are made of them here, where both are there to compare.
                asked = Asked(IDENTITY, deadline, LEAST_URGENT, Choice(), no_cache=True, raw=True)
                seen = await shadow.runner.classify(items, asked)
            for ours, theirs in zip(answers, seen, strict=True):
                metrics.SHADOW_ITEMS.labels(model, version, _outcome(ours, theirs)).inc()
                if (difference := _difference(ours, theirs)) is not None:
                    metrics.SHADOW_DIFFERENCE.labels(model, version).observe(difference)
        except GristmillError as error:
            outcome = "failed" if not error.retry_after_s else "dropped"
            metrics.SHADOW_ITEMS.labels(model, version, outcome).inc(len(items))
        except Exception:
            _log.exception("shadow failed", model=model, version=version)
            metrics.SHADOW_ITEMS.labels(model, version, "failed").inc(len(items))
        finally:
            self._items -= len(items)


def _outcome(ours: Answer, theirs: Answer) -> str:
    best, other = _best(ours), _best(theirs)
    if other is None:
        return "failed" if best is not None else "agree"
    return "agree" if best == other else "disagree"


def _best(answer: Answer) -> str | None:
    """The best label, whatever of them the caller asked for; "" of outputs without
    probabilities, and None where the item failed."""
    if answer.scored is None:
        return None
    try:
        scores = answer.scored.batch.scores
    except BackendFailed:
        return ""
    try:
        (label,) = scores.labels(answer.scored.index, answer.names, Choice())
    except BackendFailed:
        return None
    return label.label


def _difference(ours: Answer, theirs: Answer) -> float | None:
    """The largest between probabilities of the same labels; None where nothing compares."""
    if ours.scored is None or theirs.scored is None or list(ours.names) != list(theirs.names):
        return None
    try:
        one = ours.scored.batch.scores.row(ours.scored.index)
        other = theirs.scored.batch.scores.row(theirs.scored.index)
    except BackendFailed:
        return None
    return float(np.abs(one - other).max()) if one.shape == other.shape else None
