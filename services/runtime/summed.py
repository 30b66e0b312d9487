"""Gauges of what several objects hold under one label, read when they are scraped."""

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakSet

from prometheus_client import Gauge

T = TypeVar("T")


class Summed(Generic[T]):
    """A gauge that shows, for each label, the sum over the objects that were added under it.

    Objects are held weakly: the metric lives as long as the process, what it reads need not.
    """

    def __init__(self, gauge: Gauge, read: Callable[[T], float]) -> None:
        self._gauge = gauge
        self._read = read
        self._held: dict[str, WeakSet[T]] = {}

    def add(self, label: str, one: T) -> None:
        """Count what `one` says."""
        if label not in self._held:
            held = self._held[label] = WeakSet[T]()
            self._gauge.labels(label).set_function(lambda: sum(self._read(each) for each in held))
        self._held[label].add(one)

    def remove(self, label: str, one: T) -> None:
        """No longer."""
        self._held[label].discard(one)
