"""Sizes that CUDA graphs are captured for, and batches made to fit them. Knows no torch.

Every size has graphs of its own, so there must be few; a batch that is smaller is filled up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from services.inference.backends.pytorch_packing import Packed
from services.inference.items import Array

Target = Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]]
"""Type and shape of each array that a batch becomes."""
LEAST_TOKENS = 64
MASK = "attention_mask"


class Shape(NamedTuple):
    """The size of a batch on the device."""

    rows: int
    length: int
    """Tokens of each row; 0 where items have none. Of a packed batch: no row has more."""
    tokens: int = 0
    """Of a packed batch in all; 0: it is padded."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Which shapes there are; none at all means that every batch keeps its own."""

    rows: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, max_batch_size: int, preferred: Sequence[int], lengths: Sequence[int], max_tokens: int
    ) -> "Sizes":
        """Powers of two and the sizes preferred; the lengths wanted, as far as items can be."""
        rows = {2**power for power in range(max_batch_size.bit_length())} | {max_batch_size}
        rows |= {size for size in preferred if size <= max_batch_size}
        found = {length for length in lengths if length < max_tokens} | {max_tokens}
        return cls(tuple(sorted(rows)), tuple(sorted(found)) if max_tokens else ())

    def shape(self, rows: int, length: int, tokens: int = 0) -> Shape:
        """What a batch is made to fit; `tokens` are those of a batch that can be packed.

        It is packed where that takes less: sizes of packed batches are two for each power of two.
        """
        padded = Shape(_fitting(rows, self.rows), _fitting(length, self.lengths))
        if self.rows and tokens:
            tokens = _token_size(tokens)
        if 0 < tokens < padded.rows * padded.length:
            return padded._replace(tokens=tokens)
        return padded


def _fitting(value: int, sizes: Sequence[int]) -> int:
    return next((size for size in sizes if size >= value), value)


def _token_size(tokens: int) -> int:
    size: int = 1 << (max(tokens, LEAST_TOKENS) - 1).bit_length()
    return size * 3 // 4 if tokens <= size * 3 // 4 else size


def check(inputs: Mapping[str, Array], bounds: Mapping[str, int], max_tokens: int) -> None:
    """Raise ValueError on what would end the device's context, and with it every model on it."""
    for name, rows in inputs.items():
        if max_tokens and rows.shape[1] > max_tokens:
            raise ValueError(f"{name}: {rows.shape[1]} tokens are more than {max_tokens}")
        bound = bounds.get(name, 0)
        if bound and rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < bound:
            raise ValueError(f"{name}: values must be from 0 to {bound - 1}")


def padded_target(inputs: Mapping[str, Array], shape: Shape) -> Target:
    """What a batch of this shape consists of, padded."""
    return {
        name: (rows.dtype, (shape.rows, *_item_shape(rows, shape))) for name, rows in inputs.items()
    }


def _item_shape(rows: Array, shape: Shape) -> tuple[int, ...]:
    return (shape.length, *rows.shape[2:]) if shape.length else rows.shape[1:]


def write_padded(
    into: Mapping[str, Array], inputs: Mapping[str, Array], fill: Mapping[str, int], shape: Shape
) -> None:
    """The batch in its place: rows end in `fill`, and the last is repeated for those that lack."""
    for name, rows in inputs.items():
        place, count = into[name], len(rows)
        if shape.length:
            place[:count, : rows.shape[1]] = rows
            place[:count, rows.shape[1] :] = fill.get(name, 0)
        else:
            place[:count] = rows
        place[count:] = place[count - 1]


def packed_target(packed: Packed, shape: Shape) -> Target:
    """What a packed batch of this shape consists of."""
    whole = {name: (row.dtype, (1, shape.tokens)) for name, row in packed.arrays.items()}
    ends: Target = {
        "starts": (np.dtype(np.int32), (shape.rows + 1,)),
        "firsts": (np.dtype(np.int64), (shape.rows,)),
    }
    return {**whole, **ends}


def write_packed(
    into: Mapping[str, Array], packed: Packed, fill: Mapping[str, int], shape: Shape
) -> None:
    """The batch in its place; rows that lack are empty, tokens that lack belong to no row."""
    for name, row in packed.arrays.items():
        into[name][:, : row.shape[1]] = row
        into[name][:, row.shape[1] :] = fill.get(name, 0)
    count = len(packed.lengths)
    starts = into["starts"]
    starts[0] = 0
    starts[1 : count + 1] = np.cumsum(packed.lengths)
    starts[count + 1 :] = starts[count]
    into["firsts"][:count] = starts[:count]
    into["firsts"][count:] = 0
