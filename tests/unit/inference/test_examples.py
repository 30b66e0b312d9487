"""Lines of a labelled set: each kind of item, what is true of it, and errors that name the line."""

import base64
import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.inference.examples import TOLERANCE, Example, Labels, read
from services.inference.items import (
    Array,
    FeaturesItem,
    ImageItem,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.inference.json_items import item_in
from services.inference.preprocessing.preprocessor import DTYPES
from services.runtime.errors import InvalidRequest


def examples(folder: Path, *lines: Any) -> list[Example]:
    """The examples of a file of these lines."""
    path = folder / "data.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return list(read(path))


def tensor(datatype: str, data: list[Any], shape: list[int] | None = None) -> Array:
    """The tensor that a line says."""
    shape = [len(data)] if shape is None else shape
    value = {"datatype": datatype, "shape": shape, "data": data}
    item = item_in(json.loads(json.dumps({"tensors": {"x": value}})))
    assert isinstance(item, TensorsItem)
    return item.tensors["x"]


def test_every_kind_of_item(tmp_path: Path) -> None:
    picture = bytes(range(256))
    said = {"datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, -3, 4]}
    found = examples(
        tmp_path,
        {"text": "a", "label": 0},
        {"text": "a", "pair": "b", "label": 0},
        {"features": [1, 2], "label": 0},
        {"image": base64.b64encode(picture).decode(), "label": 0},
        {"tensors": {"a": said, "b": said}, "label": 0},
    )
    items = [example.item for example in found]
    assert items[0] == TextItem("a")
    assert items[1] == TextPairItem("a", "b")
    assert isinstance(items[2], FeaturesItem)
    assert list(items[2].values) == [1, 2]
    assert items[3] == ImageItem(picture)
    assert isinstance(items[4], TensorsItem)
    assert items[4].tensors.keys() == {"a", "b"}
    assert items[4].tensors["b"].tolist() == [[1, 2.5], [-3, 4]]
    assert [example.line for example in found] == [1, 2, 3, 4, 5]


def test_what_is_true_of_an_item(tmp_path: Path) -> None:
    chances = [0.25, 0.75, 0]
    first, second, third = examples(
        tmp_path,
        {"text": "a", "label": "x"},
        {"text": "a", "probabilities": chances, "tolerance": 0.5},
        {"text": "a", "label": ["x", 1], "probabilities": chances},
    )
    assert (first.labels, first.listed, first.probabilities) == (("x",), False, ())
    assert (second.labels, second.listed) == ((), False)
    assert (second.probabilities, second.tolerance) == (tuple(chances), 0.5)
    assert (third.labels, third.listed) == (("x", 1), True)
    assert (third.probabilities, third.tolerance) == (tuple(chances), TOLERANCE)


def test_where_labels_are_needed_probabilities_are_none(tmp_path: Path) -> None:
    (example,) = examples(tmp_path, {"text": "a", "probabilities": [1]})
    for multi_label in (False, True):
        with pytest.raises(InvalidRequest, match='line 1: needs a "label"'):
            Labels(["x"], multi_label).indices(example, 1)
    (nothing,) = examples(tmp_path, {"text": "a", "label": []})
    assert Labels(["x"], multi_label=True).indices(nothing, 1) == []


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("UINT8", [0, 255]),
        ("INT8", [-128, 127]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP16", [1.5, -2]),
        ("FP64", [1e300, 0.1]),
    ],
)
def test_elements_are_what_they_say(datatype: str, data: list[Any]) -> None:
    found = tensor(datatype, data)
    assert found.dtype == DTYPES[datatype]
    assert found.tolist() == data


def test_strings_are_bytes() -> None:
    assert tensor("BYTES", ["a", "\N{SNOWMAN}"]).tolist() == [b"a", "\N{SNOWMAN}".encode()]


def test_a_scalar_has_no_lengths() -> None:
    assert tensor("FP32", [3], []).shape == ()
    assert tensor("FP32", [], [2**32 - 1, 0]).size == 0


def test_numbers_that_are_none_are_numbers_of_a_tensor() -> None:
    found = tensor("FP32", [float("nan"), float("inf"), 1e300])
    assert np.array_equal(found, [np.nan, np.inf, np.inf], equal_nan=True)


@settings(deadline=None)
@given(st.floats(width=32))
@example(1 + 2**-8)
@example(1 + 3 * 2**-8)
@example(float("nan"))
@example(-math.inf)
def test_bf16_is_the_nearest(number: float) -> None:
    expected = np.array([number], np.float32).astype(ml_dtypes.bfloat16)
    found = tensor("BF16", [number]).view(ml_dtypes.bfloat16)
    assert np.array_equal(found.astype(np.float32), expected.astype(np.float32), equal_nan=True)


BAD_TENSORS = [
    ([], "needs"),
    ({"datatype": "FP32", "shape": [1]}, "needs"),
    ({"datatype": "FP8", "shape": [1], "data": [1]}, "datatype is none of BOOL, UINT8"),
    ({"datatype": "FP32", "shape": [2], "data": [1]}, "its shape holds 2 elements, its data 1"),
    ({"datatype": "FP32", "shape": [-1], "data": [1]}, "its shape must be lengths"),
    ({"datatype": "FP32", "shape": [True], "data": [1]}, "its shape must be lengths"),
    ({"datatype": "FP32", "shape": [1] * 17, "data": [1]}, "at most 16"),
    ({"datatype": "FP32", "shape": [2**40, 0], "data": []}, "its shape must be lengths"),
    ({"datatype": "FP32", "shape": [2**32 - 1] * 15 + [0], "data": []}, "tensor 'x': "),
    ({"datatype": "FP32", "shape": [1], "data": ["1"]}, "must be numbers"),
    ({"datatype": "FP32", "shape": [1], "data": [[1]]}, "must be numbers"),
    ({"datatype": "FP32", "shape": [1], "data": [10**400]}, "number without bounds"),
    ({"datatype": "INT8", "shape": [1], "data": [128]}, "a number that INT8 does not hold"),
    ({"datatype": "UINT64", "shape": [1], "data": [2**64]}, "that UINT64 does not hold"),
    ({"datatype": "INT8", "shape": [1], "data": [1.0]}, "must be whole numbers"),
    ({"datatype": "INT8", "shape": [1], "data": [True]}, "must be numbers"),
    ({"datatype": "BOOL", "shape": [1], "data": [1]}, "must be true or false"),
    ({"datatype": "BYTES", "shape": [1], "data": [1]}, "must be texts"),
    ({"datatype": "BYTES", "shape": [1], "data": ["\ud800"]}, "tensor 'x': "),
]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        *(({"label": 0, "tensors": {"x": value}}, said) for value, said in BAD_TENSORS),
        ({"label": 0, "tensors": []}, "needs"),
        ({"label": 0, "image": "no base64!"}, "image must be a file in base64"),
        ({"label": 0, "image": "YQ="}, "image must be a file in base64"),
        ({"label": 0, "image": "\N{SNOWMAN}"}, "image must be a file in base64"),
        ({"label": 0, "image": 1}, "needs"),
        ({"label": 0}, 'needs "text"'),
        ({"text": "a"}, 'needs a "label" or "probabilities"'),
        ({"text": "a", "probabilities": []}, "must be a list"),
        ({"text": "a", "probabilities": 0.5}, "must be a list"),
        ({"text": "a", "probabilities": [1.5]}, "a probability must be a number from 0 to 1"),
        ({"text": "a", "probabilities": [True]}, "a probability must be"),
        ({"text": "a", "probabilities": [float("nan")]}, "a probability must be"),
        ({"text": "a", "probabilities": ["1"]}, "a probability must be"),
        ({"text": "a", "probabilities": [1], "tolerance": -1}, "tolerance must be"),
        ({"text": "a", "label": 0, "probabilities": [1], "tolerance": None}, "tolerance must be"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, bad: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        examples(tmp_path, {"text": "a", "label": 0}, bad)
    (violation,) = raised.value.violations
    assert violation.field == "line 2"
    assert said in violation.description
