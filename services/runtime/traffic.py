"""How calls are spread over versions: shares and draws. Pure, and the same in every service."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Split:
    """One share: a version, or an alias wherever it points."""

    version: int
    alias: str
    weight: int


def pick(splits: Sequence[Split], draw: float) -> int:
    """The index of the share that `draw`, from 0 to below 1, falls into."""
    at = draw * sum(split.weight for split in splits)
    last = 0
    for index, split in enumerate(splits):
        if not split.weight:
            continue
        if at < split.weight:
            return index
        at -= split.weight
        last = index
    return last


def draw(model: str, value: str) -> float:
    """The draw, from 0 to below 1, that belongs to a caller's value: always the same one."""
    digest = hashlib.sha256(f"{model}\0{value}".encode()).digest()
    # 53 bits: as many as a float holds, so that the quotient stays below 1.
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53
