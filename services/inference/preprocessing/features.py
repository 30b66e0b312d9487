"""Vectors of numbers, checked. Raw tensors of the model's own input pass through."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.inference.backend import TensorSpec
from services.inference.items import Encoded, FeaturesItem, Item
from services.inference.manifest import Input
from services.inference.preprocessing.preprocessor import dtype_of
from services.inference.preprocessing.tensors import TensorsPreprocessor
from services.runtime.errors import GristmillError, InvalidRequest


class FeaturesPreprocessor:
    """Vectors of finite numbers, all of one length."""

    def __init__(self, declared: Input, inputs: Sequence[TensorSpec]) -> None:
        if len(inputs) != 1:
            raise InvalidRequest.field("model inputs", "a float_features model has exactly one")
        self._name = inputs[0].name
        self._dtype = dtype_of(inputs[0], "INT64", "INT32", "FP32", "FP64", "FP16")
        width = inputs[0].shape[-1]
        self._width = len(declared.names) or width
        if self._width < 1:
            # Vectors of several lengths in a batch would be padded: neighbours changed answers.
            raise InvalidRequest.field("model.yaml: input.names", "the model does not fix how many")
        fixed = TensorSpec(self._name, inputs[0].datatype, (-1, self._width))
        self._tensors = TensorsPreprocessor([fixed], instead="float_features")
        self.fill: dict[str, int] = {}

    def is_cheap(self, items: Sequence[Item]) -> bool:
        """Up to a few hundred vectors: they are only checked."""
        return len(items) <= 256

    def encode(
        self, items: Sequence[Item], *, refuse_longer: bool = False
    ) -> list[Encoded | GristmillError]:
        """The vectors, checked."""
        return [self._one(item) for item in items]

    def _one(self, item: Item) -> Encoded | GristmillError:
        if not isinstance(item, FeaturesItem):
            return self._tensors.one(item)
        values = item.values
        if len(values) != self._width:
            return InvalidRequest.field(
                "float_features.values", f"needs {self._width} numbers, has {len(values)}"
            )
        if not _finite(values):
            return InvalidRequest.field("float_features.values", "must be finite numbers")
        return Encoded({self._name: np.array(values, dtype=self._dtype)}, 1)


def _finite(values: Sequence[float] | NDArray[np.float32]) -> bool:
    if isinstance(values, np.ndarray):
        return bool(np.isfinite(values).all())
    # A sum is finite exactly when its terms are: those of 32 bits cannot overflow one of 64.
    return math.isfinite(sum(values))
