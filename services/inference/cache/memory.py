"""Answers within this process: the least recently used give way. Knows no model and no loop."""

from collections import OrderedDict
from collections.abc import Sequence

from services.inference.cache.keys import Key
from services.inference.cache.values import Value

# A key of 32 bytes as an object, its place in the table, and the link between neighbours.
ENTRY_BYTES = 260


class Memory:
    """A cache whose entries together take at most so many bytes."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.bytes = 0
        """What the entries take up, keys and table included."""
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def lookup(self, keys: Sequence[Key | None]) -> list[Value | None]:
        """The value of each key that is here; it counts as used now."""
        found: list[Value | None] = []
        for key in keys:
            value = None if key is None else self._values.get(key)
            if value is not None and key is not None:
                self._values.move_to_end(key)
            found.append(value)
        return found

    def store(self, key: Key, value: Value) -> None:
        """Keep a value, at the cost of others; one that never fits costs nobody."""
        size = ENTRY_BYTES + value.nbytes
        old = self._values.pop(key, None)
        if old is not None:
            self.bytes -= ENTRY_BYTES + old.nbytes
        if size > self.most_bytes:
            return
        self._values[key] = value
        self.bytes += size
        while self.bytes > self.most_bytes:
            _, gone = self._values.popitem(last=False)
            self.bytes -= ENTRY_BYTES + gone.nbytes
