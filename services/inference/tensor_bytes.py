"""Tensors as bytes, in the form of the Open Inference Protocol: row-major and little-endian.

Elements of type BYTES have a length of 4 bytes before each; a boolean is one byte; a BF16 is two,
which numpy has no type for: they stay as they are, as UINT16.
"""

import math
import struct
from collections.abc import Iterator, Sequence

import numpy as np

from services.inference.items import Array
from services.inference.preprocessing.preprocessor import DTYPES
from services.runtime.errors import InvalidRequest

MAX_ELEMENTS = 2**31
MAX_DIMENSIONS = 64
_LENGTH = struct.Struct("<I")


def decode(field: str, datatype: str, shape: Sequence[int], data: bytes) -> Array:
    """The tensor in `data`, which it shares where the type allows.

    Raises InvalidRequest, naming `field`, where type, shape and data do not agree.
    """
    count = elements(field, shape)
    if datatype == "BYTES":
        return strings(field, shape, list(_split(field, data, count)))
    dtype = np.dtype(np.uint16 if datatype == "BF16" else _dtype(field, datatype))
    wanted = count * dtype.itemsize
    if len(data) != wanted:
        said = f"has {len(data)} bytes, {datatype} of shape {list(shape)} needs {wanted}"
        raise InvalidRequest.field(field, said)
    if datatype == "BOOL":
        flags = np.frombuffer(data, np.uint8)
        if flags.size and flags.max() > 1:
            raise InvalidRequest.field(field, "has a BOOL that is neither 0 nor 1")
        return flags.view(np.bool_).reshape(shape)
    return np.frombuffer(data, dtype.newbyteorder("<")).reshape(shape)


def strings(field: str, shape: Sequence[int], values: Sequence[bytes]) -> Array:
    """A tensor of type BYTES."""
    if elements(field, shape) != len(values):
        said = f"has {len(values)} elements, not those of shape {list(shape)}"
        raise InvalidRequest.field(field, said)
    found = np.empty(len(values), dtype=np.object_)
    found[:] = values
    return found.reshape(shape)


def encode(array: Array) -> bytes:
    """The bytes of a tensor; text among its objects becomes UTF-8."""
    if array.dtype == np.object_ or array.dtype.kind in "SU":
        parts: list[bytes] = []
        for value in array.ravel():
            data = value if isinstance(value, bytes) else str(value).encode()
            parts += (_LENGTH.pack(len(data)), data)
        return b"".join(parts)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def elements(field: str, shape: Sequence[int]) -> int:
    """How many elements a shape has; InvalidRequest where that is more than can be meant."""
    if any(dimension < 0 for dimension in shape):
        raise InvalidRequest.field(field, f"shape {list(shape)} has a negative dimension")
    # Beside a 0 the others still count towards what an array can be.
    if len(shape) > MAX_DIMENSIONS or math.prod(max(1, one) for one in shape) > MAX_ELEMENTS:
        raise InvalidRequest.field(field, f"shape {list(shape)} has too many elements")
    return math.prod(shape)


def _dtype(field: str, datatype: str) -> type:
    found: type | None = DTYPES.get(datatype)
    if found is None:
        raise InvalidRequest.field(field, f"type {datatype!r} is not known")
    return found


def _split(field: str, data: bytes, count: int) -> Iterator[bytes]:
    at = 0
    for _ in range(count):
        end = at + _LENGTH.size
        if end > len(data):
            raise InvalidRequest.field(field, f"ends before its {count} elements do")
        (size,) = _LENGTH.unpack_from(data, at)
        if size > len(data) - end:
            raise InvalidRequest.field(field, "has an element that is longer than the rest")
        yield data[end : end + size]
        at = end + size
    if at != len(data):
        raise InvalidRequest.field(field, f"has {len(data) - at} bytes after its last element")
