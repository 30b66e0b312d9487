"""Tensors as the contract has them, made of the arrays of any library; knows no wire, no numpy."""

from __future__ import annotations

import dataclasses
import math
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, get_args

Datatype = Literal[
    "BOOL",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "FP32",
    "FP64",
    "BF16",
    "BYTES",
]
"""The types of elements, by their names in the Open Inference Protocol."""

_DATATYPES = frozenset(get_args(Datatype))
# The letters of PEP 3118, whose size is the machine's own.
_KINDS = {
    **dict.fromkeys("bhilqn", "INT"),
    **dict.fromkeys("BHILQN", "UINT"),
    **dict.fromkeys("efd", "FP"),
}
# The kinds of numpy whose elements are texts, bytes or objects.
_TEXT_KINDS = "SUOT"
_LENGTH = struct.Struct("<I")


class Array(Protocol):
    """An array of numpy, or of a library that gives one: PyTorch (on the CPU), JAX, Arrow."""

    @property
    def shape(self) -> Any: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of one item: its shape has no batch dimension.

    `data` is row-major and little-endian, as many bytes as `shape` and `datatype` say; a boolean is
    one byte, an FP16 or BF16 two, and a BYTES element has a length of 4 bytes before it. `shape` ()
    is a scalar. `name` is that of the model's input, "" for its only one. Raises ValueError where
    these do not agree. `Tensor.of` makes one of an array; BF16, which no array of numpy has, is
    made of bytes: `Tensor("BF16", (2, 3), data)`.
    """

    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes
    name: str = ""

    def __post_init__(self) -> None:
        if self.datatype not in _DATATYPES:
            raise ValueError(f"there is no datatype {self.datatype!r}")
        if any(dimension < 0 for dimension in self.shape):
            raise ValueError(f"shape {list(self.shape)} has a negative dimension")
        if self.datatype == "BYTES":
            return
        wanted = math.prod(self.shape) * _size(self.datatype)
        if len(self.data) != wanted:
            raise ValueError(
                f"{len(self.data)} bytes; {self.datatype} of shape {list(self.shape)} is {wanted}"
            )

    @classmethod
    def of(
        cls, values: Array | Tensor | memoryview | Sequence[str | bytes], name: str = ""
    ) -> Tensor:
        """A tensor of an array's own type and shape, in any order of memory or of bytes.

        Takes whatever has the buffer protocol or `__array__`: arrays of numpy, PyTorch and JAX on
        the CPU, array.array. Texts and bytes, in an array or a list, become BYTES, texts as UTF-8.
        Raises TypeError for what has no type that the contract has.
        """
        if isinstance(values, Tensor):
            return dataclasses.replace(values, name=name or values.name)
        if isinstance(values, (list, tuple)):
            return cls("BYTES", (len(values),), _strings(values), name)
        if getattr(getattr(values, "dtype", None), "kind", "-") in _TEXT_KINDS:
            texts = cast(Any, values)
            return cls("BYTES", tuple(texts.shape), _strings(texts.ravel().tolist()), name)
        view = _view(values)
        data = view.tobytes()
        if _is_big_endian(view.format) and view.itemsize > 1:
            data = _swapped(data, view.itemsize)
        return cls(_datatype(view), tuple(view.shape or ()), data, name)


def is_tensor(value: object) -> bool:
    """Whether it can only be a tensor: numbers in a row are features, arrays of more are not."""
    return isinstance(value, Tensor) or getattr(value, "ndim", 0) > 1


def _size(datatype: Datatype) -> int:
    return 1 if datatype == "BOOL" else int(datatype.lstrip("UINTFPB")) // 8


def _strings(values: Iterable[object]) -> bytes:
    parts: list[bytes] = []
    for value in values:
        if not isinstance(value, (str, bytes)):
            raise TypeError(
                f"{type(value).__name__} is neither str nor bytes; numbers need a typed array"
            )
        data = value.encode() if isinstance(value, str) else value
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


def _view(values: object) -> memoryview:
    if isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"{type(values).__name__} has no type and shape: use Tensor")
    try:
        return memoryview(cast(Any, values))
    except (TypeError, ValueError, BufferError) as error:
        # PyTorch's tensors give no buffer, but an array of numpy that does.
        to_array = getattr(values, "__array__", None)
        if to_array is None or hasattr(values, "__array_interface__"):
            raise TypeError(
                f"cannot make a tensor of {getattr(values, 'dtype', type(values).__name__)}: "
                "give an array that has a type of the contract, or Tensor with its bytes"
            ) from error
        return memoryview(to_array())


def _datatype(view: memoryview) -> Datatype:
    code = view.format.lstrip("@=<>!")
    found = "BOOL" if code == "?" else f"{_KINDS.get(code)}{8 * view.itemsize}"
    if found not in _DATATYPES:
        raise TypeError(f"elements of type {view.format!r} have no type in the contract")
    return cast(Datatype, found)


def _is_big_endian(code: str) -> bool:
    return code[:1] in (">", "!") or (code[:1] != "<" and sys.byteorder == "big")


def _swapped(data: bytes, size: int) -> bytes:
    swapped = bytearray(len(data))
    for place in range(size):
        swapped[place::size] = data[size - 1 - place :: size]
    return bytes(swapped)
