"""A model's outputs as labels with probabilities. Knows no wire and no batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.items import Array
from services.runtime.errors import BackendFailed


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


def probabilities(outputs: Mapping[str, Array], *, multi_label: bool) -> NDArray[np.float64]:
    """The probability of each label, from `probabilities` or else from `logits`."""
    if "probabilities" in outputs:
        found = _numbers(outputs["probabilities"])
    elif "logits" in outputs or len(outputs) == 1:
        logits = _numbers(outputs.get("logits", next(iter(outputs.values()))))
        found = _from_logits(logits, multi_label=multi_label)
    else:
        raise BackendFailed(f"no probabilities or logits among {sorted(outputs)}")
    if not np.isfinite(found).all():
        raise BackendFailed("the model gave numbers that are not finite")
    return found


def _numbers(values: Array) -> NDArray[np.float64]:
    try:
        found = np.asarray(values, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise BackendFailed(f"the model gave no numbers but {values.dtype}") from error
    if not found.size:
        raise BackendFailed("the model gave an empty output")
    return found


def _from_logits(logits: NDArray[np.float64], *, multi_label: bool) -> NDArray[np.float64]:
    if multi_label:
        # The logistic function in the form that does not overflow.
        found: NDArray[np.float64] = (1 + np.tanh(logits / 2)) / 2
        return found
    # An infinite logit becomes a NaN, which the caller refuses.
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max())
        normal: NDArray[np.float64] = shifted / shifted.sum()
    return normal


def choose(scores: NDArray[np.float64], labels: Sequence[str], choice: Choice) -> list[Label]:
    """The labels wanted, best first; equal ones by index."""
    if choice.top_k == 1 and choice.threshold is None:
        order = [int(scores.argmax())]  # the first of equals, and no sorting for the usual call
    else:
        order = np.argsort(-scores, kind="stable").tolist()
    if choice.threshold is not None:
        order = [i for i in order if scores[i] >= choice.threshold]
    return [Label(_name(labels, i), i, float(scores[i])) for i in order[: _most(choice)]]


def _most(choice: Choice) -> int | None:
    return choice.top_k if choice.threshold is None else None


def _name(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)
