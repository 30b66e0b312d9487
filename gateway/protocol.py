"""uvicorn's HTTP/1.1 protocol with bounds on a request's head, which httptools does not have.

Knows bytes and time only: what is in the head is judged later, by the edge.
"""

import asyncio
import secrets

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from gateway.errors import RefusalError, answer
from gateway.guard import MAX_HEADER_BYTES

HEAD_TIMEOUT_S = 15.0
MAX_PARTS = 65_536
"""Chunks of a body, frames of a WebSocket's message: each costs, however small it is."""
LINGER_S = 5.0
"""Time for what is still sent after a refusal, before the connection is cut."""


class BoundedProtocol(HttpToolsProtocol):
    """Cuts a connection whose head grows too large, or takes too long to come."""

    _head_bytes = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None
    _chunks = 0
    _message_ended = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._chunks = 0
        self._in_head = True
        self._message_ended = False
        self._await_head()

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        """A chunk of the body begins; the edge refuses what has too many of them."""
        self._chunks += 1
        # The end of a body is an empty chunk.
        if self._chunks > MAX_PARTS + 1:
            self.scope["gristmill.too_many_chunks"] = True  # type: ignore[typeddict-unknown-key]  # ours
            self.cycle.message_event.set()

    def on_message_complete(self) -> None:
        """The request is here whole."""
        self._message_ended = True
        if self._linger_timer is not None:
            self._linger_timer.cancel()
            self._linger_timer = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Answered: what still comes of a request that is refused comes for a short time only."""
        super().on_response_complete()
        # Another request may have begun before this answer: that one was not refused.
        refused = not (self._message_ended or self._in_head) and self.cycle.response_complete
        if refused and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(LINGER_S, self._give_up)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, or no end of a head, in the one shape of errors."""
        found = answer(RefusalError(400, msg), secrets.token_hex(6))
        body = found.encoded()
        fields = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
            "x-request-id": str(found.body["error"]["requestId"]),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(f"HTTP/1.1 400 Bad Request\r\n{head}\r\n".encode() + body)
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        """Parse, and look at how much head has come without an end."""
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEADER_BYTES:
            self.send_400_response("The head of the request is too large.")

    def _await_head(self) -> None:
        self._stop_waiting()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class BoundedSocket(WebSocketsSansIOProtocol):
    """Cuts a WebSocket whose message comes in too many frames, and tells when its client is gone.

    While the application takes no message nothing is read, so that it would not learn of it.
    """

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.gone = asyncio.Event()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell."""
        self.gone.set()
        super().connection_lost(exc)

    def handle_connect(self, event: Request) -> None:
        """The handshake: the application gets to know of the end with it."""
        super().handle_connect(event)
        if not self.handshake_complete:
            self.scope["gristmill.gone"] = self.gone  # type: ignore[typeddict-unknown-key]  # ours

    def keepalive_timeout(self) -> None:
        """No pong has come: where nothing was read it may lie behind what was not."""
        if not self.read_paused:
            super().keepalive_timeout()
            return
        self.pong_timer = None
        self.pending_ping_payload = None
        self.schedule_ping()

    async def send(self, message: ASGISendEvent) -> None:
        """Send; an answer instead of a handshake is a handshake done, too."""
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            self.handshake_complete = True

    def on_task_complete(self, task: "asyncio.Task[None]") -> None:
        """The application is done: what its client does not read is not kept for ever."""
        super().on_task_complete(task)
        self.loop.call_later(LINGER_S + self.close_timeout, self.transport.abort)

    def handle_cont(self, event: Frame) -> None:
        """One more frame of a message."""
        if len(self.frames) >= MAX_PARTS:
            self.conn.fail(1009, "too many frames")
            self.handle_parser_exception()
            return
        super().handle_cont(event)
