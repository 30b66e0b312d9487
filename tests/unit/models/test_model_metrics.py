"""The figures agree with values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.metrics import classification_metrics, expected_calibration_error, softmax


def test_figures_of_four_answers() -> None:
    answers = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    figures = classification_metrics(answers, np.array([0, 0, 1, 1]))
    assert figures["n"] == 4
    assert figures["accuracy"] == 0.75
    assert figures["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2, abs=1e-4)
    assert figures["log_loss"] == pytest.approx(-np.log([0.9, 0.4, 0.7, 0.8]).mean(), abs=1e-4)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = np.tile([[0.05, 0.95]], (20, 1))
    assert expected_calibration_error(sure, np.array([1] * 19 + [0])) == pytest.approx(0.0)
    assert expected_calibration_error(sure, np.array([1] * 10 + [0] * 10)) == pytest.approx(0.45)


def test_softmax_survives_large_logits() -> None:
    np.testing.assert_allclose(softmax(np.array([[1000.0, 1000.0]])), [[0.5, 0.5]])
