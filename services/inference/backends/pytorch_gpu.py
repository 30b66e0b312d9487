"""A program on a GPU: batches moved while others compute, and graphs of it. Knows no CUDA.

A batch goes to the device in one copy, which whoever forms it can begin before an instance is free.
Every instance has a stream and graphs of its own. What the device can do is a `Gpu`: the real one
is in pytorch_cuda, and tests bring theirs.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from services.inference.backends import pytorch_packing
from services.inference.backends.pytorch_graphs import Graphs
from services.inference.backends.pytorch_program import Program, Segments, Tensors, tensor
from services.inference.backends.pytorch_shapes import (
    Shape,
    Sizes,
    check,
    packed_target,
    padded_target,
    write_packed,
    write_padded,
)
from services.inference.backends.pytorch_staging import Layout, Slots
from services.inference.items import Array

Compute = Callable[[Tensors], Tensors]


class Slot(Protocol):
    """Memory for a batch on both sides."""

    nbytes: int
    host: NDArray[np.uint8]
    device: Any
    """As many bytes there, as a tensor."""


class Graph(Protocol):
    """A captured computation."""

    def replay(self, tensors: Tensors) -> Tensors:
        """Its outputs for other inputs of the same shapes; the next replay overwrites them."""
        ...


class Stream(Protocol):
    """Computes one thing after the other; used by one thread at a time."""

    def using(self, slot: Slot) -> AbstractContextManager[object]:
        """Within, computing goes to this stream, after what was sent to the slot has come."""
        ...

    def capture(self, compute: Compute, example: Tensors) -> Graph:
        """Record what this computes."""
        ...

    def fetch(self, tensors: Tensors) -> dict[str, Array]:
        """Copies on the host, once all that went to this stream is done."""
        ...


class Gpu(Protocol):
    """A device; any thread may call it."""

    name: str

    def load(self, program: Program) -> None:
        """Move a model there."""
        ...

    def slot(self, nbytes: int) -> Slot:
        """Memory for batches."""
        ...

    def send(self, slot: Slot, nbytes: int) -> None:
        """Begin to copy the slot's first bytes to the device, beside what is computed there."""
        ...

    def stream(self) -> Stream:
        """One more stream."""
        ...

    def close(self) -> None:
        """Wait until nothing runs any more, and give memory that nobody uses back."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Moved:
    """A batch that is on its way to the device, or there."""

    rows: int
    shape: Shape
    layout: Layout
    slot: Slot

    def tensors(self) -> Tensors:
        """Its arrays, on the device."""
        whole = self.slot.device
        return {
            name: whole[part.start : part.end].view(_dtype(part.dtype)).view(part.shape)
            for name, part in self.layout.parts.items()
        }


@cache
def _dtype(dtype: np.dtype[Any]) -> Any:
    return tensor(np.empty(0, dtype)).dtype


class Prepared(dict[str, Array]):
    """The inputs of a batch, and where they are now."""

    moved: Moved | None = None


class Mover:
    """Brings batches to the device, for all instances of a backend and on any thread."""

    def __init__(self, gpu: Gpu, program: Program, sizes: Sizes, max_tokens: int) -> None:
        self._gpu = gpu
        self._program: Program | None = program
        self._sizes = sizes
        self._max_tokens = max_tokens
        self._slots: Slots[Slot] = Slots(gpu.slot)

    def move(self, inputs: Mapping[str, Array]) -> Moved:
        """Begin to move a batch; ValueError where it holds what the model's tables lack."""
        program = self._program
        if program is None:
            raise RuntimeError("the model is closed")
        check(inputs, program.bounds, self._max_tokens)
        shape, packed = self._formed(program, inputs)
        layout = Layout.of(packed_target(packed, shape) if packed else padded_target(inputs, shape))
        slot = self._slots.take(layout.nbytes)
        into = layout.views(slot.host)
        if packed:
            write_packed(into, packed, program.fill, shape)
        else:
            write_padded(into, inputs, program.fill, shape)
        self._gpu.send(slot, layout.nbytes)
        return Moved(len(next(iter(inputs.values()))), shape, layout, slot)

    def _formed(
        self, program: Program, inputs: Mapping[str, Array]
    ) -> tuple[Shape, pytorch_packing.Packed | None]:
        """The batch packed, where it can be and is smaller so, and the shape that it gets."""
        first = next(iter(inputs.values()))
        if program.unpadded and (packed := pytorch_packing.pack(inputs, program.counts_from)):
            shape = self._sizes.shape(len(first), packed.longest, int(packed.lengths.sum()))
            if shape.tokens:
                return shape, packed
        return self._sizes.shape(len(first), first.shape[1] if self._max_tokens else 0), None

    def done(self, moved: Moved) -> None:
        """The batch has been computed: its memory can be used again."""
        self._slots.give(moved.slot)

    def close(self) -> None:
        """Give up the memory, and the model."""
        self._slots.clear()
        self._program = None


class GpuInstance:
    """One stream, with graphs of its own; runs batches that were prepared, and others."""

    def __init__(self, gpu: Gpu, program: Program, mover: Mover, max_graphs: int) -> None:
        self._program: Program | None = program
        self._mover = mover
        self._stream = gpu.stream()
        self._graphs: Graphs[Shape, Tensors, Graph] = Graphs(self._capture, max_graphs)

    def prepare(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Begin to move a batch to the device, while this or another instance computes."""
        prepared = Prepared(inputs)
        prepared.moved = self._mover.move(inputs)
        return prepared

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """The outputs by name."""
        moved: Moved | None = None
        if isinstance(inputs, Prepared):
            moved, inputs.moved = inputs.moved, None
        if moved is None:
            moved = self._mover.move(inputs)
        with torch.inference_mode(), self._stream.using(moved.slot):
            tensors = moved.tensors()
            graph = self._graphs.get(moved.shape, tensors)
            outputs = graph.replay(tensors) if graph else self._compute(moved.shape, tensors)
            found = self._stream.fetch({name: all_[: moved.rows] for name, all_ in outputs.items()})
        self._mover.done(moved)
        return found

    def _compute(self, shape: Shape, tensors: Tensors) -> Tensors:
        if self._program is None:
            raise RuntimeError("the model is closed")
        if not shape.tokens:
            return self._program(tensors)
        arrays = dict(tensors)
        segments = Segments(arrays.pop("starts"), arrays.pop("firsts"), shape.length)
        return self._program.packed(arrays, segments)

    def _capture(self, shape: Shape, example: Tensors) -> Graph:
        return self._stream.capture(lambda tensors: self._compute(shape, tensors), example)

    def close(self) -> None:
        """Give up the graphs and the model."""
        self._graphs.clear()
        self._program = None
