"""The item of a JSON line, as in labelled sets and samples; knows no label and no model.

It is "text", or "text" and "pair", or "features" (numbers), or "image" (a file, in base64), or
"tensors": by name, each with "datatype", "shape" and "data", its elements in one list, row by row.
"""

import base64
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.items import (
    Array,
    FeaturesItem,
    ImageItem,
    Item,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.inference.preprocessing.preprocessor import DTYPES
from services.runtime.errors import shortened

MAX_DIMENSIONS, MAX_DIMENSION = 16, 2**32 - 1


def object_in(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line; ValueError where it is none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no JSON") from error
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004  # of the line, not of the caller
    return value


def item_in(value: dict[str, Any]) -> Item:
    """The item of a line; ValueError says what is wrong with it."""
    match value:
        case {"text": str(text), "pair": str(pair)}:
            return TextPairItem(text, pair)
        case {"text": str(text)} if "pair" not in value:
            return TextItem(text)
        case {"features": list(numbers)}:
            return FeaturesItem(_vector(numbers))
        case {"image": str(encoded)}:
            return ImageItem(_bytes(encoded))
        case {"tensors": dict(tensors)}:
            return TensorsItem({name: _tensor(name, value) for name, value in tensors.items()})
    raise ValueError('needs "text", "text" and "pair", "features", "image", or "tensors"')


def _vector(numbers: list[Any]) -> NDArray[np.float32]:
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("features must be numbers")
    # What is too large becomes infinite, which is the item's own error.
    with np.errstate(over="ignore"):
        return _floats(numbers).astype(np.float32)


def _floats(numbers: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array(numbers, dtype=np.float64)
    except OverflowError as error:
        raise ValueError("has a number without bounds") from error


def _bytes(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise ValueError("image must be a file in base64") from error


def _tensor(name: str, value: Any) -> Array:
    """One item's tensor."""
    what = f"tensor {shortened(repr(name), 80)}"
    match value:
        case {"datatype": str(datatype), "shape": list(shape), "data": list(data)}:
            pass
        case _:
            raise ValueError(f'{what} needs "datatype", "shape" and "data"')
    if datatype not in DTYPES:
        raise ValueError(f"{what}: its datatype is none of {', '.join(DTYPES)}")
    if len(shape) > MAX_DIMENSIONS or not all(
        type(length) is int and 0 <= length <= MAX_DIMENSION for length in shape
    ):
        raise ValueError(f"{what}: its shape must be lengths, at most {MAX_DIMENSIONS} of them")
    if math.prod(shape) != len(data):
        said = f"its shape holds {math.prod(shape)} elements, its data {len(data)}"
        raise ValueError(f"{what}: {said}")
    try:
        return _elements(datatype, data).reshape(shape)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _elements(datatype: str, data: list[Any]) -> Array:
    """The elements in a row; ValueError where one is not of the type."""
    if datatype == "BYTES":
        if not all(isinstance(one, str) for one in data):
            raise ValueError("its data must be texts")
        found = np.empty(len(data), dtype=np.object_)
        found[:] = [one.encode() for one in data]
        return found
    if datatype == "BOOL":
        if not all(isinstance(one, bool) for one in data):
            raise ValueError("its data must be true or false")
        return np.array(data, dtype=np.bool_)
    if not all(type(one) in (int, float) for one in data):
        raise ValueError("its data must be numbers")
    with np.errstate(over="ignore"):
        if datatype == "BF16":
            return _bfloat(_floats(data).astype(np.float32))
        if datatype.startswith("FP"):
            return _floats(data).astype(DTYPES[datatype])
    return _whole(datatype, data)


def _whole(datatype: str, data: list[Any]) -> Array:
    if not all(type(one) is int for one in data):
        raise ValueError("its data must be whole numbers")
    try:
        return np.array(data, dtype=DTYPES[datatype])
    except OverflowError as error:
        raise ValueError(f"its data has a number that {datatype} does not hold") from error


def _bfloat(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves, rounded to nearest and from the middle to even."""
    bits = numbers.view(np.uint32)
    # The only NaN that JSON has stays one.
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
