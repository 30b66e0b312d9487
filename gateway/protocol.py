"""uvicorn's HTTP/1.1 protocol with the bounds that httptools does not have.

Knows bytes and time only: what is in the head is judged later, by the edge.
"""

import asyncio
import base64
import binascii
import secrets
from collections.abc import Callable

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.errors import RefusalError, answer
from gateway.guard import MAX_HEADER_BYTES, SECURITY_HEADERS
from gateway.slices import Slices

HEAD_TIMEOUT_S = 15.0
MAX_PARTS = 65_536
"""Chunks of a body: each costs, however small it is."""
SLICE_BYTES = 4 * 1024
"""What is parsed at a time."""
LINGER_S = 5.0
"""Time for what is still sent after a refusal, before the connection is cut."""
MAX_HANDSHAKE_LINES, MAX_HANDSHAKE_LINE_BYTES = 100, 8_000
"""Of the head that opens a WebSocket, as far as websockets goes."""


class _Flow(FlowControl):
    """uvicorn's, which tells when more may be read."""

    def __init__(self, transport: asyncio.Transport, resume: Callable[[], None]) -> None:
        super().__init__(transport)
        self._resume = resume

    def resume_reading(self) -> None:
        """More may be read."""
        if self.read_paused:
            self.read_paused = False
            self._resume()


class BoundedProtocol(HttpToolsProtocol):
    """Cuts a connection whose head grows too large, or takes too long to come."""

    _head_bytes = 0
    _quiet_bytes = 0
    """Read since the last of a body: chunks' extensions, and what follows the last of them."""
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _linger_timer: asyncio.TimerHandle | None = None
    _chunks = 0
    _message_ended = True
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._slices = Slices(
            transport,
            SLICE_BYTES,
            self._parse,
            lambda: bool(self.flow.read_paused or self.pipeline),
        )
        self.flow = _Flow(transport, self._slices.resume)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self._slices.close()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_bytes = 0
        self._chunks = 0
        self._in_head = True
        self._message_ended = False
        self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One line of the head. What follows a body may say nothing of a request."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is here."""
        self._in_head = False
        self._stop_waiting()
        if self.parser.should_upgrade() and self._should_upgrade() and self._refused_handshake():
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._quiet_bytes = 0
        super().on_body(body)

    def on_chunk_header(self) -> None:
        """A chunk of the body begins; the edge refuses what has too many of them."""
        self._quiet_bytes = 0
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
        if self._slices.waiting and not self.pipeline:
            # Those that came in a row are begun; those behind them may be looked at.
            self._slices.resume()
        # Another request may have begun before this answer: that one was not refused.
        refused = not (self._message_ended or self._in_head) and self.cycle.response_complete
        if refused and not self.transport.is_closing():
            self._linger_timer = self.loop.call_later(LINGER_S, self._give_up)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, in the one shape of errors."""
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str = "") -> None:
        found = answer(RefusalError(status, message), secrets.token_hex(6))
        body = found.encoded()
        fields = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
            "cache-control": "no-store",
            "x-request-id": str(found.body["error"]["requestId"]),
            **SECURITY_HEADERS,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.transport.write(f"HTTP/1.1 {status} Refused\r\n{head}\r\n".encode() + body)
        # To close while more comes would take the answer away from who has not read it yet.
        self._refused = True
        if self._in_head:
            self.headers.clear()
        self._stop_waiting()
        self._slices.take()
        self.transport.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Parse, a part at a time."""
        if not self._refused:
            self._slices.push(data)

    def eof_received(self) -> None:
        """Nothing more comes."""
        if self._refused:
            self.transport.close()

    def _parse(self, data: bytes) -> None:
        """Parse, and look at how much has come without an end."""
        if self._refused:
            return
        self._quiet_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing() or self._refused:
            return
        now = self.transport.get_protocol()
        if now is not self:
            # It is a WebSocket by now, and what follows is for that.
            if left := self._slices.take():
                now.data_received(left)  # type: ignore[attr-defined]  # it is one of ours
        elif self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES:
                self._refuse(431)
        elif not self._message_ended and self._quiet_bytes > MAX_HEADER_BYTES:
            self._refuse(431)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, unless its handshake was refused."""
        if not (self.transport.is_closing() or self._refused):
            super().handle_websocket_upgrade()

    def _refused_handshake(self) -> bool:
        """Whether the head opens no WebSocket, and was answered so: nobody else would answer it."""
        lines = [len(name) + len(value) for name, value in self.headers]
        if len(lines) > MAX_HANDSHAKE_LINES or max(lines, default=0) > MAX_HANDSHAKE_LINE_BYTES:
            self._refuse(431)
            return True
        fault = self._handshake_fault()
        if fault:
            self._refuse(400, fault)
        return bool(fault)

    def _handshake_fault(self) -> str:
        given: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            given.setdefault(name, []).append(value.strip())
        if self.parser.get_method() != b"GET":
            return "a WebSocket is opened with GET"
        if b"transfer-encoding" in given or given.get(b"content-length", [b"0"]) != [b"0"]:
            return "a WebSocket is opened without a body"
        if given.get(b"sec-websocket-version") != [b"13"]:
            return "the version of WebSockets is 13"
        if len(given.get(b"origin", ())) > 1:
            return "send one Origin header"
        return "" if _is_key(given.get(b"sec-websocket-key", [])) else "send one Sec-WebSocket-Key"

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


def _is_key(keys: list[bytes]) -> bool:
    try:
        return len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except binascii.Error:
        return False
