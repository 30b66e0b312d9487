"""Tensors as JSON has them, and as bytes: little-endian, row-major, BYTES each after its length.

Knows no message and no HTTP.
"""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from services.runtime.errors import InvalidRequest

FORMATS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
MAX_DIMENSIONS = 16


def to_bytes(field: str, datatype: str, shape: Sequence[int], data: Any) -> bytes:
    """Elements in JSON, nested or flat, as bytes; InvalidRequest names what is wrong."""
    values = list(_flat(field, data))
    if len(values) != math.prod(shape):
        said = f"has {len(values)} elements, not those of shape {list(shape)}"
        raise InvalidRequest.field(f"{field}.data", said)
    if datatype == "BYTES":
        return b"".join(_element(field, value) for value in values)
    form = FORMATS.get(datatype)
    if form is None:
        said = "cannot be JSON: send it as binary data" if datatype == "BF16" else "is not known"
        raise InvalidRequest.field(f"{field}.datatype", f"{datatype!r} {said}")
    wanted = bool if form == "?" else (int, float) if form in "efd" else int
    for value in values:
        if not isinstance(value, wanted) or (isinstance(value, bool) and form != "?"):
            raise InvalidRequest.field(f"{field}.data", f"has an element that is no {datatype}")
    try:
        return struct.pack(f"<{len(values)}{form}", *values)
    except (struct.error, OverflowError):
        said = f"has an element that is no {datatype}"
        raise InvalidRequest.field(f"{field}.data", said) from None


def _flat(field: str, data: Any) -> Iterator[Any]:
    """The elements in their order; uses no stack of its own for what a caller nests."""
    if not isinstance(data, list):
        raise InvalidRequest.field(f"{field}.data", "must be an array")
    open_ = [iter(data)]
    while open_:
        for value in open_[-1]:
            if isinstance(value, list):
                if len(open_) >= MAX_DIMENSIONS:
                    raise InvalidRequest.field(f"{field}.data", "is nested too deep")
                open_.append(iter(value))
                break
            yield value
        else:
            open_.pop()


def _element(field: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise InvalidRequest.field(f"{field}.data", "has an element that is no text")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest.field(f"{field}.data", "has an unpaired surrogate") from None
    return struct.pack("<I", len(encoded)) + encoded


def from_bytes(name: str, datatype: str, data: bytes) -> list[Any]:
    """Elements as JSON has them, flat; InvalidRequest where JSON cannot say one."""
    if datatype == "BYTES":
        return _texts(name, data)
    form = FORMATS.get(datatype)
    if form is None:
        raise _unsayable(name, f"{datatype} cannot be JSON")
    values = list(struct.unpack(f"<{len(data) // struct.calcsize(f'<{form}')}{form}", data))
    if form in "efd" and not all(map(math.isfinite, values)):
        raise _unsayable(name, "has an element that is no number")
    return values


def _texts(name: str, data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        try:
            found.append(data[at : at + size].decode())
        except UnicodeDecodeError:
            raise _unsayable(name, "has an element that is no UTF-8") from None
        at += size
    return found


def _unsayable(name: str, why: str) -> InvalidRequest:
    return InvalidRequest.field(f"outputs[{name}]", f"{why}: ask for it with binary_data")


def size_of(form: str) -> int:
    """Bytes of one element."""
    return struct.calcsize(f"<{form}")
