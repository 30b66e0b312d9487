"""Figures that say how good class probabilities are, in numpy; knows no model and no task."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Mask = NDArray[np.bool_]
Figures = dict[str, float]

CALIBRATION_BINS = 10


def classification_metrics(probabilities: Floats, labels: Labels) -> Figures:
    """`probabilities` is [n, classes], `labels` is [n]; f1 is the mean over classes."""
    predicted = probabilities.argmax(axis=1)
    chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-7, 1.0)
    figures = {
        "n": float(len(labels)),
        "accuracy": float(np.mean(predicted == labels)),
        "f1": float(
            np.mean([_f1(predicted == c, labels == c) for c in range(probabilities.shape[1])])
        ),
        "log_loss": float(-np.log(chosen).mean()),
        "expected_calibration_error": expected_calibration_error(probabilities, labels),
    }
    return {name: round(value, 4) for name, value in figures.items()}


def expected_calibration_error(probabilities: Floats, labels: Labels) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of the confidence."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [
        abs(right[bins == b].mean() - confidence[bins == b].mean()) * np.mean(bins == b)
        for b in np.unique(bins)
    ]
    return float(sum(gaps))


def softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _f1(predicted: Mask, actual: Mask) -> float:
    both = int(np.sum(predicted & actual))
    return 2 * both / max(int(predicted.sum() + actual.sum()), 1)
