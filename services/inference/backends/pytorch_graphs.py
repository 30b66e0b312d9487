"""Captured graphs by the shape of their batch, as many as fit. Knows no torch and no device."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import structlog

_log = structlog.get_logger()

K = TypeVar("K", bound=Hashable)
E = TypeVar("E")
G = TypeVar("G")


class Graphs(Generic[K, E, G]):
    """Captures a graph when a shape is first seen, and forgets the one unused for longest.

    After a failed capture none is tried again: what cannot be captured at one size cannot at
    another, and where memory ran out there is none for more.
    """

    def __init__(self, capture: Callable[[K, E], G], most: int) -> None:
        self._capture = capture
        self._most = most
        self._found: OrderedDict[K, G] = OrderedDict()
        self.failed = False

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: K, example: E) -> G | None:
        """The graph for this shape, captured with `example` if new; None where there is none."""
        if key in self._found:
            self._found.move_to_end(key)
            return self._found[key]
        if self.failed or not self._most:
            return None
        if len(self._found) >= self._most:
            # Before the capture: there may not be memory for both.
            self._found.popitem(last=False)
        try:
            graph = self._capture(key, example)
        except Exception as error:
            self.failed = True
            # Not with its traceback, in which the callers' data stand.
            _log.warning("no CUDA graph: batches run without", shape=key, error=str(error))
            return None
        self._found[key] = graph
        return graph

    def clear(self) -> None:
        """Forget all."""
        self._found.clear()
