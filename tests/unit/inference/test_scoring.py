"""Outputs to probabilities, probabilities to the labels that a caller wants."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.items import Array
from services.inference.scoring import Choice, choose, probabilities
from services.runtime.errors import BackendFailed

LOGITS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20)
SCORES = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20)
LABELS = ("no", "yes", "maybe")


def scored(values: Any, name: str = "logits", *, multi_label: bool = False) -> list[float]:
    """Probabilities of one output."""
    outputs: dict[str, Array] = {name: np.array(values, dtype=np.float32)}
    return [float(value) for value in probabilities(outputs, multi_label=multi_label)]


def names(scores: list[float], **choice: Any) -> list[str]:
    """The labels chosen."""
    return [one.label for one in choose(np.array(scores), LABELS, Choice(**choice))]


@given(LOGITS)
@settings(deadline=None)
def test_logits_become_probabilities_that_keep_their_order(logits: list[float]) -> None:
    found = scored(logits)
    assert sum(found) == pytest.approx(1.0)
    assert all(0 <= value <= 1 for value in found)
    for i, first in enumerate(logits):
        for j, second in enumerate(logits):
            assert first <= second or found[i] >= found[j]


@given(LOGITS)
@settings(deadline=None)
def test_labels_of_a_multi_label_model_stand_alone(logits: list[float]) -> None:
    found = scored(logits, multi_label=True)
    assert all(0 <= value <= 1 for value in found)
    assert found == [scored([logit], multi_label=True)[0] for logit in logits]


def test_known_values() -> None:
    assert scored([0, 0]) == [0.5, 0.5]
    assert scored([0.0, np.log(3)]) == pytest.approx([0.25, 0.75])
    assert scored([0.0, np.log(3)], multi_label=True) == pytest.approx([0.5, 0.75])


def test_probabilities_are_taken_as_they_are() -> None:
    outputs: dict[str, Array] = {
        "logits": np.array([9.0, 0.0]),
        "probabilities": np.array([0.25, 0.75]),
    }
    assert probabilities(outputs, multi_label=False).tolist() == [0.25, 0.75]


def test_a_single_output_of_any_name_is_logits() -> None:
    assert scored([1, 1], name="output_0") == [0.5, 0.5]


def test_outputs_that_say_nothing_of_labels_fail_the_item() -> None:
    outputs: dict[str, Array] = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(BackendFailed):
        probabilities(outputs, multi_label=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_fail_the_item(value: float) -> None:
    for name in ("logits", "probabilities"):
        with pytest.raises(BackendFailed):
            scored([0.5, value, value], name=name)


def test_a_logit_of_minus_infinity_rules_a_label_out() -> None:
    assert scored([0.0, float("-inf"), 0.0]) == [0.5, 0.0, 0.5]
    assert scored([0.0, float("-inf")], multi_label=True) == [0.5, 0.0]
    with pytest.raises(BackendFailed):
        scored([float("-inf")] * 2)


def test_words_instead_of_numbers_fail_the_item() -> None:
    with pytest.raises(BackendFailed):
        probabilities({"label": np.array(["positive"])}, multi_label=False)


def test_an_empty_output_fails_the_item() -> None:
    with pytest.raises(BackendFailed):
        probabilities({"logits": np.zeros(0)}, multi_label=False)


@given(SCORES, st.integers(1, 30))
@settings(deadline=None)
def test_the_top_labels_are_the_best_ones_best_first(scores: list[float], top_k: int) -> None:
    found = choose(np.array(scores), [], Choice(top_k))
    assert len(found) == min(top_k, len(scores))
    assert [one.score for one in found] == sorted(scores, reverse=True)[:top_k]
    assert all(scores[one.index] == one.score for one in found)
    assert len({one.index for one in found}) == len(found)


@given(SCORES, st.floats(0, 1, width=32))
@settings(deadline=None)
def test_a_threshold_takes_what_reaches_it_and_top_k_no_part(
    scores: list[float], threshold: float
) -> None:
    found = choose(np.array(scores), [], Choice(1, threshold))
    assert {one.index for one in found} == {i for i, s in enumerate(scores) if s >= threshold}
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_equal_scores_go_by_index() -> None:
    assert names([0.2, 0.4, 0.4], top_k=3) == ["yes", "maybe", "no"]
    assert names([0.4, 0.4, 0.2]) == ["no"]


def test_a_label_without_a_name_is_its_index() -> None:
    assert names([0.1, 0.2, 0.3, 0.4], top_k=4) == ["3", "maybe", "yes", "no"]
    assert [one.label for one in choose(np.array([1.0, 0.0]), [], Choice(2))] == ["0", "1"]
