"""How good probabilities are, as running sums: memory does not grow with the set.

Knows no model and no item. Single-label figures are those of scikit-learn: macro means are over
the classes that occur among labels or answers. Of a multi-label model a label is answered from 0.5
upwards, `accuracy` counts the examples with all labels right, and `log_loss` and `ece` are over
every (example, label).
"""

import numpy as np
from numpy.typing import NDArray

BINS = 15
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
SMALLEST = float(np.finfo(np.float64).eps)


class Scores:
    """The sums over all examples so far."""

    def __init__(self, width: int, *, multi_label: bool) -> None:
        self._multi_label = multi_label
        self.count = 0
        self._right = 0
        self._loss = 0.0
        self._both = np.zeros(width)
        self._predicted = np.zeros(width)
        self._actual = np.zeros(width)
        self._bin_count = np.zeros(BINS)
        self._bin_confidence = np.zeros(BINS)
        self._bin_hits = np.zeros(BINS)

    def add(self, probabilities: Floats, truth: Mask) -> None:
        """Count examples: both arrays are [examples, classes]."""
        predicted = self._answers(probabilities)
        right = (predicted == truth).all(axis=1)
        self.count += len(probabilities)
        self._right += int(right.sum())
        self._both += (predicted & truth).sum(axis=0)
        self._predicted += predicted.sum(axis=0)
        self._actual += truth.sum(axis=0)
        chosen = np.clip(np.where(truth, probabilities, 1 - probabilities), SMALLEST, 1.0)
        if self._multi_label:
            self._loss -= float(np.log(chosen).mean(axis=1).sum())
            self._calibrate(probabilities.ravel(), truth.ravel())
        else:
            self._loss -= float(np.log(chosen[truth]).sum())
            self._calibrate(probabilities.max(axis=1), right)

    def figures(self) -> dict[str, float]:
        """accuracy, f1_macro, precision_macro, recall_macro, log_loss (nats) and ece (15 bins)."""
        seen = (self._predicted + self._actual) > 0
        both, predicted, actual = (
            sums[seen] for sums in (self._both, self._predicted, self._actual)
        )
        gaps = np.abs(self._bin_hits - self._bin_confidence).sum()
        return {
            "accuracy": self._right / max(1, self.count),
            "f1_macro": _mean(2 * both / np.maximum(predicted + actual, 1)),
            "precision_macro": _mean(both / np.maximum(predicted, 1)),
            "recall_macro": _mean(both / np.maximum(actual, 1)),
            "log_loss": self._loss / max(1, self.count),
            "ece": float(gaps / max(1.0, self._bin_count.sum())),
        }

    def _answers(self, probabilities: Floats) -> Mask:
        if self._multi_label:
            return probabilities >= 0.5
        best = probabilities.argmax(axis=1)
        return np.asarray(np.arange(probabilities.shape[1]) == best[:, None])

    def _calibrate(self, confidence: Floats, hit: Mask) -> None:
        bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        self._bin_count += np.bincount(bins, minlength=BINS)
        self._bin_confidence += np.bincount(bins, weights=confidence, minlength=BINS)
        self._bin_hits += np.bincount(bins, weights=hit, minlength=BINS)


def _mean(values: Floats) -> float:
    return float(values.mean()) if values.size else 0.0
