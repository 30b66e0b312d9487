"""When an address is left alone for a while, and how many retries there may be. Clock-free.

Only what says that nothing was reached counts against an address: what a service answers, however
bad, is an answer. So no caller can open a breaker for the others by what it asks.
"""

from dataclasses import dataclass

FAILURES = 5
"""Failures in a row that open a breaker."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 5.0


@dataclass(slots=True)
class Breaker:
    """Closed while calls get through; open, it lets one call through after each pause."""

    failures: int = 0
    open_until: float = 0.0
    _pause_s: float = 0.0

    def lets_through(self, now: float) -> bool:
        """Whether a call may try this address now."""
        return self.failures < FAILURES or now >= self.open_until

    def begin(self, now: float) -> None:
        """A call tries it: while the breaker is open, no other does before the next pause ends."""
        if self.failures >= FAILURES:
            self.open_until = now + self._pause_s

    def succeeded(self) -> None:
        """Something answered."""
        self.failures = 0
        self._pause_s = 0.0

    def failed(self, now: float) -> None:
        """Nothing answered."""
        self.failures += 1
        if self.failures >= FAILURES:
            self._pause_s = min(LONGEST_PAUSE_S, self._pause_s * 2 or FIRST_PAUSE_S)
            self.open_until = now + self._pause_s


@dataclass(slots=True)
class RetryBudget:
    """Retries as gRFC A6 throttles them: a failure costs 1, a success earns a tenth.

    Below half there are none, so that those who are in trouble do not get twice the work.
    """

    most: float = 10.0
    earned: float = 0.1
    level: float = 10.0

    def succeeded(self) -> None:
        """A call got through."""
        self.level = min(self.most, self.level + self.earned)

    def failed(self) -> None:
        """A call did not."""
        self.level = max(0.0, self.level - 1.0)

    def allows(self) -> bool:
        """Whether there may be a retry."""
        return self.level > self.most / 2
