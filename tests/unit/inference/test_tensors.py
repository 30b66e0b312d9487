"""Raw tensors: what fits the model passes as it is, what does not is the item's own error."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from services.inference.backend import TensorSpec
from services.inference.items import Array, Encoded, ImageItem, TensorsItem, TextItem, pad
from services.inference.loading import load, warm_up_inputs
from services.inference.manifest import FILE_NAME, SCHEMA, Manifest
from services.inference.preprocessing import TensorsPreprocessor
from services.inference.preprocessing.preprocessor import DTYPES
from services.inference.preprocessing.tensors import CHEAP_STRINGS
from services.runtime.errors import InvalidRequest, UnsupportedField

IDS = TensorSpec("ids", "INT64", (-1, -1))
SCALE = TensorSpec("scale", "FP32", (-1, 2, -1))
FLAG = TensorSpec("flag", "BOOL", (-1,))


def one(arrays: dict[str, Array], *specs: TensorSpec) -> Any:
    """What becomes of an item."""
    return TensorsPreprocessor(specs).encode([TensorsItem(arrays)])[0]


def good(arrays: dict[str, Array], *specs: TensorSpec) -> Encoded:
    """An item that must fit."""
    found = one(arrays, *specs)
    assert isinstance(found, Encoded), found
    return found


def wrong(arrays: dict[str, Array], *specs: TensorSpec) -> tuple[str, str]:
    """The field and what is wrong with it."""
    found = one(arrays, *specs)
    assert isinstance(found, InvalidRequest), found
    (violation,) = found.violations
    return violation.field, violation.description


def texts(*values: bytes) -> Array:
    """A tensor of strings."""
    found = np.empty(len(values), dtype=np.object_)
    found[:] = values
    return found


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
def test_every_type_passes_without_a_copy(datatype: str) -> None:
    array = np.ones((2, 3), dtype=DTYPES[datatype])
    found = good({"x": array}, TensorSpec("x", datatype, (-1, 2, 3)))
    assert found.inputs["x"] is array
    assert (found.length, found.tokens, found.truncated) == (1, 0, False)
    others = {name for name, kind in DTYPES.items() if kind is not DTYPES[datatype]}
    for other in others - {"BYTES"}:
        field, said = wrong({"x": array}, TensorSpec("x", other, (-1, 2, 3)))
        assert field == "tensors[x]"
        assert said.startswith(f"the model takes {other}, this is ")


def test_bf16_is_two_bytes() -> None:
    """NumPy has no such type; it is not told from UINT16."""
    good({"x": np.array([0x3F80], np.uint16)}, TensorSpec("x", "BF16", (-1, 1)))


def test_numbers_that_are_none_are_numbers_here() -> None:
    array = np.array([np.nan, np.inf], np.float32)
    assert good({"x": array}, TensorSpec("x", "FP32", (-1, 2))).inputs["x"] is array


def test_strings_are_bytes_that_are_text() -> None:
    spec = TensorSpec("x", "BYTES", (-1, 2))
    array = texts("snow \N{SNOWMAN}".encode(), b"\0")
    assert good({"x": array}, spec).inputs["x"] is array
    assert "no UTF-8" in wrong({"x": texts(b"a", b"\xff")}, spec)[1]
    assert "takes BYTES" in wrong({"x": np.array([1, 2])}, spec)[1]


def test_all_inputs_are_needed_and_no_other() -> None:
    ids, scale = np.zeros(3, np.int64), np.zeros((2, 4), np.float32)
    good({"scale": scale, "ids": ids}, IDS, SCALE)
    for given_ in ({"ids": ids}, {"ids": ids, "scale": scale, "more": ids}, {}):
        field, said = wrong(given_, IDS, SCALE)
        assert field == "tensors"
        assert said.startswith("needs ['ids', 'scale'], has ")


def test_the_only_input_needs_no_name() -> None:
    array = np.zeros(3, np.int64)
    assert good({"": array}, IDS).inputs["ids"] is array
    assert wrong({"": array}, IDS, SCALE)[0] == "tensors"


@pytest.mark.parametrize("shape", [(), (2,), (3, 1), (2, 1, 1)])
def test_another_shape_is_named(shape: tuple[int, ...]) -> None:
    field, said = wrong({"scale": np.zeros(shape, np.float32)}, SCALE)
    assert field == "tensors[scale]"
    assert said == f"the model takes shape [2, -1], this is {list(shape)}"


def test_one_number_of_each_item_is_a_scalar() -> None:
    items = [good({"flag": np.array(value)}, FLAG) for value in (True, False)]
    assert pad(items, {})["flag"].tolist() == [True, False]
    assert items[0].group is None


lengths = st.integers(0, 3)


@settings(deadline=None)
@given(st.lists(st.tuples(lengths, lengths), min_size=2, max_size=6))
def test_only_items_of_the_same_shape_share_a_batch(shapes: list[tuple[int, int]]) -> None:
    items = [
        good({"ids": np.zeros(n, np.int64), "scale": np.zeros((2, k), np.float32)}, IDS, SCALE)
        for n, k in shapes
    ]
    for mine, shape in zip(items, shapes, strict=True):
        together = [i for i in items if i.group == mine.group]
        assert len(together) == shapes.count(shape)
        assert pad(together, {})["scale"].shape == (len(together), 2, shape[1])


def test_what_is_no_tensor_is_not_for_this_model() -> None:
    for item in (TextItem("x"), ImageItem(b"")):
        (found,) = TensorsPreprocessor([IDS]).encode([item])
        assert isinstance(found, UnsupportedField)
        assert found.message == "content: this model takes tensors"


def test_only_many_strings_are_dear() -> None:
    numbers = TensorsItem({"x": np.zeros(10 * CHEAP_STRINGS)})
    assert TensorsPreprocessor([IDS]).is_cheap([numbers] * 9)
    strings = TensorsPreprocessor([TensorSpec("x", "BYTES", (-1, -1))])
    few, many = (TensorsItem({"x": texts(*[b""] * n)}) for n in (CHEAP_STRINGS, 1))
    assert strings.is_cheap([few])
    assert not strings.is_cheap([few, many])


def test_a_type_that_numpy_cannot_have_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="model input x: of type FP8"):
        TensorsPreprocessor([TensorSpec("x", "FP8", (-1, 2))])


def manifest(folder: Path, **fields: Any) -> Manifest:
    """Of a model that takes tensors."""
    least = {
        "schema": SCHEMA,
        "name": "m",
        "task": "classification",
        "backend": "onnxruntime",
        "files": {"model": "model.onnx"},
        "input": {"kind": "tensors"},
    }
    (folder / FILE_NAME).write_text(yaml.safe_dump(least | fields))
    return Manifest.read(folder)


def test_a_warm_up_batch_has_every_input(tmp_path: Path) -> None:
    specs = (IDS, SCALE, FLAG, TensorSpec("names", "BYTES", (-1, -1, 2)))
    said = manifest(tmp_path)
    found = warm_up_inputs(said, specs, TensorsPreprocessor(specs))
    assert {name: array.shape for name, array in found.items()} == {
        "ids": (1, 1),
        "scale": (1, 2, 1),
        "flag": (1,),
        "names": (1, 1, 2),
    }
    assert found["names"].tolist() == [[[b"", b""]]]
    assert not found["scale"].any()


def test_bf16_is_not_for_onnx_runtime(tmp_path: Path) -> None:
    spec = TensorSpec("x", "BF16", (-1, 2))
    with pytest.raises(UnsupportedField, match="model input x: is of type BF16"):
        warm_up_inputs(manifest(tmp_path), [spec], TensorsPreprocessor([spec]))
    other = manifest(tmp_path, backend="pytorch")
    found = warm_up_inputs(other, [spec], TensorsPreprocessor([spec]))
    assert found["x"].tolist() == [[0, 0]]


def save(graph: Any, folder: Path) -> None:
    """The model of a graph, with labels for strings."""
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / "model.onnx"))


def test_a_real_model_takes_two_tensors(tmp_path: Path) -> None:
    """A row of a table, times a scale: both are the item's own."""
    rows = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["rows", "row"], ["chosen"]),
            helper.make_node("Mul", ["chosen", "scale"], ["logits"]),
        ],
        "gather",
        [
            helper.make_tensor_value_info("row", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["n", 1]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(rows, "rows")],
    )
    save(graph, tmp_path)
    loaded = load(manifest(tmp_path), tmp_path)
    try:
        items = [
            TensorsItem({"row": np.array(row), "scale": np.array([scale], np.float32)})
            for row, scale in ((2, 5.0), (0, -1.0))
        ]
        batch = pad([i for i in loaded.preprocessor.encode(items) if isinstance(i, Encoded)], {})
        logits = loaded.instances[0].run(batch)["logits"]
        assert logits.tolist() == [[0, 0, 5], [-1, 0, 0]]
    finally:
        loaded.backend.close()


def test_a_real_model_takes_strings(tmp_path: Path) -> None:
    words = ["a", "snow \N{SNOWMAN}"]
    node = helper.make_node(
        "LabelEncoder",
        ["words"],
        ["logits"],
        domain="ai.onnx.ml",
        keys_strings=words,
        values_floats=[1.0, 2.0],
        default_float=-1.0,
    )
    graph = helper.make_graph(
        [node],
        "words",
        [helper.make_tensor_value_info("words", TensorProto.STRING, ["n", 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 3])],
    )
    save(graph, tmp_path)
    loaded = load(manifest(tmp_path), tmp_path)
    try:
        item = TensorsItem({"words": texts(words[1].encode(), b"", words[0].encode())})
        (found,) = loaded.preprocessor.encode([item])
        assert isinstance(found, Encoded)
        assert loaded.instances[0].run(pad([found], {}))["logits"].tolist() == [[2, -1, 1]]
    finally:
        loaded.backend.close()
