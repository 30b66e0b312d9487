"""What travels through the batcher: items as callers mean them, and encoded items."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TextItem:
    """One text."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPairItem:
    """Two texts that belong together."""

    first: str
    second: str


@dataclass(slots=True, eq=False)
class FeaturesItem:
    """A vector of numbers."""

    values: Sequence[float] | NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An encoded image file."""

    data: bytes


@dataclass(slots=True, eq=False)
class TensorsItem:
    """Tensors by the names of the model's inputs ("" is its only one), without batch dimension."""

    tensors: Mapping[str, Array]


Item = TextItem | TextPairItem | FeaturesItem | ImageItem | TensorsItem


@dataclass(slots=True, eq=False)
class Encoded:
    """An item ready to be batched: one array for each model input, without batch dimension."""

    inputs: Mapping[str, Array]
    length: int
    """Tokens, or 1 where items have no length: what padding multiplies."""
    tokens: int = 0
    truncated: bool = False
    group: Hashable = None
    """Only items of equal groups may share a batch."""

    @property
    def nbytes(self) -> int:
        """What it takes up while it waits."""
        return sum([_size(array) for array in self.inputs.values()])


def _size(array: Array) -> int:
    if array.dtype.hasobject:  # what it points to counts too
        return array.nbytes + sum([len(value) for value in array.flat])
    return array.nbytes


def pad(items: Sequence[Encoded], fill: Mapping[str, int]) -> dict[str, Array]:
    """One array with a batch dimension for each input; shorter items end in `fill`."""
    if len(items) == 1:
        return {name: row[None] for name, row in items[0].inputs.items()}
    batch: dict[str, Array] = {}
    for name, first in items[0].inputs.items():
        rows = [item.inputs[name] for item in items]
        if {row.shape for row in rows} == {first.shape}:
            batch[name] = np.concatenate(rows, axis=None).reshape(len(rows), *first.shape)
            continue
        longest = max(row.shape[0] for row in rows)
        padded = np.full((len(rows), longest), fill.get(name, 0), dtype=first.dtype)
        for index, row in enumerate(rows):
            padded[index, : row.shape[0]] = row
        batch[name] = padded
    return batch
