"""What of many items is to be sent, is under way or must be sent again; waits for nothing."""

from __future__ import annotations

from collections.abc import Iterable

from gristmill_client._classify_messages import is_one
from gristmill_client._steps import Patience
from gristmill_client.errors import GristmillError
from gristmill_client.prediction import Item

# Enough to keep the server busy while results travel, and little to send again after a cut.
_WINDOW = 256
# As for unary calls: four tries in all without a result between.
_RETRIES = 3


class Backlog:
    """Numbers the items from 0 and remembers those that have no result yet."""

    def __init__(self, items: object, batch: int) -> None:
        if is_one(items):
            raise TypeError(f"many items, not one {type(items).__name__}")
        if not 1 <= batch <= 1024:
            raise ValueError(f"a batch has 1 to 1,024 items, not {batch:,}")
        self._batch = batch
        self._unanswered: dict[str, Item] = {}
        self._again: dict[str, Item] = {}
        self._number = 0
        self._patience = Patience(_RETRIES)

    @property
    def wanted(self) -> int:
        """How many new items there is room for."""
        return self._batch if not self._again and len(self._unanswered) < _WINDOW else 0

    def message(self, new: Iterable[Item]) -> dict[str, Item]:
        """What to send next, by id: what must be sent again, else the new. Empty: read first."""
        if self._again:
            found = {name: self._again[name] for name in list(self._again)[: self._batch]}
            self._again = {n: i for n, i in self._again.items() if n not in found}
        else:
            found = {str(number): item for number, item in enumerate(new, self._number)}
            self._number += len(found)
        self._unanswered |= found
        return found

    @property
    def idle(self) -> bool:
        return not self._unanswered and not self._again

    def answered(self, id: str) -> int:  # noqa: A002  # the contract's name
        """The index of the item."""
        del self._unanswered[id]
        self._patience.progressed()
        return int(id)

    def cut(self, error: GristmillError) -> float:
        """Seconds until another stream may go on. Raises the error where none can."""
        pause = self._patience.pause(error)
        self._again = self._unanswered | self._again
        self._unanswered = {}
        return pause
