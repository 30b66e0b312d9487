"""What a model answered for one item, so that nobody can change it. Knows no level of cache."""

import sys
from collections.abc import Mapping

import numpy as np

from services.inference.items import Array
from services.inference.outcomes import Scored, Timings
from services.inference.scoring import Outputs

# What was not queued took no time, and a batch of none.
AT_ONCE = Timings(0.0, 0.0, 0.0, 0)
# Probabilities of answers up to so many numbers are kept with them: making them takes longer than
# finding the answer.
MOST_SCORED = 1024
# Beyond the numbers themselves, measured (test_cache_memory.py holds it against tracemalloc): the
# value with the probabilities that are made of it, and each array with its name.
VALUE_BYTES = 720
ARRAY_BYTES = 300
# numpy keeps shape and strides beside an array.
DIMENSION_BYTES = 16


class Value:
    """The outputs for an item before any option of a call is applied, and what its input was."""

    __slots__ = ("_scored", "arrays", "nbytes", "tokens", "truncated")

    def __init__(self, arrays: Mapping[str, Array], tokens: int, *, truncated: bool) -> None:
        self.arrays = arrays
        """By name, each with a batch dimension of 1, and read-only."""
        self.tokens = tokens
        self.truncated = truncated
        self.nbytes = VALUE_BYTES + sum([_size(array) for array in arrays.values()])
        """What it takes up, with all that hangs on it."""
        self._scored: Scored | None = None

    @classmethod
    def of(cls, batch: Outputs, index: int, tokens: int = 0, *, truncated: bool = False) -> "Value":
        """A copy of one item's share of a batch: the rest of the batch is not kept alive."""
        arrays = {name: frozen(all_[index : index + 1]) for name, all_ in batch.arrays.items()}
        return cls(arrays, tokens, truncated=truncated)

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The outputs without batch dimension."""
        return {name: values[0] for name, values in self.arrays.items()}

    def scored(self, *, multi_label: bool) -> Scored:
        """The same as an outcome; the probabilities of a small one are made once."""
        if self._scored is not None:
            return self._scored
        scored = Scored(Outputs(self.arrays, multi_label=multi_label), 0, AT_ONCE)
        if sum([array.size for array in self.arrays.values()]) <= MOST_SCORED:
            self._scored = scored
        return scored


def frozen(array: Array) -> Array:
    """A copy that cannot be written to."""
    if array.dtype.hasobject:
        copied = array.copy()
        copied.setflags(write=False)
        return copied
    # Over bytes, so that no flag makes it writeable again.
    return np.ndarray(array.shape, array.dtype, array.tobytes())


def _size(array: Array) -> int:
    size: int = ARRAY_BYTES + DIMENSION_BYTES * array.ndim + array.nbytes
    if array.dtype.hasobject:
        size += sum([sys.getsizeof(element) for element in array.flat])
    # A probability of 64 bits for each number, as `scored` keeps them.
    return size + 8 * array.size if array.size <= MOST_SCORED else size
