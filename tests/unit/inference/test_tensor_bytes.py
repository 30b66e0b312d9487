"""Tensors as bytes: what goes in comes out, and bytes that are no such tensor are refused."""

import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from services.inference import tensor_bytes
from services.inference.items import Array
from services.inference.preprocessing.preprocessor import DTYPES
from services.runtime.errors import InvalidRequest

NUMBERS = [name for name in DTYPES if name != "BYTES"]
# The empty shape is a scalar; a 0 among the dimensions leaves nothing.
SHAPES = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
FIELD = "tensors[x]"


def decode(datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """The tensor."""
    return tensor_bytes.decode(FIELD, datatype, shape, data)


def refusal(datatype: str, shape: Sequence[int], data: bytes) -> str:
    """What is wrong, which is said of the field and in no other way."""
    with pytest.raises(InvalidRequest) as raised:
        decode(datatype, shape, data)
    (violation,) = raised.value.violations
    assert violation.field == FIELD
    return violation.description


def lengthened(*values: bytes) -> bytes:
    """BYTES on the wire."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


@pytest.mark.parametrize("datatype", NUMBERS)
@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_numbers_go_round(datatype: str, data: st.DataObject) -> None:
    """Every bit stays: NaNs with what they carry, infinities, zeros with their sign."""
    array = data.draw(npst.arrays(DTYPES[datatype], SHAPES))
    written = tensor_bytes.encode(array)
    assert written == array.astype(array.dtype.newbyteorder("<")).tobytes()
    found = decode(datatype, array.shape, written)
    assert (found.dtype, found.shape) == (array.dtype, array.shape)
    assert found.tobytes() == array.tobytes()
    assert tensor_bytes.encode(found) == written


@given(npst.arrays(np.object_, SHAPES, elements=st.binary(max_size=9)))
@settings(deadline=None)
def test_strings_of_bytes_go_round(array: Array) -> None:
    """The empty one, and those that end in zeros, among them."""
    written = tensor_bytes.encode(array)
    assert written == lengthened(*array.ravel().tolist())
    found = decode("BYTES", array.shape, written)
    assert (found.dtype, found.shape) == (np.object_, array.shape)
    assert found.tolist() == array.tolist()


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=5))
@settings(deadline=None)
def test_text_becomes_utf8(texts: list[str]) -> None:
    array = np.empty(len(texts), dtype=np.object_)
    array[:] = texts
    assert tensor_bytes.encode(array) == lengthened(*(text.encode() for text in texts))


def test_arrays_of_text_and_of_bytes_are_strings() -> None:
    assert tensor_bytes.encode(np.array(["ä", "bc"])) == lengthened("ä".encode(), b"bc")
    assert tensor_bytes.encode(np.array([b"a", b"bc"])) == lengthened(b"a", b"bc")
    assert tensor_bytes.encode(np.array([7, None], dtype=np.object_)) == lengthened(b"7", b"None")


@pytest.mark.parametrize("order", [">", "<"])
def test_bytes_are_little_endian_and_row_major_whatever_the_array_is(order: str) -> None:
    array = np.arange(12, dtype=f"{order}i4").reshape(3, 4)
    views = {"transposed": array.T, "sliced": array[:, ::-2], "fortran": np.asfortranarray(array)}
    for name, view in views.items():
        expected = struct.pack(f"<{view.size}i", *view.ravel().tolist())
        assert tensor_bytes.encode(view) == expected, name


def test_known_bytes() -> None:
    assert decode("FP32", [2], b"\0\0\x80\x3f\0\0\0\xc0").tolist() == [1.0, -2.0]
    assert decode("FP16", [1], b"\0\x3c").tolist() == [1.0]
    assert decode("INT16", [2], b"\x01\0\xff\xff").tolist() == [1, -1]
    assert decode("UINT64", [], b"\xff" * 8) == 2**64 - 1
    assert decode("BOOL", [3], b"\0\1\0").tolist() == [False, True, False]
    assert decode("INT8", [2, 2], b"\1\2\3\4").tolist() == [[1, 2], [3, 4]]
    assert decode("BYTES", [2], b"\1\0\0\0a\0\0\0\0").tolist() == [b"a", b""]


def test_bf16_stays_as_its_two_bytes() -> None:
    found = decode("BF16", [2], b"\x80\x3f\0\xc0")
    assert (found.dtype, found.tolist()) == (np.uint16, [0x3F80, 0xC000])


@pytest.mark.parametrize("datatype", NUMBERS)
def test_numbers_are_not_copied(datatype: str) -> None:
    size = np.dtype(DTYPES[datatype]).itemsize
    data = bytes(6 * size)
    found = decode(datatype, [2, 3], data)
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    assert not found.flags.writeable, "it is the message's own memory"


# What is no tensor.


@pytest.mark.parametrize("datatype", NUMBERS)
@given(shape=SHAPES, off=st.integers(-3, 3).filter(bool))
@settings(deadline=None, max_examples=25)
def test_as_many_bytes_as_shape_and_type_say(
    datatype: str, shape: tuple[int, ...], off: int
) -> None:
    wanted = int(np.prod(shape)) * np.dtype(DTYPES[datatype]).itemsize
    size = wanted + (off if wanted + off >= 0 else 1)
    said = refusal(datatype, shape, bytes(size))
    assert said == f"has {size} bytes, {datatype} of shape {list(shape)} needs {wanted}"


@pytest.mark.parametrize("value", [2, 127, 128, 255])
def test_a_boolean_is_0_or_1(value: int) -> None:
    assert "neither 0 nor 1" in refusal("BOOL", [3], bytes([0, 1, value]))


@pytest.mark.parametrize("shape", [[-1], [2, -1], [-1, -2], [0, -5], [-(2**63)]])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_no_dimension_is_negative(datatype: str, shape: list[int]) -> None:
    assert "negative" in refusal(datatype, shape, b"\0" * 8)


@pytest.mark.parametrize(
    "shape", [[2**31 + 1], [2**31, 2**31], [2**16, 2**16], [2**62] * 3, [2**32] * 16, [10**30]]
)
@pytest.mark.parametrize("datatype", ["BOOL", "FP64", "BYTES"])
def test_more_elements_than_can_be_meant(datatype: str, shape: list[int]) -> None:
    """2**31 times 2**31 elements of 4 bytes are 0 bytes in 64 bits; not here."""
    assert "too many elements" in refusal(datatype, shape, b"")


@pytest.mark.parametrize("shape", [[0], [0, 3], [3, 0], [0, 0, 0], [2**31, 0]])
@pytest.mark.parametrize("datatype", ["BOOL", "FP32", "BF16", "BYTES"])
def test_a_tensor_of_nothing_is_one(datatype: str, shape: list[int]) -> None:
    found = decode(datatype, shape, b"")
    assert found.shape == tuple(shape)
    assert tensor_bytes.encode(found) == b""
    assert "bytes" in refusal(datatype, shape, b"\0\0\0\0")


@pytest.mark.parametrize(
    "shape", [[0, 2**32 - 1, 2**32 - 1], [0, 2**62], [2**31, 2**31, 2**31, 0], [1] * 65]
)
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_a_shape_that_no_array_can_have_is_the_callers_error(
    datatype: str, shape: list[int]
) -> None:
    """Beside a 0 the other dimensions do not count towards the elements, yet towards the array."""
    assert refusal(datatype, shape, b"" if 0 in shape else lengthened(b"")[:4])


@pytest.mark.parametrize("datatype", ["FP8", "", "fp32", "STRING", "UNSPECIFIED"])
def test_a_type_that_is_none_is_named(datatype: str) -> None:
    assert repr(datatype) in refusal(datatype, [1], b"\0\0\0\0")


@pytest.mark.parametrize(
    ("shape", "data", "said"),
    [
        ([1], b"", "ends before its 1 elements do"),
        ([1], b"\0\0\0", "ends before its 1 elements do"),
        ([2], lengthened(b"a"), "ends before its 2 elements do"),
        ([], b"", "ends before its 1 elements do"),
        ([1], struct.pack("<I", 2) + b"a", "longer than the rest"),
        ([1], b"\xff\xff\xff\xff", "longer than the rest"),
        ([2], struct.pack("<I", 5) + b"a" + lengthened(b""), "ends before its 2 elements do"),
        ([2], struct.pack("<I", 6) + b"a" + lengthened(b""), "longer than the rest"),
        ([1], lengthened(b"a", b"b"), "has 5 bytes after its last element"),
        ([1], lengthened(b"a") + b"\0", "has 1 bytes after its last element"),
        ([0], b"\0\0\0\0", "has 4 bytes after its last element"),
        ([2**31], lengthened(b"a"), f"ends before its {2**31} elements do"),
    ],
)
def test_lengths_that_lie_are_refused(shape: list[int], data: bytes, said: str) -> None:
    assert said in refusal("BYTES", shape, data)


@given(
    st.sampled_from([*NUMBERS, "BYTES"]),
    st.lists(st.integers(0, 6), max_size=4),
    st.one_of(
        st.binary(max_size=64),
        st.lists(st.binary(max_size=4), max_size=6).map(lambda parts: lengthened(*parts)),
    ),
)
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_a_tensor_or_a_refusal(datatype: str, shape: list[int], data: bytes) -> None:
    """Whatever comes: nothing else is raised, and what is taken is written back as it came."""
    try:
        found = decode(datatype, shape, data)
    except InvalidRequest as error:
        assert [violation.field for violation in error.violations] == [FIELD]
    else:
        assert found.shape == tuple(shape)
        assert tensor_bytes.encode(found) == data


def test_elements_that_are_given_one_by_one_fit_their_shape() -> None:
    found = tensor_bytes.strings(FIELD, [2, 1], [b"a\0", b""])
    assert found.tolist() == [[b"a\0"], [b""]]
    with pytest.raises(InvalidRequest, match="has 1 elements, not those of shape"):
        tensor_bytes.strings(FIELD, [2], [b"a"])


def test_a_scalar_has_one_element() -> None:
    assert tensor_bytes.elements(FIELD, []) == 1
    assert tensor_bytes.elements(FIELD, [2**31]) == tensor_bytes.MAX_ELEMENTS
