"""What came in one read, given on in small parts: whoever sends many tiny things gets no more of
the process than others do. Knows no protocol.
"""

import asyncio
from collections.abc import Callable


def _nothing(data: bytes) -> None:
    """Parse nothing."""


def _always() -> bool:
    return True


class Slices:
    """Between a transport and what parses it. `held` says that the parser wants no more now."""

    def __init__(
        self,
        transport: asyncio.Transport,
        size: int,
        parse: Callable[[bytes], None],
        held: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._size = size
        self._parse = parse
        self._held = held
        self._left = bytearray()
        self._due = False

    def push(self, data: bytes) -> None:
        """Take what was read; a little is parsed at once."""
        if not self._left and len(data) <= self._size:
            self._parse(data)
            return
        self._left += data
        self._transport.pause_reading()
        self._soon()

    def resume(self) -> None:
        """Go on: with what is left, or with what there is to read."""
        if self._left:
            self._transport.pause_reading()
            self._soon()
        else:
            self._transport.resume_reading()

    @property
    def waiting(self) -> bool:
        """Whether something is left."""
        return bool(self._left)

    def take(self) -> bytes:
        """What is left, for somebody else."""
        left = bytes(self._left)
        self._left.clear()
        return left

    def close(self) -> None:
        """Let go of the parser: it has this, and each would keep the other."""
        self._left.clear()
        self._parse, self._held = _nothing, _always

    def _soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        if self._transport.is_closing() or not self._left:
            self._left.clear()
            return
        if self._held():
            return
        part = bytes(self._left[: self._size])
        del self._left[: self._size]
        self._parse(part)
        if self._left:
            self._soon()
        elif not (self._transport.is_closing() or self._held()):
            self._transport.resume_reading()
