"""Tensors of the Open Inference Protocol: each datatype, typed and raw, and what is no tensor."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.classifier.oip import tensors
from services.inference import tensor_bytes
from services.inference.items import Array
from services.inference.preprocessing.preprocessor import DTYPES
from services.oip.contract import pb
from services.runtime.errors import BackendFailed, InvalidRequest, UnsupportedField

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NUMBERS = sorted(set(DTYPES) - {"BYTES", "BF16"})
BYTES = st.lists(st.binary(max_size=9), max_size=9)


def raw(
    datatype: str, shape: Sequence[int], data: bytes, name: str = "x", **fields: Any
) -> pb.ModelInferRequest:
    """A request of one input, its elements in raw_input_contents."""
    request = pb.ModelInferRequest(raw_input_contents=[data])
    request.inputs.add(name=name, datatype=datatype, shape=shape, **fields)
    return request


def typed(datatype: str, shape: Sequence[int], **contents: Any) -> pb.ModelInferRequest:
    """A request of one input, its elements in contents."""
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    tensor.contents.SetInParent()
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return request


def one(request: pb.ModelInferRequest) -> tensors.Tensor:
    """Its only input."""
    ((name, found),) = tensors.read(request).items()
    assert name == "x"
    return found


def same(found: Array, wanted: Array) -> None:
    """Equal in shape, type and every element, NaN included."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert found.tobytes() == wanted.tobytes()


def refused(request: pb.ModelInferRequest, kind: type[InvalidRequest] = InvalidRequest) -> str:
    """The words of the refusal."""
    with pytest.raises(InvalidRequest) as caught:
        tensors.read(request)
    assert type(caught.value) is kind
    assert caught.value.violations
    return caught.value.message


@pytest.mark.parametrize("datatype", NUMBERS)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_numbers_come_back_typed_and_raw(datatype: str, data: st.DataObject) -> None:
    array = data.draw(npst.arrays(DTYPES[datatype], SHAPES))
    found = one(raw(datatype, array.shape, array.tobytes()))
    assert found.datatype == datatype
    same(found.array, array)
    if datatype in tensors.FIELDS:
        field = {tensors.FIELDS[datatype]: array.ravel().tolist()}
        # A NaN of 32 bits may change its payload on its way through Python's 64.
        if not (array.dtype.kind == "f" and np.isnan(array).any()):
            same(one(typed(datatype, array.shape, **field)).array, array)
    answer = pb.ModelInferResponse()
    tensors.write(answer, "x", array)
    assert [(o.name, o.datatype, tuple(o.shape)) for o in answer.outputs] == [
        ("x", datatype, array.shape)
    ]
    assert list(answer.raw_output_contents) == [array.tobytes()]


@given(BYTES)
@settings(deadline=None)
def test_bytes_come_back_typed_and_raw(values: list[bytes]) -> None:
    encoded = b"".join(struct.pack("<I", len(value)) + value for value in values)
    shape = [1, len(values)]
    for request in (raw("BYTES", shape, encoded), typed("BYTES", shape, bytes_contents=values)):
        found = one(request)
        assert found.array.shape == (1, len(values))
        assert found.array.ravel().tolist() == values
        answer = pb.ModelInferResponse()
        tensors.write(answer, "x", found.array)
        assert answer.outputs[0].datatype == "BYTES"
        assert answer.raw_output_contents[0] == encoded


def test_raw_elements_are_not_copied() -> None:
    data = np.arange(6, dtype=np.float32).tobytes()
    array = one(raw("FP32", [2, 3], data)).array
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_bfloat16_is_two_bytes_that_stay_as_they_are() -> None:
    found = one(raw("BF16", [2], b"\x80\x3f\x00\x40"))
    assert (found.datatype, found.array.tolist()) == ("BF16", [0x3F80, 0x4000])
    answer = pb.ModelInferResponse()
    tensors.write(answer, "y", found.array, "BF16")
    assert answer.outputs[0].datatype == "BF16"
    assert answer.raw_output_contents[0] == b"\x80\x3f\x00\x40"


