"""How often work tells how far it is; knows nothing of the work."""

import time
from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Hears the fraction done, 0 to 1, and what is being done."""
PAUSE_S = 0.25


class Paced:
    """Passes on at most four reports a second, so that a loop may report at every turn."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._next = clock()

    def __call__(self, fraction: float, what: str) -> None:
        """Report, unless the last report was just now."""
        now = self._clock()
        if now >= self._next:
            self._next = now + PAUSE_S
            self._progress(min(max(fraction, 0.0), 1.0), what)
