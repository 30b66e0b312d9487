"""What travels through the batcher: items as callers mean them, encoded items, outcomes."""

from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class FeaturesItem:
    """A vector of numbers."""

    values: NDArray[np.float32]


Item = TextItem | TextPairItem | FeaturesItem


@dataclass(frozen=True, slots=True)
class Encoded:
    """An item ready to be batched: one array for each model input, without batch dimension."""

    inputs: Mapping[str, Array]
    length: int
    """Tokens, or 1 where items have no length: what padding multiplies."""
    tokens: int = 0
    truncated: bool = False

    @property
    def nbytes(self) -> int:
        """What it takes up while it waits."""
        return sum(array.nbytes for array in self.inputs.values())


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one item went, in seconds."""

    queue_s: float
    batch_s: float
    compute_s: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The model's outputs for one item, without batch dimension."""

    outputs: Mapping[str, Array]
    timings: Timings


def pad(items: Sequence[Encoded], fill: Mapping[str, int]) -> dict[str, Array]:
    """One array with a batch dimension for each input; shorter items end in `fill`."""
    batch: dict[str, Array] = {}
    for name, first in items[0].inputs.items():
        rows = [item.inputs[name] for item in items]
        if all(row.shape == first.shape for row in rows):
            batch[name] = np.stack(rows)
            continue
        longest = max(row.shape[0] for row in rows)
        padded = np.full((len(rows), longest), fill.get(name, 0), dtype=first.dtype)
        for index, row in enumerate(rows):
            padded[index, : row.shape[0]] = row
        batch[name] = padded
    return batch
