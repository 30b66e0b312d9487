"""Batches of token ids for the tests of the PyTorch backend; knows no torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def mixed(lengths: Sequence[int], fill: int = 0, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    """Rows of these lengths, of ids from 2 to 99, padded with `fill`."""
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.random.default_rng(seed).integers(2, 100, mask.shape)
    return {
        "input_ids": np.where(mask, ids, fill),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": np.zeros(mask.shape, np.int64),
    }


def only(batch: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The inputs of these names."""
    return {name: batch[name] for name in names}
