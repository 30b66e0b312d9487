"""How a stream of messages is written over HTTP: Server-Sent Events, or one JSON value a line.

Knows frames and silence; not what is in a message, nor where messages come from.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

T = TypeVar("T")
NDJSON_TYPES = ("application/x-ndjson", "application/ndjson", "application/jsonl")


class CallCancelledError(Exception):
    """The reading side was cancelled, though not this task."""


class Framing(Protocol):
    """How one kind of stream writes what it carries."""

    media_type: str

    def message(self, json: bytes) -> bytes:
        """A message."""

    def error(self, json: bytes) -> bytes:
        """The error that ends the stream."""

    def silence(self) -> bytes:
        """Something that keeps the connection open and means nothing; b"" where there is none."""


class ServerSentEvents:
    """`data:` lines, a last `event: error`, and comments while nothing happens."""

    media_type = "text/event-stream"

    def message(self, json: bytes) -> bytes:
        """An unnamed event."""
        return b"data: " + json + b"\n\n"

    def error(self, json: bytes) -> bytes:
        """An event named error."""
        return b"event: error\ndata: " + json + b"\n\n"

    def silence(self) -> bytes:
        """A comment."""
        return b": ping\n\n"


class JsonLines:
    """One JSON object a line; an object whose only key is `error` ends a failed stream."""

    media_type = "application/x-ndjson"

    def message(self, json: bytes) -> bytes:
        """A line."""
        return json + b"\n"

    def error(self, json: bytes) -> bytes:
        """The last line."""
        return json + b"\n"

    def silence(self) -> bytes:
        """Nothing: readers of lines know no comment."""
        return b""


def framing_for(accept: str) -> Framing:
    """What the caller asks for; Server-Sent Events unless it names lines and not events."""
    asked = [part.split(";")[0].strip().lower() for part in accept.split(",")]
    if "text/event-stream" not in asked and any(kind in asked for kind in NDJSON_TYPES):
        return JsonLines()
    return ServerSentEvents()


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing came for the interval."""


SILENCE: Final = Silence()


async def paced(
    read: Callable[[], Awaitable[T]], end: object, interval_s: float
) -> AsyncGenerator[T | Silence, None]:
    """What `read` gives until `end`, with SILENCE wherever nothing comes for the interval."""
    pending: asyncio.Future[T] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(read())
            done, _ = await asyncio.wait({pending}, timeout=interval_s)
            if not done:
                yield SILENCE
                continue
            if pending.cancelled():
                raise CallCancelledError
            item = pending.result()
            pending = None
            if item is end:
                return
            yield item
    finally:
        # Cancelled, or done with a result that nobody wants any more: either way it is looked at.
        if pending is not None and not pending.cancel() and not pending.cancelled():
            pending.exception()
