"""What a template may use up: steps, sizes and time. Knows no template language."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

MAX_SIZE = 128 * 1024
MAX_OUTPUT, MAX_DEPTH, MAX_BITS = 1 << 20, 32, 4096
STEPS, SECONDS = 4_000_000, 2.0
# A long conversation is long, and what takes longer than this is no prompt.
SERVING_SIZE, SERVING_OUTPUT, SERVING_SECONDS = 4 << 20, 8 << 20, 1.0
_PLAIN, _TEXTS = (bool, float, type(None)), (str, bytes)


class OverBudgetError(Exception):
    """A template asks for more than any conversation needs."""


class Budget:
    """Counts down. Every operation on values is announced here before it is done.

    Nothing interrupts an operation, so each is made small: no value that an operation takes or
    makes is larger than `size` when written out, so none takes longer than milliseconds, and the
    clock is looked at before each.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        size: int = MAX_SIZE,
        output: int = MAX_OUTPUT,
        seconds: float = SECONDS,
    ) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._steps, self._output = STEPS, output
        self._size, self._most = size, output

    @classmethod
    def for_serving(cls) -> "Budget":
        """What a conversation with a model may take."""
        return cls(size=SERVING_SIZE, output=SERVING_OUTPUT, seconds=SERVING_SECONDS)

    def step(self, cost: int = 1) -> None:
        """One step of this cost."""
        self._steps -= cost + 1
        if self._steps < 0:
            raise OverBudgetError("takes too many steps")
        if self._clock() > self._end:
            raise OverBudgetError("takes too long")

    def emit(self, count: int) -> None:
        """So many characters of output."""
        self._output -= count
        if self._output < 0:
            raise OverBudgetError(f"writes more than {self._most} characters")

    def room(self, size: int) -> None:
        """A value of this size is about to be made."""
        self.step(min(max(size, 0), self._size) // 64)
        if size > self._size:
            raise OverBudgetError("makes a value that is too large")

    def weigh(self, *values: Any) -> int:
        """The size of the values written out, shared parts counted again and again."""
        size, pending = 0, [(value, 0) for value in values]
        while pending:
            value, depth = pending.pop()
            size += _own_size(value)
            if size > self._size or depth > MAX_DEPTH:
                raise OverBudgetError("makes a value that is too large")
            pending += [(part, depth + 1) for part in _parts(value)]
        self.step(size // 64)
        return size

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values, each a step."""
        for value in values:
            self.step()
            yield value


def _own_size(value: Any) -> int:
    if isinstance(value, _TEXTS):
        return len(value) + 1
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise OverBudgetError("makes a number that is too large")
        return 1 + value.bit_length() // 3
    if isinstance(value, Collection):
        return 1 + 2 * len(value)
    return 8 if isinstance(value, _PLAIN) else 64


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, Collection) and not isinstance(value, _TEXTS) else ()
