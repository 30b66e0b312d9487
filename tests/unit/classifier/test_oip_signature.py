"""How a request's tensors become items, and which outputs it may ask for."""

from typing import Any

import numpy as np
import pytest

from services.classifier.oip import signature
from services.classifier.oip.signature import Output, Signature
from services.classifier.oip.tensors import Tensor
from services.inference.backend import TensorSpec
from services.inference.items import ImageItem, TensorsItem, TextItem, TextPairItem
from services.inference.manifest import Input
from services.oip.contract import pb
from services.runtime.errors import InvalidRequest, UnsupportedField

IDS = (TensorSpec("input_ids", "INT64", (-1, -1)), TensorSpec("attention_mask", "INT64", (-1, -1)))
FEATURES = (TensorSpec("features", "FP32", (-1, -1)),)
SCALARS = (TensorSpec("age", "FP32", (-1,)), TensorSpec("city", "BYTES", (-1, 1)))
OUTPUTS = (TensorSpec("logits", "FP32", (-1, 3)), TensorSpec("label", "BYTES", (-1,)))
TEXT = Signature(Input(kind="text"), IDS, OUTPUTS)
PAIR = Signature(Input(kind="text_pair"), IDS, OUTPUTS)
IMAGE = Signature(
    Input(kind="image", image={"width": 2, "height": 2}),
    (TensorSpec("pixels", "FP32", (-1, 3, 2, 2)),),
    OUTPUTS,
)
VECTOR = Signature(Input(kind="float_features", names=("a", "b")), FEATURES, OUTPUTS)
TENSORS = Signature(Input(kind="tensors"), SCALARS, OUTPUTS)


def words(*values: bytes, shape: tuple[int, ...] = ()) -> Tensor:
    """A tensor of BYTES."""
    array = np.empty(len(values), dtype=np.object_)
    array[:] = values
    return Tensor("BYTES", array.reshape(shape or (len(values), 1)))


def numbers(datatype: str, array: Any) -> Tensor:
    """A tensor of numbers."""
    return Tensor(datatype, np.asarray(array))


def refused(of: Signature, **given: Tensor) -> str:
    """The words of the refusal."""
    with pytest.raises(InvalidRequest) as caught:
        of.items(given)
    return caught.value.message


