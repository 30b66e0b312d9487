"""Request bodies: how large, how many at once, of which kind. Knows nothing of what is in them."""

from collections.abc import Mapping

from starlette.types import Message, Receive

from gateway.errors import ClientGoneError, RefusalError
from services.runtime.errors import MessageTooLarge, Overloaded


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
    """Stands in for an ASGI `receive` and counts what comes through it, chunked bodies too."""

    def __init__(
        self, receive: Receive, headers: Mapping[str, str], limit_bytes: int, budget: BodyBudget
    ) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._budget = budget
        self._taken = 0
        declared = headers.get("content-length", "")
        self.refused = declared.isdigit() and int(declared[:19]) > limit_bytes

    def check(self) -> None:
        """Refuse at once what says of itself that it is too large."""
        if self.refused:
            raise self._too_large()

    async def __call__(self) -> Message:
        """The next message, unless the body has grown past its limit."""
        message = await self._receive()
        size = len(message.get("body", b""))
        if size:
            if self._taken + size > self._limit_bytes:
                raise self._too_large()
            self._budget.take(size)
            self._taken += size
        return message

    def release(self) -> None:
        """The request is over: its bytes are held no more."""
        self._budget.give_back(self._taken)
        self._taken = 0

    def _too_large(self) -> MessageTooLarge:
        return MessageTooLarge(f"the body is larger than {self._limit_bytes} bytes")


async def read_json_body(headers: Mapping[str, str], receive: Receive) -> bytes:
    """The whole body; refused unless it is JSON by its own account, or says nothing."""
    body = bytearray()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        more = message.get("more_body", False)
    kind = headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if body and kind != "application/json" and not kind.endswith("+json"):
        raise RefusalError(415, "send the body as `Content-Type: application/json`")
    return bytes(body)
