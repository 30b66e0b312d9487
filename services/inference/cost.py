"""What a batch costs on this device: `fixed + per_token x padded tokens`, learned as it runs."""

from collections.abc import Iterable
from dataclasses import dataclass

# Each batch counts this much less with every later one: about the last 100 batches decide.
FORGET = 0.99
# Before this many batches nothing is refused for what the model predicts.
LEARNED_AFTER = 8
# A curve measured before counts as so many batches, until the real ones outweigh it.
PRIOR_BATCHES = 4.0


@dataclass(slots=True)
class CostModel:
    """Weighted least squares over (padded tokens, seconds), kept as running sums."""

    fixed: float = 0.002
    per_token: float = 0.0001
    seen: int = 0
    _n: float = 0.0
    _x: float = 0.0
    _y: float = 0.0
    _xx: float = 0.0
    _xy: float = 0.0

    @property
    def learned(self) -> bool:
        """Whether predictions rest on enough batches."""
        return self.seen >= LEARNED_AFTER

    def start_from(self, points: Iterable[tuple[int, float]]) -> None:
        """Take over a curve measured before on such a device: padded tokens and seconds.

        It counts as learned at once; without a point nothing changes.
        """
        measured = [(tokens, seconds) for tokens, seconds in points if tokens > 0 and seconds > 0]
        # Each is off by a share of itself; and a batch larger than any that will run must not hold
        # the slope against those.
        total = sum(tokens**-2 for tokens, _ in measured)
        for tokens, seconds in measured:
            self._add(PRIOR_BATCHES * tokens**-2 / total, tokens, seconds)
        if measured:
            self.seen = max(self.seen, LEARNED_AFTER)
            self._fit()

    def guess(self, tokens: int, seconds: float) -> None:
        """What one batch took when the model was tried out: a beginning, nothing learned."""
        self._add(PRIOR_BATCHES, max(1, tokens), seconds)
        self._fit()

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from one batch."""
        self.seen += 1
        self._n *= FORGET
        self._x *= FORGET
        self._y *= FORGET
        self._xx *= FORGET
        self._xy *= FORGET
        self._add(1.0, tokens, seconds)
        self._fit()

    def seconds(self, batches: int, tokens: int) -> float:
        """Predicted time for so many batches of so many padded tokens in all."""
        return batches * self.fixed + tokens * self.per_token

    def _add(self, weight: float, tokens: int, seconds: float) -> None:
        self._n += weight
        self._x += weight * tokens
        self._y += weight * seconds
        self._xx += weight * tokens * tokens
        self._xy += weight * tokens * seconds

    def _fit(self) -> None:
        spread = self._n * self._xx - self._x * self._x
        mean = self._y / self._n
        if spread > 1e-9 * max(1.0, self._xx):
            slope = (self._n * self._xy - self._x * self._y) / spread
            # Neither part of a cost is below nothing, whatever the noise says.
            self.per_token = min(max(slope, 0.0), self._y / self._x)
            self.fixed = max(mean - self.per_token * self._x / self._n, 0.0)
        else:
            # One size only: keep the shape of the curve, move its height.
            scale = mean / max(self.seconds(1, round(self._x / self._n)), 1e-9)
            self.fixed *= scale
            self.per_token *= scale
