"""An NVIDIA GPU: pinned memory, streams, events and graphs. Decides nothing; knows no model.

No test without a GPU reaches these calls, so there are few of them.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from services.inference.backends.pytorch_gpu import Compute, Slot
from services.inference.backends.pytorch_program import Program, Tensors
from services.inference.items import Array

WARM_RUNS = 3
# A capture synchronises the whole device, which must not meet another capture.
_capturing = threading.Lock()


class CudaSlot:
    """Pinned memory and as much on the device."""

    def __init__(self, nbytes: int, device: str) -> None:
        self.nbytes = nbytes
        self._pinned = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        self.host = self._pinned.numpy()
        self.device = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.copied = torch.cuda.Event()

    def send(self, nbytes: int) -> None:
        """Begin to copy, on the current stream."""
        self.device[:nbytes].copy_(self._pinned[:nbytes], non_blocking=True)
        self.copied.record()


class CudaGraph:
    """A graph and the memory that it reads and writes, at fixed addresses."""

    def __init__(self, compute: Compute, example: Tensors, pool: object, stream: object) -> None:
        self._inputs = {name: values.clone() for name, values in example.items()}
        for _ in range(WARM_RUNS):
            # Libraries set themselves up in the first calls: no capture survives that.
            compute(self._inputs)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads go on allocating meanwhile; only this one must not.
        mode = "thread_local"
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode=mode):
            self._outputs = compute(self._inputs)

    def replay(self, tensors: Tensors) -> Tensors:
        """Its outputs for other inputs of the same shapes; the next replay overwrites them."""
        for name, values in self._inputs.items():
            values.copy_(tensors[name])
        self._graph.replay()
        return self._outputs


class CudaStream:
    """Computes one thing after the other; its graphs share memory, since they run in turn."""

    def __init__(self, device: str) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        # A thread that waits for it sleeps: spinning would take a core from the others.
        self._ended = torch.cuda.Event(blocking=True)

    @contextmanager
    def using(self, slot: Slot) -> Iterator[None]:
        """Within, computing goes to this stream, after what was sent to the slot has come."""
        assert isinstance(slot, CudaSlot)  # noqa: S101  # made by Cuda.slot, as the protocol says
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.copied)
            # Should the slot be given up, its memory stays taken until this stream is past it.
            slot.device.record_stream(self._stream)
            yield

    def capture(self, compute: Compute, example: Tensors) -> CudaGraph:
        """Record what this computes."""
        with _capturing:
            return CudaGraph(compute, example, self._pool, self._stream)

    def fetch(self, tensors: Tensors) -> dict[str, Array]:
        """Copies on the host, once all that went to this stream is done."""
        hosts = {}
        for name, values in tensors.items():
            hosts[name] = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            hosts[name].copy_(values, non_blocking=True)
        self._ended.record(self._stream)
        self._ended.synchronize()
        # Pinned memory is scarce, and answers may wait for long to be sent.
        return {name: np.array(host.numpy()) for name, host in hosts.items()}


class Cuda:
    """One GPU, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._copies = torch.cuda.Stream(name)

    def load(self, program: Program) -> None:
        """Move a model there."""
        program.to(self.name)
        torch.cuda.synchronize(self.name)

    def slot(self, nbytes: int) -> CudaSlot:
        """Memory for batches."""
        with torch.cuda.stream(self._copies):
            return CudaSlot(nbytes, self.name)

    def send(self, slot: Slot, nbytes: int) -> None:
        """Begin to copy the slot's first bytes to the device, beside what is computed there."""
        assert isinstance(slot, CudaSlot)  # noqa: S101  # made by Cuda.slot, as the protocol says
        with torch.cuda.stream(self._copies):
            slot.send(nbytes)

    def stream(self) -> CudaStream:
        """One more stream."""
        return CudaStream(self.name)

    def close(self) -> None:
        """Wait until nothing runs any more, and give memory that nobody uses back."""
        torch.cuda.synchronize(self.name)
        torch.cuda.empty_cache()
