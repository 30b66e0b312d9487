"""The iris graph is the formula it is fitted as."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models.build import BuildOptions, build
from models.iris.recipe import HEAD_PATH, LABELS, RECIPE
from models.metrics import softmax
from models.progress import Reporter


@pytest.fixture
def session(tmp_path: Path, reporter: Reporter) -> onnxruntime.InferenceSession:
    build(RECIPE, tmp_path, BuildOptions(), reporter)
    return onnxruntime.InferenceSession(
        tmp_path / "iris" / "model.onnx", providers=["CPUExecutionProvider"]
    )


def test_the_graph_equals_the_formula(session: onnxruntime.InferenceSession) -> None:
    head = json.loads(HEAD_PATH.read_text())
    features = np.random.default_rng(1).uniform(0.1, 8.0, (64, 4)).astype(np.float32)
    logits, probabilities = session.run(["logits", "probabilities"], {"features": features})
    expected = features.astype(np.float64) @ np.array(head["weights"]) + np.array(head["bias"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(probabilities, softmax(expected), atol=1e-5)
    assert logits.dtype == probabilities.dtype == np.float32


@pytest.mark.parametrize(
    ("flower", "species"),
    [
        ((5.1, 3.5, 1.4, 0.2), "setosa"),
        ((5.7, 2.8, 4.1, 1.3), "versicolor"),
        ((6.3, 3.3, 6.0, 2.5), "virginica"),
    ],
)
def test_typical_flowers_are_told_apart(
    session: onnxruntime.InferenceSession, flower: tuple[float, ...], species: str
) -> None:
    (probabilities,) = session.run(["probabilities"], {"features": np.array([flower], np.float32)})
    assert LABELS[int(probabilities[0].argmax())] == species


def test_the_held_out_accuracy_is_recorded() -> None:
    metrics = json.loads(HEAD_PATH.read_text())["metrics"]
    assert metrics["accuracy"] > 0.9
    assert metrics["n"] >= 30
