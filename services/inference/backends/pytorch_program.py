"""What every form of a PyTorch model is to the backend, and its types by the protocol's names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from services.inference.backend import TensorSpec
from services.inference.backends.pytorch_packing import Packed
from services.inference.items import Array
from services.runtime.errors import InvalidRequest

Tensors = Mapping[str, Any]
"""By name; `Any` stands for torch.Tensor, since torch is not there where types are checked."""

DATATYPES = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
DTYPES = {name: dtype for dtype, name in DATATYPES.items()}


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the rows of a packed batch lie."""

    starts: Any
    """[rows + 1], int32, on the device: the first token of each, and the end of the last."""
    firsts: Any
    """[rows], int64, on the device: the first token of each."""
    longest: int
    """No row has more tokens."""
    lengths: Sequence[int] = ()
    """Tokens of each row; a GPU, which need not know them, is told none."""


class Program(Protocol):
    """A model in memory; any number of threads may call it at once."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fill: Mapping[str, int]
    """What padding consists of; 0 where an input is not named."""
    bounds: Mapping[str, int]
    """By input: the first value that the model's tables lack."""
    unpadded: bool
    """Whether `packed` may be called."""
    counts_from: int | None
    """How positions of a packed batch count, as `pack` takes it."""

    def __call__(self, tensors: Tensors) -> Tensors:
        """The outputs of a padded batch; floating-point ones in float32."""
        ...

    def packed(self, tensors: Tensors, segments: Segments) -> Tensors:
        """The outputs of a packed batch."""
        ...

    def to(self, device: str) -> None:
        """Move it to a device."""
        ...

    def leave_out_padding(self, *, wanted: bool | None, device: str) -> None:
        """Set `unpadded`: None where the model is known to, and is seen to give the same answers.

        Raises InvalidRequest where it is wanted and cannot be.
        """
        ...

    def close(self) -> None:
        """Give up the weights."""
        ...


def tensor(array: Array) -> Any:
    """A tensor over an array, which is copied only where torch could not share it."""
    return torch.from_numpy(np.require(array, requirements=["C_CONTIGUOUS", "WRITEABLE"]))


def packed_tensors(packed: Packed, device: str) -> tuple[Tensors, Segments]:
    """What a program takes of a packed batch."""
    starts = np.concatenate([[0], packed.lengths.cumsum()])
    segments = Segments(
        tensor(starts.astype(np.int32)).to(device),
        tensor(starts[:-1]).to(device),
        packed.longest,
        packed.lengths.tolist(),
    )
    return {name: tensor(row).to(device) for name, row in packed.arrays.items()}, segments


def named(value: Any, names: Sequence[str]) -> dict[str, Any]:
    """The outputs of a model by name: its own names, else those given, else `logits` if it has one.

    Several without a name are output_0, output_1 and so on; what is no tensor is left out.
    """
    if isinstance(value, Mapping):
        own, values = list(value), list(value.values())
    elif isinstance(value, torch.Tensor):
        own, values = ["logits"], [value]
    else:
        values = list(value)
        own = list(getattr(value, "_fields", [])) or [f"output_{i}" for i in range(len(values))]
        own = ["logits"] if len(values) == 1 and not hasattr(value, "_fields") else own
    if names and len(names) != len(own):
        said = f"names {len(names)}, the model gives {len(own)}"
        raise InvalidRequest.field("model.yaml: pytorch.outputs", said)
    pairs = zip(names or own, values, strict=True)
    return {str(name): _single(one) for name, one in pairs if isinstance(one, torch.Tensor)}


def _single(value: Any) -> Any:
    return value.float() if value.is_floating_point() else value
