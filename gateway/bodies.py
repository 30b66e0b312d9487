"""Request bodies: how large, how many at once, of which kind. Knows nothing of what is in them."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import Message, Receive, Scope

from gateway.errors import ClientGoneError, RefusalError
from services.runtime.errors import MessageTooLarge, Overloaded

ENCODINGS = ("gzip", "deflate")
PIECE_BYTES = 256 * 1024
"""What is inflated at a time."""
MOST_RATIO, ANY_RATIO_BYTES = 100, 2**20
"""What a body may inflate to, in times of itself, once it is larger than so much."""


class BodyBudget:
    """Bytes of request bodies that may be held at once, over all requests."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """Hold `size` more bytes, or refuse with Overloaded."""
        if self.held_bytes + size > self._limit_bytes:
            raise Overloaded("too many request bodies are held at once", retry_after_s=1.0)
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        """Let go of `size` bytes."""
        self.held_bytes -= size


class BoundedReceive:
    """Stands in for an ASGI `receive` and counts what comes through it, chunked bodies too.

    A body in gzip or deflate comes out inflated, and what it inflates to is counted as it grows.
    """

    def __init__(
        self, receive: Receive, scope: Scope, headers: Mapping[str, str], bounds: "BodyBounds"
    ) -> None:
        self._receive = receive
        self._scope = scope
        self._limit_bytes = bounds.max_body_bytes
        self._budget = bounds.budget
        self._taken = 0
        self._held = 0
        self._inflated_bytes = 0
        self._pending = self._more = False
        declared = headers.get("content-length", "")
        self.refused = declared.isdigit() and int(declared[:19]) > self._limit_bytes
        # 32 takes either header, that of gzip and that of zlib.
        encoded = headers.get("content-encoding", "identity").strip().lower() in ENCODINGS
        self._inflater = zlib.decompressobj(32 + zlib.MAX_WBITS) if encoded else None

    def check(self) -> None:
        """Refuse at once what says of itself that it is too large."""
        if self.refused:
            raise self._too_large()

    async def __call__(self) -> Message:
        """The next message, unless the body has grown past its limit."""
        if self._pending and self._inflater is not None:
            return self._inflated(self._inflater, self._inflater.unconsumed_tail)
        message = await self._receive()
        if self._scope.get("gristmill.too_many_chunks"):
            raise MessageTooLarge("the body comes in too many chunks")
        body: bytes = message.get("body", b"")
        if body:
            self._take(len(body))
        if self._inflater is not None and message["type"] == "http.request":
            self._more = message.get("more_body", False)
            return self._inflated(self._inflater, body)
        return message

    def _take(self, size: int) -> None:
        self._taken += size
        if self._taken > self._limit_bytes:
            raise self._too_large()
        self._budget.take(size)
        self._held += size

    def _inflated(self, inflater: "zlib._Decompress", body: bytes) -> Message:
        """A piece of what a part of the body inflates to; the rest of it is the next message."""
        try:
            found = inflater.decompress(body, PIECE_BYTES)
        except zlib.error:
            raise self._not_encoded() from None
        self._inflated_bytes += len(found)
        sent = self._taken + len(found) - self._inflated_bytes
        if self._inflated_bytes > max(ANY_RATIO_BYTES, MOST_RATIO * sent):
            raise MessageTooLarge(f"the body inflates to more than {MOST_RATIO} times itself")
        self._take(len(found))
        self._pending = bool(inflater.unconsumed_tail) or len(found) == PIECE_BYTES
        more = self._more or self._pending
        if inflater.unused_data or not (more or inflater.eof or not self._taken):
            raise self._not_encoded()
        return {"type": "http.request", "body": found, "more_body": more}

    @staticmethod
    def _not_encoded() -> RefusalError:
        return RefusalError(400, "the body is not what its Content-Encoding says")

    def release(self) -> None:
        """The request is over: its bytes are held no more."""
        self._budget.give_back(self._held)
        self._held = 0

    def _too_large(self) -> MessageTooLarge:
        return MessageTooLarge(f"the body is larger than {self._limit_bytes} bytes")


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """How large bodies may be: one of them, and all together."""

    max_body_bytes: int
    budget: BodyBudget


async def read_body(receive: Receive) -> bytes:
    """The whole body."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return bytes(body)


async def read_json_body(headers: Mapping[str, str], receive: Receive) -> bytes:
    """The whole body; refused unless it is JSON by its own account, or says nothing."""
    body = await read_body(receive)
    kind = headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if body and kind != "application/json" and not kind.endswith("+json"):
        raise RefusalError(415, "send the body as `Content-Type: application/json`")
    return body
