"""Bytes of a file, bounded by its length and by what a header may take. Knows no format."""

import struct
from typing import BinaryIO

from services.registry.checks.findings import RefusedError

WINDOW = 1 << 16


class Reader:
    """Reads forwards; refuses to pass the limit, and to hold more than it was asked for."""

    def __init__(self, stream: BinaryIO, size: int, limit: int) -> None:
        self._stream = stream
        self.size = size
        self._limit = min(size, limit)
        self._ends_early = limit >= size
        self.position = 0

    def exactly(self, count: int) -> bytes:
        """The next bytes."""
        self._claim(count)
        return self._stream.read(count)

    def skip(self, count: int) -> None:
        """Pass over the next bytes."""
        self._claim(count)
        self._stream.seek(count, 1)

    def unpack(self, layout: struct.Struct) -> tuple[int | float | bool, ...]:
        """The next numbers."""
        return layout.unpack(self.exactly(layout.size))

    def _claim(self, count: int) -> None:
        if count > self._limit - self.position:
            said = (
                "the file ends inside its header" if self._ends_early else "its header is too long"
            )
            raise RefusedError("header", said)
        self.position += count


class Bytes:
    """Reads anywhere in a file, through a window."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self.size = size
        self._window, self._start = b"", 0

    def byte(self, offset: int) -> int:
        """The byte that is here; 255 behind the end, which no number ends with."""
        begin = offset - self._start
        if 0 <= begin < len(self._window):
            return self._window[begin]
        return (self.at(offset, 1) or b"\xff")[0]

    def at(self, offset: int, count: int) -> bytes:
        """Up to so many bytes from here; fewer at the end of the file."""
        begin = offset - self._start
        if begin < 0 or begin + count > len(self._window):
            self._stream.seek(offset)
            self._window, self._start = self._stream.read(max(count, WINDOW)), offset
            begin = 0
        return self._window[begin : begin + count]