@pytest.mark.parametrize("datatype", tensors.RAW_ONLY)
def test_short_floats_have_no_typed_form(datatype: str) -> None:
    assert "raw_input_contents" in refused(typed(datatype, [1], fp32_contents=[1.0]))


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (pb.ModelInferRequest(), "0 tensors"),
        (raw("FP32", [2], b"\0" * 4), "has 4 bytes, FP32 of shape [2] needs 8"),
        (raw("FP32", [-1], b"\0" * 4), "negative"),
        (raw("FP32", [2**62, 2**62], b""), "too many elements"),
        (raw("FP32", [1, 0, 2**62], b""), "too many elements"),
        (raw("FP32", [1] * 17, b"\0" * 4), "17 dimensions"),
        (raw("FP8", [1], b"\0"), "'FP8' is not known"),
        (raw("BOOL", [1], b"\2"), "neither 0 nor 1"),
        (raw("BYTES", [1], b"\5\0\0\0ab"), "longer than the rest"),
        (raw("BYTES", [1], b"\0\0"), "ends before"),
        (raw("BYTES", [1], b"\1\0\0\0ab"), "1 bytes after"),
        (typed("FP32", [2], fp32_contents=[1.0]), "has 1 elements, not those of shape [2]"),
        (typed("FP32", [1], fp64_contents=[1.0]), "travels in fp32_contents, not fp64_contents"),
        (typed("FP8", [1]), "'FP8' is not known"),
        (typed("INT8", [1], int_contents=[128]), "no INT8"),
        (typed("INT16", [1], int_contents=[-32769]), "no INT16"),
        (typed("UINT8", [1], uint_contents=[256]), "no UINT8"),
        (typed("BYTES", [2], bytes_contents=[b"a"]), "has 1 elements"),
        (typed("INT64", [2]), "has 0 elements"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(request_: pb.ModelInferRequest, says: str) -> None:
    said = refused(request_)
    assert says in said
    if request_.inputs:
        assert said.startswith("inputs[x]: ")


def test_both_forms_at_once_are_refused() -> None:
    request = raw("FP32", [1], b"\0" * 4)
    request.inputs[0].contents.fp32_contents.append(1.0)
    assert "beside raw_input_contents" in refused(request)
    request = raw("FP32", [1], b"\0" * 4)
    request.inputs.add(name="y", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    assert "1 entries for 2 inputs" in refused(request)


def test_as_many_inputs_as_can_be_meant() -> None:
    request = pb.ModelInferRequest()
    for index in range(tensors.MAX_INPUTS):
        request.inputs.add(name=f"x{index}", datatype="INT64", shape=[0])
    assert len(tensors.read(request)) == tensors.MAX_INPUTS
    request.inputs.add(name="one more", datatype="INT64", shape=[0])
    assert "65 tensors" in refused(request)
    twice = typed("INT64", [0])
    twice.inputs.append(twice.inputs[0])
    assert "is there twice" in refused(twice)


def test_shared_memory_is_not_offered() -> None:
    request = raw("FP32", [1], b"\0" * 4)
    request.inputs[0].parameters["binary_data_size"].int64_param = 4
    tensors.read(request)
    request.inputs[0].parameters["shared_memory_region"].string_param = "region"
    assert "shared memory" in refused(request, UnsupportedField)


def test_an_output_that_no_tensor_can_be_is_the_backends_fault() -> None:
    with pytest.raises(BackendFailed, match="complex64"):
        tensors.write(pb.ModelInferResponse(), "x", np.zeros(1, dtype=np.complex64))


def test_texts_of_numpy_are_bytes() -> None:
    answer = pb.ModelInferResponse()
    tensors.write(answer, "x", np.array(["ä", "bc"]))
    assert answer.outputs[0].datatype == "BYTES"
    decoded = tensor_bytes.decode("x", "BYTES", [2], answer.raw_output_contents[0])
    assert decoded.tolist() == ["ä".encode(), b"bc"]
