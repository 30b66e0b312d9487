"""Buffers in which whole batches travel to a device, used again and again. Knows no torch.

The arrays of a batch lie one behind the other in one buffer, so that one copy moves them all.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.inference.backends.pytorch_shapes import Target
from services.inference.items import Array

ALIGNMENT = 256
LEAST_BYTES = 2**16
IDLE = 4


@dataclass(frozen=True, slots=True)
class Part:
    """Where one array lies in a buffer."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.start + self.dtype.itemsize * prod(self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each array of a batch lies."""

    parts: Mapping[str, Part]
    nbytes: int

    @classmethod
    def of(cls, target: Target) -> "Layout":
        """One behind the other, each aligned."""
        parts: dict[str, Part] = {}
        end = 0
        for name, (dtype, shape) in target.items():
            parts[name] = Part(dtype, shape, -(-end // ALIGNMENT) * ALIGNMENT)
            end = parts[name].end
        return cls(parts, end)

    def views(self, buffer: NDArray[np.uint8]) -> dict[str, Array]:
        """The arrays within a buffer."""
        return {
            name: buffer[part.start : part.end].view(part.dtype).reshape(part.shape)
            for name, part in self.parts.items()
        }


class Slot(Protocol):
    """A buffer that a batch fits in."""

    @property
    def nbytes(self) -> int:
        """Its size."""
        ...


S = TypeVar("S", bound=Slot)


class Slots(Generic[S]):
    """Buffers that are taken for a batch and given back after it; any thread may ask.

    One that is never given back is simply gone, and another is made.
    """

    def __init__(self, make: Callable[[int], S]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[S] = []

    def take(self, nbytes: int) -> S:
        """The smallest idle buffer that is large enough, or a new one of the next power of two."""
        with self._lock:
            fitting = [slot for slot in self._idle if slot.nbytes >= nbytes]
            if fitting:
                chosen = min(fitting, key=lambda slot: slot.nbytes)
                self._idle = [slot for slot in self._idle if slot is not chosen]
                return chosen
        return self._make(1 << (max(nbytes, LEAST_BYTES) - 1).bit_length())

    def give(self, slot: S) -> None:
        """Put one back; of many the largest are kept."""
        with self._lock:
            self._idle.append(slot)
            self._idle.sort(key=lambda one: one.nbytes, reverse=True)
            del self._idle[IDLE:]

    def clear(self) -> None:
        """Give up those that are idle."""
        with self._lock:
            self._idle.clear()
