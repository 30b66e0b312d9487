"""What becomes of arrays, tensors and mappings of them, whichever library they are of."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import item_pb2
from gristmill_client import Tensor
from gristmill_client._classify_messages import request

from tests.unit.client.conftest import Twin
from tests.unit.client.fakes import FakeClassifier, serving


class TorchLike:
    """No buffer, but an array of numpy on demand, as PyTorch's tensors."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self.ndim = values.ndim
        self.shape = values.shape
        self.dtype = "torch.float32"

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return self._values


def items(given: Any) -> list[item_pb2.Item]:
    return list(request(pb.ClassifyRequest, given, None, {}).items)


def tensors(given: Any) -> dict[str, item_pb2.Tensor]:
    (item,) = items(given)
    assert item.WhichOneof("content") == "tensors"
    return {tensor.name: tensor for tensor in item.tensors.tensors}


@pytest.mark.parametrize(
    ("code", "datatype"),
    [
        ("?", "BOOL"),
        ("u1", "UINT8"),
        ("u2", "UINT16"),
        ("u4", "UINT32"),
        ("u8", "UINT64"),
        ("i1", "INT8"),
        ("i2", "INT16"),
        ("i4", "INT32"),
        ("i8", "INT64"),
        ("f2", "FP16"),
        ("f4", "FP32"),
        ("f8", "FP64"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_of_numpy_that_the_contract_has(code: str, datatype: str, order: str) -> None:
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(np.dtype(code).newbyteorder(order))
    found = tensors({"x": values})["x"]
    assert found.datatype == item_pb2.Datatype.Value(f"DATATYPE_{datatype}")
    assert list(found.shape) == [2, 3]
    little = np.frombuffer(found.data, np.dtype(code).newbyteorder("<")).reshape(2, 3)
    assert np.array_equal(little, values)


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(24.0).reshape(2, 3, 4)[::-1, :, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.broadcast_to(np.float64(2.5), (3, 2)),
        np.zeros((0, 4)),
        np.float64(1.5),
        np.array(1.5),
    ],
)
def test_whatever_the_order_of_memory_rows_come_first(values: Any) -> None:
    found = Tensor.of(values, "x")
    assert found == Tensor("FP64", values.shape, values.tobytes(order="C"), "x")


def test_texts_and_bytes_have_a_length_before_each() -> None:
    wanted = Tensor("BYTES", (2,), b"\x02\0\0\0\xc3\xa4\x00\0\0\0", "x")
    assert Tensor.of(["ä", b""], "x") == wanted
    assert Tensor.of(np.array(["ä", ""]), "x") == wanted
    assert Tensor.of(np.array(["ä", b""], dtype=object), "x") == wanted
    assert Tensor.of(np.array([["a"], ["b"]])).shape == (2, 1)
    assert Tensor.of(np.array([b"a"])).data == b"\x01\0\0\0a"


def test_arrays_of_others() -> None:
    values = np.arange(4, dtype="<f4").reshape(2, 2)
    assert Tensor.of(TorchLike(values)) == Tensor.of(values)
    assert Tensor.of(array.array("f", [1.5])) == Tensor("FP32", (1,), np.float32(1.5).tobytes())
    assert Tensor.of(memoryview(b"ab")) == Tensor("UINT8", (2,), b"ab")


def test_bf16_is_given_as_bytes() -> None:
    given = Tensor("BF16", (1, 2), b"\x80\x3f\x00\x40", "x")
    (found,) = tensors(given).values()
    assert (found.datatype, found.name) == (item_pb2.DATATYPE_BF16, "x")
    assert (list(found.shape), found.data) == ([1, 2], b"\x80\x3f\x00\x40")
    assert list(tensors({"y": given})) == ["y"], "the mapping names it"


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 2.0],
        3.0,
        "text",
        b"bytes",
        None,
        np.array([1j]),
        np.zeros(1, "M8[s]"),
        np.array([object()]),
        np.zeros(1, np.longdouble),
    ],
)
def test_what_has_no_type_of_the_contract_is_refused(values: Any) -> None:
    with pytest.raises(TypeError):
        Tensor.of(values)
    with pytest.raises(TypeError):
        items([{"x": values}])


@pytest.mark.parametrize(
    ("datatype", "shape", "match"),
    [
        ("FP31", (1,), "no datatype"),
        ("FP32", (2,), "FP32 of shape .2. is 8"),
        ("BOOL", (5,), "4 bytes; BOOL"),
        ("FP32", (-1, -1), "negative"),
    ],
)
def test_a_tensor_agrees_in_itself(datatype: Any, shape: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Tensor(datatype, shape, b"1234")


def test_arrays_are_told_apart_from_features_and_many() -> None:
    image = np.zeros((2, 3, 3), "f4")
    batch = np.zeros((5, 2, 3, 3), "f4")
    kinds = {
        "rows of features": (np.zeros((4, 2)), ["float_features"] * 4),
        "features": (np.zeros(4), ["float_features"]),
        "images in a list": ([image, image], ["tensors"] * 2),
        "a batch of images": (batch, ["tensors"] * 5),
        "a tensor": (Tensor.of(np.zeros(4)), ["tensors"]),
        "a mapping": ({"a": image, "b": ["text"]}, ["tensors"]),
        "several mappings": ([{"a": image}, {"a": image}], ["tensors"] * 2),
    }
    for name, (given, wanted) in kinds.items():
        assert [item.WhichOneof("content") for item in items(given)] == wanted, name
    (first, *_) = items(batch)
    assert (first.tensors.tensors[0].name, list(first.tensors.tensors[0].shape)) == ("", [2, 3, 3])


def test_tensors_reach_the_server(twin: Callable[..., Twin]) -> None:
    fake = FakeClassifier()
    with serving(fake.register) as address:
        client = twin(classifier=address)
        given = {"input_ids": np.array([1, 2], "i8"), "mask": np.array([True, False])}
        client.run(client.client.classify(given, "m"))
    found = {tensor.name: tensor for tensor in fake.requests[0].items[0].tensors.tensors}
    assert found["mask"].data == b"\x01\x00"
    assert np.frombuffer(found["input_ids"].data, "<i8").tolist() == [1, 2]
