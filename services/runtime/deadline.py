"""A deadline as a value: a fixed moment, not a span that shrinks unseen."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

Clock = Callable[[], float]
"""Seconds that only grow; `time.monotonic` outside tests."""


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """The moment, on the clock of `time.monotonic`, after which nobody waits for the answer."""

    at: float

    @classmethod
    def after(cls, seconds: float, clock: Clock = time.monotonic) -> Self:
        """The deadline `seconds` from now."""
        return cls(clock() + seconds)

    def remaining(self, now: float) -> float:
        """Seconds left at `now`; negative when it has passed."""
        return self.at - now

    def expired(self, now: float) -> bool:
        """Whether nobody waits any more at `now`."""
        return now >= self.at
