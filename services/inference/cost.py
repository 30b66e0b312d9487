"""What a batch costs on this device: `fixed + per_token x padded tokens`, learned as it runs."""

from dataclasses import dataclass

# Each batch counts this much less with every later one: about the last 100 batches decide.
FORGET = 0.99
# Before this many batches nothing is refused for what the model predicts.
LEARNED_AFTER = 8


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

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from one batch."""
        self.seen += 1
        self._n = self._n * FORGET + 1
        self._x = self._x * FORGET + tokens
        self._y = self._y * FORGET + seconds
        self._xx = self._xx * FORGET + tokens * tokens
        self._xy = self._xy * FORGET + tokens * seconds
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

    def seconds(self, batches: int, tokens: int) -> float:
        """Predicted time for so many batches of so many padded tokens in all."""
        return batches * self.fixed + tokens * self.per_token
