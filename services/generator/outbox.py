"""What has been generated and not been sent: joined while the reader is behind, and bounded."""

import asyncio
from dataclasses import dataclass

from services.runtime.errors import SlowConsumer


@dataclass(slots=True)
class Delta:
    """More text of one choice."""

    index: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()


class Outbox:
    """The deltas of one stream, from tasks that write to the one that reads."""

    def __init__(self, writers: int, most_tokens: int) -> None:
        self._left = writers
        self._most_tokens = most_tokens
        self._deltas: dict[int, Delta] = {}
        self._tokens = 0
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    def put(self, delta: Delta) -> None:
        """More of one choice; SlowConsumer ends it where the reader is too far behind."""
        if self._error is not None:
            return  # the stream is over; a writer may not have heard of it yet
        waiting = self._deltas.get(delta.index)
        if waiting is None:
            self._deltas[delta.index] = delta
        else:
            waiting.text += delta.text
            waiting.ids += delta.ids
            waiting.logprobs += delta.logprobs
            waiting.top += delta.top
        self._tokens += len(delta.ids)
        if self._tokens > self._most_tokens:
            raise SlowConsumer(f"{self._tokens} tokens were generated and not read")
        self._changed.set()

    def end(self, error: BaseException | None = None) -> None:
        """One writer has ended; an error ends the stream."""
        self._left -= 1
        self._error = self._error or error
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """End the stream, whatever its writers do."""
        self._error = self._error or error
        self._changed.set()

    async def take(self) -> list[Delta]:
        """What has come since the last time, in the order of its choices; empty at the end."""
        while not self._deltas and self._left and self._error is None:
            self._changed.clear()
            await self._changed.wait()
        if not self._deltas and self._error is not None:
            raise self._error
        found = [self._deltas[index] for index in sorted(self._deltas)]
        self._deltas.clear()
        self._tokens = 0
        return found
