"""What a preprocessor is, and what all of them share. Knows no kind of item in particular."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from services.inference.backend import TensorSpec
from services.inference.items import Encoded, Item
from services.runtime.errors import GristmillError, InvalidRequest

# Type names of the Open Inference Protocol. BF16 has no numpy type: two bytes, passed as they are.
DTYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": np.uint16,
    "BYTES": np.object_,
}


class Preprocessor(Protocol):
    """Encodes items for one model."""

    fill: dict[str, int]
    """What shorter rows of an input are padded with; 0 where it is not named."""

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """Whether encoding them takes less than handing them to a thread would."""
        ...

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """Each item encoded, or the error that is its own."""
        ...


def dtype_of(spec: TensorSpec, *kinds: str) -> Any:
    """The numpy type of a model input; InvalidRequest where it is none of `kinds`."""
    if spec.datatype not in (kinds or DTYPES):
        raise InvalidRequest.field(f"model input {spec.name}", f"of type {spec.datatype}")
    return DTYPES[spec.datatype]
