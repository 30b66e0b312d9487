"""Golden items on real small models: a version that answers one otherwise is not loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.inference import golden, loading, preprocessing
from services.inference.backend import TensorSpec
from services.inference.items import Array
from services.inference.loading import Loaded
from services.inference.manifest import Manifest
from services.runtime.errors import InvalidRequest, Violation
from tests.unit.registry_worker.folders import LABELS, declare, linear, lines

FILE = "golden.jsonl"
FILES = {"model": "model.onnx", "golden": FILE}
# Each feature speaks for a label of its own, so loudly that nothing else is heard.
LOUD = 10 * np.eye(3)
FIRST, SECOND, THIRD = np.eye(3).tolist()
# One logit apart: e / (e + 2) and 1 / (e + 2).
QUIET = [0.5761, 0.2119, 0.2119]
MULTI = {"output": {"labels": list(LABELS), "multi_label": True}}


def load(
    folder: Path, *golden_lines: Any, weights: Any = LOUD, gives: str = "logits", **fields: Any
) -> Loaded:
    """The model of these weights, held against these lines."""
    linear(folder, weights, gives, **{"files": FILES, **fields})
    lines(folder / FILE, *golden_lines)
    return loading.load(Manifest.read(folder), folder, 1)


def refusal(folder: Path, *golden_lines: Any, **how: Any) -> Violation:
    """Why it is not loaded."""
    with pytest.raises(InvalidRequest) as raised:
        load(folder, *golden_lines, **how)
    (violation,) = raised.value.violations
    return violation


def example(features: list[float], label: Any = None, **more: Any) -> dict[str, Any]:
    """A line."""
    said = {} if label is None else {"label": label}
    return {"features": features, **said, **more}


def test_a_model_that_answers_as_it_should_is_loaded(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        example(FIRST, "a"),
        example(SECOND, 1),
        "",
        example(THIRD, "c", probabilities=[0, 0, 1]),
        example([0, 0, 0], probabilities=[0.33, 0.34, 0.33]),
    )
    manifest = Manifest.read(tmp_path)
    count = golden.check(manifest, tmp_path, loaded.preprocessor, loaded.instances[0])
    assert count == 4, "the empty line is none"


def test_a_model_without_golden_items_is_held_against_nothing(tmp_path: Path) -> None:
    loaded = load(tmp_path, "no JSON", files={"model": "model.onnx"})
    manifest = Manifest.read(tmp_path)
    assert golden.check(manifest, tmp_path, loaded.preprocessor, loaded.instances[0]) == 0


def test_an_empty_file_is_no_golden_items(tmp_path: Path) -> None:
    load(tmp_path)


@pytest.mark.parametrize("label", ["c", 2])
def test_another_label_is_refused_naming_file_and_line(tmp_path: Path, label: Any) -> None:
    violation = refusal(tmp_path, example(FIRST, "a"), "", example(SECOND, label))
    assert violation == Violation(f"{FILE}: line 3", "is c, the model answers b")


def test_a_probability_may_be_missed_by_the_tolerance(tmp_path: Path) -> None:
    def with_off(off: float, **more: Any) -> dict[str, Any]:
        return example(FIRST, probabilities=[QUIET[0] + off, *QUIET[1:]], **more)

    weights = np.eye(3)
    load(tmp_path, with_off(0.0099), with_off(-0.0099), weights=weights)
    load(tmp_path, with_off(0.09, tolerance=0.1), weights=weights)
    violation = refusal(tmp_path, with_off(0), with_off(0.0102), weights=weights)
    assert violation.field == f"{FILE}: line 2"
    assert violation.description == "is missed by 0.0102, more than the tolerance 0.01"
    violation = refusal(tmp_path, with_off(0.0102, tolerance=0.001), weights=weights)
    assert violation.description.endswith("more than the tolerance 0.001")


@pytest.mark.parametrize("index", range(3))
def test_every_probability_counts_whatever_the_label(tmp_path: Path, index: int) -> None:
    wrong = [p + (0.2 if i == index else 0) for i, p in enumerate(QUIET)]
    violation = refusal(tmp_path, example(FIRST, "a", probabilities=wrong), weights=np.eye(3))
    assert "is missed by 0.2" in violation.description


def test_a_right_probability_does_not_excuse_a_wrong_label(tmp_path: Path) -> None:
    line = example(FIRST, "b", probabilities=QUIET)
    assert "is b, the model answers a" in refusal(tmp_path, line, weights=np.eye(3)).description


@pytest.mark.parametrize("given", [[0.5, 0.5], [1, 0, 0, 0], [1]])
def test_as_many_probabilities_as_the_model_gives(tmp_path: Path, given: list[float]) -> None:
    violation = refusal(tmp_path, example(FIRST, "a"), example(FIRST, probabilities=given))
    said = f"has {len(given)} probabilities, the model gives 3"
    assert violation == Violation(f"{FILE}: line 2", said)


def test_probabilities_of_the_model_are_taken_as_they_are(tmp_path: Path) -> None:
    weights = [[0.25, 0.5, 0.25]]
    line = {"features": [1.0], "label": "b", "probabilities": [0.25, 0.5, 0.25], "tolerance": 0}
    load(tmp_path, line, weights=weights, gives="probabilities")


def test_of_equal_answers_the_first_is_meant(tmp_path: Path) -> None:
    load(tmp_path, example([0, 0, 0], "a"))
    assert "the model answers a" in refusal(tmp_path, example([0, 0, 0], "b")).description


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "not features", "label": "a"}, ""),
        (example([1, 2], "a"), "3"),
        (example([1, 2, float("nan")], "a"), "finite"),
        ({"features": [], "label": "a"}, ""),
        ("no JSON", "is no JSON"),
        ("[]", "is no JSON object"),
        ({"label": "a"}, 'needs "text"'),
        ({"features": [1, 2, 3]}, 'needs a "label"'),
        (example(FIRST, "z"), "'z' is none of the labels: a, b, c"),
        (example(FIRST, 3), "3 is none of the labels"),
        (example(FIRST, ["a"]), "this model needs one label"),
    ],
)
def test_a_line_that_is_no_item_of_the_model_is_refused(
    tmp_path: Path, line: Any, said: str
) -> None:
    violation = refusal(tmp_path, example(FIRST, "a"), line)
    assert said in violation.description
    assert violation.field == f"{FILE}: line 2"


@pytest.mark.parametrize(
    "line", ["no JSON", {"label": "a"}, example(FIRST, "z"), example(FIRST, ["a"])]
)
def test_its_line_is_named_at_least(tmp_path: Path, line: Any) -> None:
    assert "line 2" in refusal(tmp_path, example(FIRST, "a"), line).field


def test_no_more_than_so_many_are_run(tmp_path: Path) -> None:
    many = [example(FIRST, "a")] * golden.MOST
    load(tmp_path, *many)
    violation = refusal(tmp_path, *many, example(FIRST, "a"))
    assert violation == Violation(f"{FILE}: line 257", "at most 256 golden items are run")


def test_each_item_is_run_alone(tmp_path: Path) -> None:
    """What answers differently in company is another matter: nothing is batched here."""
    linear(tmp_path, LOUD, files=FILES)
    lines(tmp_path / FILE, *[example(FIRST, "a")] * 3)
    sizes: list[int] = []

    class Instance:
        def run(self, inputs: Any) -> dict[str, Array]:
            sizes.append(len(inputs["features"]))
            return {"logits": inputs["features"]}

    assert _check(tmp_path, Instance()) == 3
    assert sizes == [1, 1, 1]


def _check(folder: Path, instance: Any) -> int:
    """Hold an instance against the golden items of a folder."""
    manifest = Manifest.read(folder)
    specs = (TensorSpec("features", "FP32", (-1, 3)),)
    built = preprocessing.build(manifest, folder, specs)
    return golden.check(manifest, folder, built, instance)


# Several labels, or none.


def test_a_multi_label_model_gives_exactly_those(tmp_path: Path) -> None:
    load(
        tmp_path,
        example([1, 1, -1], ["a", "b"]),
        example([1, -1, 1], [2, "a"]),
        example([-1, 1, -1], ["b"], probabilities=[0, 1, 0]),
        **MULTI,
    )
    for label, said in (
        (["a"], "is a, the model answers a, b"),
        (["a", "b", "c"], "is a, b, c, the model answers a, b"),
        (["c"], "is c, the model answers a, b"),
    ):
        violation = refusal(tmp_path, example([1, 1, -1], label), **MULTI)
        assert violation == Violation(f"{FILE}: line 1", said)
    assert "answers none" in refusal(tmp_path, example([-1, -1, -1], ["a"]), **MULTI).description


def test_a_label_is_given_from_one_half(tmp_path: Path) -> None:
    load(tmp_path, example([0, -0.001, 1], ["a", "c"]), **MULTI)


@pytest.mark.parametrize("label", ["a", 0])
def test_labels_of_a_multi_label_model_are_a_list(tmp_path: Path, label: Any) -> None:
    violation = refusal(tmp_path, example(FIRST, label), **MULTI)
    assert "this model needs a list of labels" in violation.description


def test_no_label_is_held_against_the_model_too(tmp_path: Path) -> None:
    load(tmp_path, example([-1, -1, -1], []), **MULTI)
    violation = refusal(tmp_path, example([1, -1, -1], []), **MULTI)
    assert violation == Violation(f"{FILE}: line 1", "is none, the model answers a")


def test_an_empty_list_is_not_one_label(tmp_path: Path) -> None:
    assert "needs one label" in refusal(tmp_path, example(FIRST, [])).description


# What cannot be answered at all.


def test_an_answer_that_is_no_number_is_refused_naming_file_and_line(tmp_path: Path) -> None:
    weights = np.full((3, 3), np.inf)
    violation = refusal(
        tmp_path, example([1, 1, 1], "a"), example([1, -1, 1], "a"), weights=weights
    )
    assert violation.field.startswith(f"{FILE}: line ")


def test_an_item_that_the_model_cannot_run_is_refused_naming_file_and_line(tmp_path: Path) -> None:
    class Instance:
        def run(self, inputs: Any) -> dict[str, Array]:
            raise RuntimeError("no such id")

    linear(tmp_path, LOUD, files=FILES)
    lines(tmp_path / FILE, example(FIRST, "a"))
    with pytest.raises(InvalidRequest) as raised:
        _check(tmp_path, Instance())
    assert raised.value.violations[0].field == f"{FILE}: line 1"


def test_words_that_are_not_ours_are_told_by_their_kind(tmp_path: Path) -> None:
    """As of any load that fails: `ListLoadedModels` shows the reason to whoever may read it."""

    class Instance:
        def run(self, inputs: Any) -> dict[str, Array]:
            raise RuntimeError("/secret/path is bad")

    linear(tmp_path, LOUD, files=FILES)
    lines(tmp_path / FILE, example(FIRST, "a"))
    with pytest.raises(InvalidRequest, match="RuntimeError") as raised:
        _check(tmp_path, Instance())
    assert "secret" not in raised.value.message


def test_a_file_that_is_not_there_is_the_manifests_error(tmp_path: Path) -> None:
    linear(tmp_path, LOUD, files=FILES)
    with pytest.raises(InvalidRequest):
        loading.load(Manifest.read(tmp_path), tmp_path, 1)


def test_a_manifest_that_changes_its_labels_changes_what_is_right(tmp_path: Path) -> None:
    load(tmp_path, example(FIRST, "a"))
    declare(tmp_path, files=FILES, output={"labels": ["b", "a", "c"]})
    with pytest.raises(InvalidRequest, match="is a, the model answers b"):
        loading.load(Manifest.read(tmp_path), tmp_path, 1)
    lines(tmp_path / FILE, json.dumps(example(FIRST, "b")))
    loading.load(Manifest.read(tmp_path), tmp_path, 1)
