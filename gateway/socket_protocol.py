"""uvicorn's WebSocket protocol with bounds on what is read and not yet a message.

Knows frames, bytes and time only.
"""

import asyncio
from typing import Any

from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from gateway.bodies import BodyBudget
from gateway.protocol import LINGER_S
from gateway.slices import Slices
from gateway.sockets import REFUSED
from services.runtime.errors import Overloaded

MAX_FRAMES = 65_536
"""Frames of a message: each costs, however small it is."""
SLICE_BYTES = 4 * 1024
"""What is parsed at a time: a tenth of it in frames would be some hundred messages."""
TOO_BIG = 1009


class BoundedSocket(WebSocketsSansIOProtocol):
    """Cuts a WebSocket whose message comes in too many frames, and tells when its client is gone.

    While the application takes no message nothing is read, so that it would not learn of it. What
    has come of a message is held against the bytes of all bodies.
    """

    budget: BodyBudget
    _held_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.gone = asyncio.Event()
        super().connection_made(transport)
        self._slices = Slices(self.transport, SLICE_BYTES, self._parse, lambda: self.read_paused)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell, and let go of what came."""
        self.gone.set()
        self._slices.close()
        super().connection_lost(exc)
        self._drop()
        # The parser holds this, and the last frame that it saw.
        self.conn.parser.close()

    def handle_connect(self, event: Request) -> None:
        """The handshake: the application gets to know of the end with it."""
        super().handle_connect(event)
        if not self.handshake_complete:
            self.scope["gristmill.gone"] = self.gone  # type: ignore[typeddict-unknown-key]  # ours

    def data_received(self, data: bytes) -> None:
        """Parse, a part at a time."""
        self._slices.push(data)

    def _parse(self, data: bytes) -> None:
        if self.handshake_complete:
            try:
                self.budget.take(len(data))
            except Overloaded as error:
                # For the application to say, as it does all else.
                refused: Any = {"type": "websocket.receive", REFUSED: error}
                self.queue.put_nowait(refused)
                self.read_paused = True
                self.transport.pause_reading()
                self._drop()
                return
            self._held_bytes += len(data)
        super().data_received(data)
        if not (self.frames or self.conn.reader.buffer):
            self._let_go()

    def send_receive_event_to_app(self) -> None:
        """A message is whole: from now on the application holds it."""
        self._let_go()
        super().send_receive_event_to_app()

    async def receive(self) -> ASGIReceiveEvent:
        """The next message; what was read behind it comes first, then more."""
        message = await super().receive()
        if not (self.read_paused or self.disconnected):
            self._slices.resume()
        return message

    def _drop(self) -> None:
        """Forget what has come of a message."""
        self._let_go()
        self.frames = []
        self.conn.reader.discard()
        self.conn.events.clear()

    def _let_go(self) -> None:
        self.budget.give_back(self._held_bytes)
        self._held_bytes = 0

    def handle_cont(self, event: Frame) -> None:
        """One more frame of a message."""
        if len(self.frames) >= MAX_FRAMES:
            self._fail(TOO_BIG, "too many frames")
            return
        super().handle_cont(event)

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def handle_parser_exception(self) -> None:
        """What came is no WebSocket's."""
        if self.handshake_initiated:
            super().handle_parser_exception()
        else:
            self.transport.abort()

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


def bounded(budget: BodyBudget) -> type[BoundedSocket]:
    """The protocol of a server whose bodies have this budget."""
    return type("BudgetedSocket", (BoundedSocket,), {"budget": budget})
