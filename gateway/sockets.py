"""A client's stream as a WebSocket: each text message is one message of the contract, as JSON.

An empty text says that the client has no more to send, as WebSockets have no other way to say it;
closing the socket gives up. The end is a close: 1000 where all went well; else a last message
`{"error": ...}` as every error is, and 4000 plus its HTTP status (1012 for a drain). What fails
before the handshake is an HTTP status.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable
from contextlib import suppress

import grpc
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.types import Message as Received
from starlette.types import Receive, Scope, Send

from gateway import jsontree, plain, shape, wire
from gateway.bodies import BodyBudget
from gateway.calls import noted
from gateway.errors import Answer, ClientGoneError
from gateway.opencall import OpenCall
from services.runtime.errors import DRAINING, DeadlineExpired, Draining, InvalidRequest

PROTOCOL = "gristmill.v1"
BEARER = "gristmill.bearer."
"""Before the token, in base64url without padding: scripts in a browser can set no header."""
MAX_REASON_BYTES = 120
REFUSED = "gristmill.refused"
"""In place of a message: why it was not taken."""
REFUSE_S = 2.0
"""Time to say why it ends."""


def offered(headers: Headers) -> tuple[str | None, dict[str, str]]:
    """The protocol to take, and the headers with the token that stands among the protocols."""
    lines = ",".join(headers.getlist("sec-websocket-protocol"))
    asked = [one.strip() for one in lines.split(",")]
    found = dict(headers)
    for one in asked:
        if one.startswith(BEARER) and "authorization" not in found:
            found["authorization"] = f"Bearer {_token(one.removeprefix(BEARER))}"
    return PROTOCOL if PROTOCOL in asked else None, found


def _token(encoded: str) -> str:
    try:
        return base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        return ""


class Socket:
    """One accepted WebSocket and the call behind it."""

    def __init__(
        self,
        call: OpenCall,
        request: Callable[[], Message],
        scope: Scope,
        receive: Receive,
        send: Send,
        max_json_depth: int,
        timeout_s: float,
    ) -> None:
        self._timeout_s = timeout_s
        self._call = call
        self._request = request
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_json_depth = max_json_depth
        self._budget: BodyBudget = scope["gristmill.bodies"]
        self._writing = asyncio.Lock()
        self._ended = False
        self._draining: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """Carry messages both ways until either side ends."""
        gone: asyncio.Event = self._scope["gristmill.gone"]
        tasks = [asyncio.create_task(self._read_all()), asyncio.create_task(self._watch(gone))]
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._write_all()
        except TimeoutError:
            await self._refuse(self._failed(DeadlineExpired("the deadline passed")))
        except (ClientGoneError, OSError):
            self._failed(ClientGoneError())
        except Exception as error:
            await self._refuse(self._failed(error))
        finally:
            for task in tasks:
                task.cancel()

    async def _write_all(self) -> None:
        while (message := await self._call.read()) is not grpc.aio.EOF:
            text = (await wire.encoded(message)).decode()
            await self._send({"type": "websocket.send", "text": text})
        await self._finish()

    async def _watch(self, gone: asyncio.Event) -> None:
        await gone.wait()
        self._call.cancel(ClientGoneError())

    async def _finish(self) -> None:
        if self._draining is None:
            await self._close(1000, "")
            return
        said = "this gateway is shutting down; all that was sent is answered"
        await self._refuse(self._failed(Draining(said)))

    def drain(self) -> None:
        """Take no more messages, so that the stream ends with the answers to those it has."""
        if self._draining is None:
            self._draining = asyncio.create_task(self._end())

    async def _read_all(self) -> None:
        try:
            while (message := await self._receive())["type"] == "websocket.receive":
                await self._take(message)
            self._call.cancel(ClientGoneError())
        except Exception as error:
            self._call.cancel(error)

    async def _take(self, received: Received) -> None:
        if REFUSED in received:
            raise received[REFUSED]
        text = received.get("text")
        if text is None:
            raise InvalidRequest("send text messages, not binary ones")
        if not text:
            await self._end()
            return
        body = text.encode()
        self._budget.take(len(body))
        try:
            message = await wire.aside(len(body), lambda: self._parsed(body))
            async with self._writing:
                if self._draining is not None:
                    return
                if self._ended:
                    raise InvalidRequest("an empty message has ended this stream before")
                await self._call.write(message)
        finally:
            self._budget.give_back(len(body))

    def _parsed(self, body: bytes) -> Message:
        message = self._request()
        tree = jsontree.parse(body, self._max_json_depth)
        if not plain.read(message, tree):
            shape.fill(message, tree)
        return message

    async def _end(self) -> None:
        async with self._writing:
            if not self._ended:
                self._ended = True
                await self._call.done_writing()

    def _failed(self, error: Exception) -> Answer:
        return noted(error, self._scope, self._call)

    async def _refuse(self, found: Answer) -> None:
        code = 1012 if found.reason == DRAINING else 4000 + found.http
        # One who reads nothing does not read why it ends either.
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(REFUSE_S):
                await self._send({"type": "websocket.send", "text": found.encoded().decode()})
                await self._close(code, found.reason)

    async def _close(self, code: int, reason: str) -> None:
        said = reason[:MAX_REASON_BYTES]
        await self._send({"type": "websocket.close", "code": code, "reason": said})
