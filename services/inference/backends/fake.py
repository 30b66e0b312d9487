"""A backend that computes a known function of its input: for tests, in the tree as an equal."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.backend import Instance, TensorSpec

Hook = Callable[[Mapping[str, NDArray[Any]]], None]


class FakeInstance:
    """Answers with each row's own first value, so that a crossed result is seen."""

    def __init__(self, before: Hook | None) -> None:
        self._before = before

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """`echo`: the first value of each row; `probabilities`: two columns made from it."""
        if self._before:
            self._before(inputs)
        rows = next(iter(inputs.values()))
        first = rows.reshape(len(rows), -1)[:, 0].astype(np.float64)
        positive = (first % 100) / 100
        return {"echo": first, "probabilities": np.stack([1 - positive, positive], axis=1)}


class FakeBackend:
    """Runs `before` on each batch: tests block there, or raise, or record."""

    name = "fake"
    version = "1"
    device = "cpu"
    threads = 1
    inputs: tuple[TensorSpec, ...] = (TensorSpec("features", "FP32", (-1, -1)),)
    outputs: tuple[TensorSpec, ...] = (
        TensorSpec("echo", "FP64", (-1,)),
        TensorSpec("probabilities", "FP64", (-1, 2)),
    )

    def __init__(self, before: Hook | None = None) -> None:
        self._before = before
        self.closed = threading.Event()

    def instance(self) -> Instance:
        """One more executor."""
        return FakeInstance(self._before)

    def close(self) -> None:
        """Remember that it was closed."""
        self.closed.set()
