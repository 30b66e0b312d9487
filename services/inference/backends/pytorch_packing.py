"""A padded batch as one sequence of its real tokens alone: the arrays of it. Knows no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.inference.items import Array


@dataclass(frozen=True, slots=True)
class Packed:
    """The rows of a batch one after the other."""

    arrays: Mapping[str, Array]
    """Each of shape [1, tokens]; `position_ids` among them, and no mask."""
    lengths: NDArray[np.int64]
    """Tokens of each row; none has 0."""

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max())


def pack(inputs: Mapping[str, Array], counts_from: int | None = None) -> Packed | None:
    """The batch without its padding; None where a row is no run of tokens followed by padding.

    Positions count from 0, or, where `counts_from` is the id of the padding token, as RoBERTa's do:
    from the id after it, over tokens of other ids alone.
    """
    kept = inputs["attention_mask"] != 0
    lengths = kept.sum(axis=1)
    width = kept.shape[1]
    if lengths.min() < 1 or not (kept == (np.arange(width) < lengths[:, None])).all():
        return None
    if counts_from is None:
        positions = np.broadcast_to(np.arange(width), kept.shape)
    else:
        counted = inputs["input_ids"] != counts_from
        positions = counted.cumsum(axis=1) * counted + counts_from
    arrays = {name: rows[kept][None] for name, rows in inputs.items() if name != "attention_mask"}
    return Packed({**arrays, "position_ids": positions[kept][None]}, lengths)
