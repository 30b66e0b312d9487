"""A GPU that is this CPU, and programs that tell what was asked of them. Needs torch.

Nothing on it happens early: a batch arrives only once a stream waits for it, and a graph computes
from the memory that it was captured with.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from services.inference.backends.pytorch_gpu import Compute, Slot
from services.inference.backends.pytorch_program import Program, Segments, Tensors
from services.inference.items import Array

POISON = 0xA5


class FakeSlot:
    """Memory on both sides; what was sent comes when it is waited for."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.host = np.full(nbytes, POISON, np.uint8)
        self.device = torch.full((nbytes,), POISON, dtype=torch.uint8)
        self.sent = 0


class FakeGraph:
    """Computes again, from its own memory into its own memory."""

    def __init__(self, compute: Compute, example: Tensors) -> None:
        self._compute = compute
        self._inputs = {name: values.clone() for name, values in example.items()}
        self._outputs = {name: values.clone() for name, values in compute(self._inputs).items()}
        self.replays = 0

    def replay(self, tensors: Tensors) -> Tensors:
        """The same memory as at every replay."""
        self.replays += 1
        for name, values in self._inputs.items():
            values.copy_(tensors[name])
        for name, values in self._compute(self._inputs).items():
            self._outputs[name].copy_(values)
        return self._outputs


class FakeStream:
    """Computes at once, within `using` alone."""

    def __init__(self, gpu: "FakeGpu") -> None:
        self._gpu = gpu
        self.graphs: list[FakeGraph] = []

    @contextmanager
    def using(self, slot: Slot) -> Iterator[None]:
        """What was sent comes now."""
        assert isinstance(slot, FakeSlot)
        assert slot.sent, "nothing was sent"
        slot.device[: slot.sent] = torch.from_numpy(slot.host[: slot.sent].copy())
        self._gpu.using = True
        try:
            yield
        finally:
            self._gpu.using = False

    def capture(self, compute: Compute, example: Tensors) -> FakeGraph:
        """As told."""
        assert self._gpu.using
        if self._gpu.capture_fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.graphs.append(FakeGraph(compute, example))
        self._gpu.captured.append({name: list(one.shape) for name, one in example.items()})
        return self.graphs[-1]

    def fetch(self, tensors: Tensors) -> dict[str, Array]:
        """Copies."""
        assert self._gpu.using
        return {name: values.numpy().copy() for name, values in tensors.items()}


class FakeGpu:
    """Counts what is asked of it."""

    name = "cuda:0"

    def __init__(self, *, capture_fails: bool = False) -> None:
        self.capture_fails = capture_fails
        self.using = False
        self.slots = 0
        self.closed = 0
        self.captured: list[dict[str, list[int]]] = []
        self.streams: list[FakeStream] = []

    def load(self, program: Program) -> None:
        """It is there already."""

    def slot(self, nbytes: int) -> FakeSlot:
        """One more."""
        self.slots += 1
        return FakeSlot(nbytes)

    def send(self, slot: Slot, nbytes: int) -> None:
        """Only remembered."""
        assert isinstance(slot, FakeSlot)
        slot.device[:] = POISON
        slot.sent = nbytes

    def stream(self) -> FakeStream:
        """One more."""
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    def close(self) -> None:
        """Remembered."""
        self.closed += 1

    @property
    def replays(self) -> int:
        """Of all graphs."""
        return sum(graph.replays for stream in self.streams for graph in stream.graphs)


class Counting:
    """A program that counts its calls; as a GPU's it is told no lengths, and finds them itself."""

    def __init__(self, program: Any) -> None:
        self._program = program
        self.inputs, self.outputs = program.inputs, program.outputs
        self.fill, self.bounds = program.fill, program.bounds
        self.unpadded, self.counts_from = program.unpadded, program.counts_from
        self.calls = {"padded": 0, "packed": 0}

    def __call__(self, tensors: Tensors) -> Tensors:
        """Padded."""
        self.calls["padded"] += 1
        return self._program(tensors)

    def packed(self, tensors: Tensors, segments: Segments) -> Tensors:
        """Packed; of rows and tokens that only fill up, nothing can be relied on."""
        self.calls["packed"] += 1
        if segments.lengths:
            return self._program.packed(tensors, segments)
        lengths = segments.starts.diff()
        rows, end = int((lengths > 0).sum()), int(segments.starts[-1])
        assert int(lengths.max()) <= segments.longest
        whole = Segments(
            segments.starts[: rows + 1],
            segments.firsts[:rows],
            segments.longest,
            lengths[:rows].tolist(),
        )
        found = self._program.packed({name: one[:, :end] for name, one in tensors.items()}, whole)
        nothing = torch.full((len(lengths) - rows, 1), torch.nan)
        return {
            name: torch.cat([one, nothing.expand(-1, one.shape[1])]) for name, one in found.items()
        }

    def to(self, device: str) -> None:
        """It stays."""

    def leave_out_padding(self, *, wanted: bool | None, device: str) -> None:
        """As the program does already."""
