"""Outputs to probabilities, probabilities to the labels that a caller wants."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.inference.items import Array
from services.inference.scoring import (
    NOT_FINITE,
    SMALL,
    Choice,
    Label,
    Outputs,
    Scores,
    choose,
    probabilities,
)
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


# All items of a batch at once: the same as one by one, whichever way the numbers are gone through.

CHOICES = st.builds(Choice, st.integers(1, 6), st.none() | st.floats(0, 1, width=32))


def rows_of(elements: st.SearchStrategy[float], kind: str) -> st.SearchStrategy[Array]:
    """A batch of a few rows, of few labels or many: on both sides of what is small."""
    most = 2 * SMALL
    shapes = st.tuples(st.integers(1, 9), st.integers(1, most)).filter(
        lambda shape: shape[0] * shape[1] <= 3 * SMALL
    )
    return npst.arrays(kind, shapes, elements=elements)


ODD = st.sampled_from([float("nan"), float("inf"), float("-inf")])


def likely(bits: int = 64) -> st.SearchStrategy[float]:
    """Numbers of so many bits, many of them equal."""
    often = st.sampled_from([0.0, -0.0, 0.5, 0.5, 1.0, 0.25])
    return st.one_of(often, st.floats(-6e4, 6e4, width=bits))


def row_or_error(scores: Scores, index: int) -> list[float] | str:
    """The probabilities of one item, or why it has none."""
    try:
        return [float(value) for value in scores.row(index)]
    except BackendFailed as error:
        return str(error)


@pytest.mark.parametrize("name", ["logits", "probabilities"])
@pytest.mark.parametrize("bits", [16, 32, 64])
@given(data=st.data(), multi_label=st.booleans(), choice=CHOICES)
@settings(deadline=None, max_examples=60)
def test_a_batch_is_scored_as_each_of_its_rows(
    name: str, bits: int, data: st.DataObject, choice: Choice, *, multi_label: bool
) -> None:
    """Numbers that are not finite fail their own row, and nothing else does."""
    batch = data.draw(rows_of(st.one_of(likely(bits), likely(bits), ODD), f"<f{bits // 8}"))
    whole = Scores({name: batch}, multi_label=multi_label)
    for index, row in enumerate(batch):
        found = row_or_error(whole, index)
        alone = row_or_error(Scores({name: row[None]}, multi_label=multi_label), 0)
        if isinstance(found, str):
            assert found == alone == NOT_FINITE
            with pytest.raises(BackendFailed, match=NOT_FINITE):
                whole.labels(index, LABELS, choice)
            continue
        assert found == pytest.approx(alone, rel=1e-12, abs=1e-300)
        assert name == "logits" or found == row.tolist()
        for one in (choice, Choice()):
            assert whole.labels(index, LABELS, one) == choose(np.array(found), LABELS, one)


@given(rows_of(likely(), "<f8"))
@settings(deadline=None)
def test_the_best_of_each_row_is_its_first_largest(batch: Array) -> None:
    scores = Scores({"probabilities": batch}, multi_label=False)
    for index, row in enumerate(batch.tolist()):
        best = row.index(max(row))
        assert (scores.best[index], scores.best_score[index]) == (best, row[best])
        (label,) = scores.labels(index, [], Choice())
        assert label == Label(str(best), best, row[best])


def wide(rows: list[list[float]], *, small: bool) -> Array:
    """Rows whose last columns say nothing, so many that the batch is large unless it is small."""
    batch = np.array(rows)
    return batch if small else np.hstack([batch, np.zeros((len(rows), 2 * SMALL))])


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_fails_alone(bad: float, *, small: bool) -> None:
    batch = wide([[0.25, 0.75], [0.5, bad], [bad, 0.5], [0.75, 0.25]], small=small)
    assert (batch.size <= SMALL) == small
    scores = Scores({"probabilities": batch}, multi_label=False)
    assert scores.finite == [True, False, False, True]
    assert scores.labels(0, LABELS, Choice()) == [Label("yes", 1, 0.75)]
    assert scores.labels(3, LABELS, Choice()) == [Label("no", 0, 0.75)]
    for index in (1, 2):
        for choice in (Choice(), Choice(3), Choice(1, 0.1)):
            with pytest.raises(BackendFailed, match=NOT_FINITE):
                scores.labels(index, LABELS, choice)
        with pytest.raises(BackendFailed, match=NOT_FINITE):
            scores.row(index)


@pytest.mark.parametrize(
    "small",
    [True, False],
)
def test_finite_numbers_of_any_size_are_finite(*, small: bool) -> None:
    batch = wide([[1e308, 1.1e308], [-1e308, -1.1e308]], small=small)
    assert Scores({"probabilities": batch}, multi_label=False).finite == [True, True]


@pytest.mark.parametrize("small", [True, False])
def test_equal_bests_go_by_index_in_every_row(*, small: bool) -> None:
    batch = wide([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], small=small)
    scores = Scores({"probabilities": batch}, multi_label=False)
    assert scores.best == [1, 0, 0]
    assert [scores.labels(n, LABELS, Choice())[0].label for n in range(3)] == ["yes", "no", "no"]


@pytest.mark.parametrize("small", [True, False])
def test_a_multi_label_batch_is_not_normalised(*, small: bool) -> None:
    batch = wide([[0.0, np.log(3)], [-1e4, 1e4]], small=small)
    scores = Scores({"logits": batch}, multi_label=True)
    assert scores.row(0)[:2].tolist() == pytest.approx([0.5, 0.75])
    assert scores.row(1)[:2].tolist() == [0, 1]
    found = scores.labels(0, LABELS, Choice(1, 0.6))
    assert [(one.label, one.score) for one in found] == [("yes", pytest.approx(0.75))]


@pytest.mark.parametrize("small", [True, False])
def test_large_logits_do_not_overflow(*, small: bool) -> None:
    batch = wide([[1e300, 1e300], [0.0, 1e308]], small=small)
    scores = Scores({"logits": batch}, multi_label=False)
    assert scores.row(0)[:2].tolist() == [0.5, 0.5]
    assert scores.row(1)[:2].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("shape", "width"), [((3,), 1), ((3, 1), 1), ((3, 2, 2), 4), ((3, 1, 1, 5), 5), ((1, 40), 40)]
)
def test_outputs_of_other_shapes_are_a_row_for_each_item(
    shape: tuple[int, ...], width: int
) -> None:
    batch = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    scores = Scores({"probabilities": batch}, multi_label=False)
    assert scores.rows.shape == (shape[0], width)
    for index in range(shape[0]):
        assert scores.row(index).tolist() == batch[index].ravel().tolist()
        assert scores.best[index] == width - 1


@pytest.mark.parametrize("kind", ["i1", "u4", "i8", "?", ">f4"])
def test_numbers_of_any_kind_are_numbers(kind: str) -> None:
    batch = np.array([[0, 1], [1, 0]], dtype=kind)
    scores = Scores({"probabilities": batch}, multi_label=False)
    assert scores.rows.dtype == np.float64
    assert scores.best == [1, 0]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)])
def test_a_batch_without_numbers_fails(shape: tuple[int, ...]) -> None:
    with pytest.raises(BackendFailed, match="empty"):
        Scores({"logits": np.zeros(shape)}, multi_label=False)


def test_scores_of_a_batch_are_made_once_and_shared() -> None:
    outputs = Outputs({"logits": np.array([[0.0, 1.0], [1.0, 0.0]]), "other": np.array([7, 8])})
    assert outputs.scores is outputs.scores
    assert {name: value.tolist() for name, value in outputs.row(1).items()} == {
        "logits": [1.0, 0.0],
        "other": 8,
    }


def test_a_batch_without_scores_says_so_to_each_who_asks() -> None:
    outputs = Outputs({"a": np.zeros((2, 2)), "b": np.zeros((2, 2))})
    outputs.score()
    for _ in range(2):
        with pytest.raises(BackendFailed, match="no probabilities or logits"):
            _ = outputs.scores
    assert outputs.row(0).keys() == {"a", "b"}, "the outputs themselves are there"


def test_outputs_know_whether_labels_exclude_each_other() -> None:
    arrays: dict[str, Array] = {"logits": np.array([[0.0, 0.0]])}
    assert Outputs(arrays).scores.row(0).tolist() == [0.5, 0.5]
    single, multi = (
        Outputs({"logits": np.array([[0.0]])}),
        Outputs({"logits": np.array([[0.0]])}, multi_label=True),
    )
    assert (single.scores.row(0).tolist(), multi.scores.row(0).tolist()) == ([1.0], [0.5])
