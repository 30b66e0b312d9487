"""A model's outputs as labels with probabilities. Knows no wire and no queue."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.items import Array
from services.runtime.errors import BackendFailed

Floats = NDArray[np.float64]
# Up to so many numbers, going through them takes less than calling numpy.
SMALL = 32
NOT_FINITE = "the model gave numbers that are not finite"


@dataclass(frozen=True, slots=True)
class Label:
    """A label, its index and its probability."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Which labels a caller wants."""

    top_k: int = 1
    threshold: float | None = None


class Scores:
    """The probabilities of every item of a batch, made in one go for all of them."""

    __slots__ = ("best", "best_score", "finite", "rows")

    def __init__(self, outputs: Mapping[str, Array], *, multi_label: bool) -> None:
        self.rows = _probabilities(outputs, multi_label=multi_label)
        """One row for each item, in float64."""
        self.finite: list[bool]
        self.best: list[int]
        """The index of the best label of each; the first of equals."""
        self.best_score: list[float]
        if self.rows.size <= SMALL:
            rows = self.rows.tolist()
            self.finite = [all(map(math.isfinite, row)) for row in rows]
            self.best_score = [max(row) for row in rows]
            self.best = [row.index(best) for row, best in zip(rows, self.best_score, strict=True)]
        else:
            self.finite = np.asarray(np.isfinite(self.rows).all(axis=1)).tolist()
            self.best = self.rows.argmax(axis=1).tolist()
            self.best_score = self.rows.max(axis=1).tolist()

    def row(self, index: int) -> Floats:
        """The probabilities of one item; BackendFailed where they are no numbers."""
        if not self.finite[index]:
            raise BackendFailed(NOT_FINITE)
        row: Floats = self.rows[index]
        return row

    def labels(self, index: int, names: Sequence[str], choice: Choice) -> list[Label]:
        """The labels wanted of one item, best first."""
        if not self.finite[index]:
            raise BackendFailed(NOT_FINITE)
        if choice.top_k == 1 and choice.threshold is None:
            best = self.best[index]
            return [Label(_name(names, best), best, self.best_score[index])]
        return choose(self.rows[index], names, choice)


class Outputs:
    """What one run gave, the batch dimension first; its items share it."""

    __slots__ = ("_failed", "_scores", "arrays", "multi_label")

    def __init__(self, arrays: Mapping[str, Array], *, multi_label: bool = False) -> None:
        self.arrays = arrays
        self.multi_label = multi_label
        self._scores: Scores | None = None
        self._failed: BackendFailed | None = None

    def row(self, index: int) -> dict[str, Array]:
        """The outputs of one item, without batch dimension."""
        return {name: values[index] for name, values in self.arrays.items()}

    def score(self) -> None:
        """Make the probabilities now, on the thread that ran the batch."""
        try:
            self._scores = Scores(self.arrays, multi_label=self.multi_label)
        except BackendFailed as error:
            self._failed = error
        except Exception as error:
            # It must not end the thread of the instance.
            self._failed = BackendFailed(f"{type(error).__name__}: {error}")

    @property
    def scores(self) -> Scores:
        """The probabilities; raises BackendFailed where the outputs have none."""
        if self._scores is None and self._failed is None:
            self.score()
        if self._scores is None:
            raise self._failed or BackendFailed("no probabilities")
        return self._scores


def probabilities(outputs: Mapping[str, Array], *, multi_label: bool) -> Floats:
    """The probability of each label of one item, from `probabilities` or else from `logits`."""
    batch = {name: np.asarray(values)[None] for name, values in outputs.items()}
    return Scores(batch, multi_label=multi_label).row(0)


def _probabilities(outputs: Mapping[str, Array], *, multi_label: bool) -> Floats:
    if "probabilities" in outputs:
        return _numbers(outputs["probabilities"])
    if "logits" in outputs or len(outputs) == 1:
        logits = _numbers(outputs.get("logits", next(iter(outputs.values()))))
        return _from_logits(logits, multi_label=multi_label)
    raise BackendFailed(f"no probabilities or logits among {sorted(outputs)}")


def _numbers(values: Array) -> Floats:
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BackendFailed(f"the model gave no numbers but {values.dtype}") from error
    if not found.size:
        raise BackendFailed("the model gave an empty output")
    return found.reshape(len(found), -1)


def _from_logits(logits: Floats, *, multi_label: bool) -> Floats:
    if multi_label:
        # The logistic function in the form that does not overflow.
        found: Floats = (1 + np.tanh(logits / 2)) / 2
        return found
    # An infinite logit becomes a NaN, which is refused when it is read.
    with np.errstate(all="ignore"):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        normal: Floats = shifted / shifted.sum(axis=1, keepdims=True)
    return normal


def choose(scores: Floats, labels: Sequence[str], choice: Choice) -> list[Label]:
    """The labels wanted, best first; equal ones by index."""
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    if choice.threshold is not None:
        order = [i for i in order if scores[i] >= choice.threshold]
    most = choice.top_k if choice.threshold is None else None
    return [Label(_name(labels, i), i, float(scores[i])) for i in order[:most]]


def _name(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)
