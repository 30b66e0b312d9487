"""How much memory the loaded versions of a process may take together. Knows no model."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Budget:
    """Bytes by who holds them."""

    limit_bytes: int = 0
    """0: no limit."""
    _held: dict[Hashable, int] = field(default_factory=dict)

    @property
    def held_bytes(self) -> int:
        """By all together."""
        return sum(self._held.values())

    def take(self, holder: Hashable, size: int) -> bool:
        """Hold so many bytes; False where they do not fit beside the others'."""
        others = self.held_bytes - self._held.get(holder, 0)
        if self.limit_bytes and others + size > self.limit_bytes:
            return False
        self._held[holder] = size
        return True

    def give_back(self, holder: Hashable) -> bool:
        """Hold nothing any more; False where it held nothing."""
        return self._held.pop(holder, None) is not None
