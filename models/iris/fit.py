"""Fits the iris coefficients (development only, needs scikit-learn); knows nothing of serving."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from models.iris.recipe import HEAD_PATH
from models.metrics import Floats, Labels, classification_metrics, softmax
from models.progress import Reporter

HELD_OUT_PERCENT = 30
COEFFICIENT_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Flowers:
    """Measurements [n, 4] in centimetres, species [n], and which rows are held out."""

    features: Floats
    labels: Labels
    held_out: NDArray[np.bool_]


def fit(reporter: Reporter, *, check: bool) -> int:
    flowers = read_flowers()
    weights, bias = _logistic(flowers)
    if check:
        committed = json.loads(HEAD_PATH.read_text(encoding="utf-8"))
        gap = max(
            np.abs(weights - committed["weights"]).max(), np.abs(bias - committed["bias"]).max()
        )
        reporter.say(f"largest difference of a coefficient {gap:.6f}")
        return int(gap > COEFFICIENT_TOLERANCE)
    answers = softmax(flowers.features[flowers.held_out] @ weights + bias)
    metrics = classification_metrics(answers, flowers.labels[flowers.held_out])
    content = {"weights": weights.tolist(), "bias": bias.tolist(), "metrics": metrics}
    HEAD_PATH.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    reporter.say(f"wrote {HEAD_PATH}: {metrics}")
    return 0


def read_flowers() -> Flowers:
    data = load_iris()
    features: Floats = np.asarray(data.data, np.float64)
    # By hash of the measurements: both copies of the duplicate row must fall on one side.
    held_out = np.array([_bucket(row) < HELD_OUT_PERCENT for row in features])
    return Flowers(features, np.asarray(data.target, np.int64), held_out)


def _bucket(row: Floats) -> int:
    return int.from_bytes(hashlib.sha256(repr(row.tolist()).encode()).digest()[:8]) % 100


def _logistic(flowers: Flowers) -> tuple[Floats, Floats]:
    train = ~flowers.held_out
    model = LogisticRegression(C=10.0, max_iter=10_000, tol=1e-8)
    model.fit(flowers.features[train], flowers.labels[train])
    return np.round(model.coef_.T, 5), np.round(model.intercept_, 5)