def shapes(of: Signature) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What is offered."""
    return {spec.name: (spec.datatype, spec.shape) for spec in of.offered.values()}


def test_what_is_offered() -> None:
    assert shapes(TEXT) == {"text": ("BYTES", (-1, 1))}
    assert shapes(PAIR) == {"text": ("BYTES", (-1, 1)), "text_pair": ("BYTES", (-1, 1))}
    assert shapes(IMAGE) == {"image": ("BYTES", (-1, 1))}
    assert shapes(VECTOR) == {"features": ("FP32", (-1, 2))}
    assert shapes(TENSORS) == {"age": ("FP32", (-1,)), "city": ("BYTES", (-1, 1))}
    unsaid = Signature(Input(kind="float_features"), FEATURES, OUTPUTS)
    assert shapes(unsaid) == {"features": ("FP32", (-1, -1))}


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_texts_are_items_in_their_order(shape: tuple[int, ...]) -> None:
    given = {"text": words("ä".encode(), b"b", shape=shape)}
    assert TEXT.items(given) == [TextItem("ä"), TextItem("b")]


def test_pairs_belong_together() -> None:
    given = {"text_pair": words(b"3", b"4"), "text": words(b"1", b"2", shape=(2,))}
    assert PAIR.items(given) == [TextPairItem("1", "3"), TextPairItem("2", "4")]


def test_images_are_their_bytes() -> None:
    assert IMAGE.items({"image": words(b"\xff\xd8")}) == [ImageItem(b"\xff\xd8")]


def test_rows_are_items_and_views() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    items = VECTOR.items({"features": numbers("FP32", array)})
    assert len(items) == 3
    for index, item in enumerate(items):
        assert isinstance(item, TensorsItem)
        assert item.tensors["features"].tolist() == array[index].tolist()
        assert np.shares_memory(item.tensors["features"], array)


def test_items_without_dimensions_stay_arrays() -> None:
    ages = numbers("FP32", np.array([1, 2], dtype=np.float32))
    items = TENSORS.items({"age": ages, "city": words(b"x", b"y")})
    assert isinstance(items[1], TensorsItem)
    assert items[1].tensors["age"].shape == ()
    assert items[1].tensors["age"].nbytes == 4
    assert items[1].tensors["city"].tolist() == [b"y"]


@pytest.mark.parametrize("of", [TEXT, PAIR])
def test_a_text_model_takes_its_own_tensors_too(of: Signature) -> None:
    ids = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int64)
    both = {"input_ids": numbers("INT64", ids), "attention_mask": numbers("INT64", ids * 0 + 1)}
    first, second = of.items(both)
    assert isinstance(first, TensorsItem)
    assert isinstance(second, TensorsItem)
    assert first.tensors["input_ids"].tolist() == [1, 2, 3]
    assert second.tensors["attention_mask"].tolist() == [1, 1, 1]


def test_what_does_not_fit_is_refused() -> None:
    ids = numbers("INT64", np.zeros((1, 2), dtype=np.int64))
    said = refused(TEXT, input_ids=ids)
    assert said == "inputs: the model takes text or attention_mask, input_ids, not input_ids"
    assert refused(VECTOR) == "inputs: the model takes features, not nothing"
    assert "not more, text" in refused(TEXT, text=words(b"a"), more=words(b"b"))
    assert "takes BYTES, this is INT64" in refused(TEXT, text=ids)
    wide = numbers("FP32", np.zeros((1, 3), dtype=np.float32))
    assert "takes shape [-1, 2], this is [1, 3]" in refused(VECTOR, features=wide)
    flat = numbers("FP32", np.zeros(2, dtype=np.float32))
    assert "takes shape [-1, 2], this is [2]" in refused(VECTOR, features=flat)
    assert "this is [1, 2]" in refused(TEXT, text=words(b"a", b"b", shape=(1, 2)))
    alone = numbers("FP32", np.float32(1))
    assert "this is []" in refused(TENSORS, age=alone, city=words(b"x"))
    ages = numbers("FP32", np.zeros(2, dtype=np.float32))
    assert "[1, 2] items" in refused(TENSORS, age=ages, city=words(b"x"))


def test_how_many_items_are_taken() -> None:
    assert len(TEXT.items({"text": words(*[b"x"] * signature.MAX_ITEMS)})) == 4096
    assert "4097 items" in refused(TEXT, text=words(*[b"x"] * 4097))
    assert "0 items" in refused(TEXT, text=words(shape=(0, 1)))


def test_what_is_no_text_is_named() -> None:
    assert refused(TEXT, text=words(b"ok", b"\xff")) == "inputs[text][1]: is not UTF-8"
    said = refused(PAIR, text=words(b"ok"), text_pair=words(b"\xff"))
    assert said == "inputs[text_pair][0]: is not UTF-8"


def asking(*names: str, **classes: Any) -> Any:
    """Requested outputs; a keyword asks for the best classes of one."""
    request = pb.ModelInferRequest(outputs=[{"name": name} for name in names])
    for name, count in classes.items():
        output = request.outputs.add(name=name)
        output.parameters["classification"].int64_param = count
    return request.outputs


def test_outputs_are_those_asked_for_in_that_order() -> None:
    every = [Output("logits", "FP32"), Output("label", "BYTES")]
    assert list(TEXT.wanted(asking())) == every
    assert list(TEXT.wanted(asking("label", "logits"))) == every[::-1]
    assert list(TEXT.wanted(asking(logits=2))) == [Output("logits", "FP32", 2)]


def test_outputs_that_there_are_not() -> None:
    for outputs, says in (
        (asking("scores"), "outputs[scores]: the model gives label, logits"),
        (asking("logits", "logits"), "asked for twice"),
        (asking(logits=-1), "at least 0"),
        (asking(logits=0), "at least 1"),
        (asking(label=1), "no best"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            TEXT.wanted(outputs)
        assert says in caught.value.message
    outputs = asking("logits")
    outputs[0].parameters["binary_data"].bool_param = False
    assert list(TEXT.wanted(outputs)) == [Output("logits", "FP32")]
    outputs[0].parameters["shared_memory_region"].string_param = "x"
    with pytest.raises(UnsupportedField):
        TEXT.wanted(outputs)
