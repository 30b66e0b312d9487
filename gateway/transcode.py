"""The generic transcoder: every annotated method as an HTTP route. Knows no service by name.

unary              JSON in, JSON out
server-streaming   Server-Sent Events, or one JSON object a line where Accept asks for it;
                   an error before the first message is a plain HTTP status
client-streaming   a WebSocket; asked for without one, 426
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message
from starlette.datastructures import Headers
from starlette.routing import BaseRoute
from starlette.routing import Match as Found
from starlette.types import Receive, Scope, Send

from gateway import binding, caller, sockets, wire
from gateway.bodies import read_json_body
from gateway.caller import Callers
from gateway.calls import Calls, noted
from gateway.contract import Method
from gateway.errors import RefusalError
from gateway.opencall import OpenCall
from gateway.replies import reply, reply_cacheable, reply_stream
from gateway.routing import Match, Route, RouteTable
from gateway.streams import framing_for, paced
from services.runtime.errors import DeadlineExpired

# The call's own deadline comes first and has the better answer; this ends a stuck read or write.
BACKSTOP_S = 2.0


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings of a transcoder."""

    default_timeout_s: float
    default_stream_timeout_s: float
    max_json_depth: int
    ping_interval_s: float

    def timeout_of(self, method: Method) -> float:
        """The deadline of a call that brings none."""
        streams = method.server_streaming
        return self.default_stream_timeout_s if streams else self.default_timeout_s


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request on its way through."""

    route: Route[Method]
    variables: Mapping[str, str]
    headers: Headers
    scope: Scope
    receive: Receive
    send: Send


class Transcoder(BaseRoute):
    """One Starlette route for the whole table, matched on the path as the server decoded it."""

    def __init__(
        self,
        table: RouteTable[Method],
        calls: Calls,
        callers: Callers,
        limits: Limits,
    ) -> None:
        self.table = table
        self._calls = calls
        self._callers = callers
        self._limits = limits

    def matches(self, scope: Scope) -> tuple[Found, Scope]:
        """Whether the table has this request's path and method."""
        match = self.table.match(scope.get("method", "GET"), scope["path"])
        # No other route takes a WebSocket: where there is none, it is refused here.
        if match is None and scope["type"] != "websocket":
            return Found.NONE, {}
        return Found.FULL, {"gristmill.match": match}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a matched request, until its deadline."""
        match: Match[Method] | None = scope["gristmill.match"]
        if match is None:
            raise RefusalError(404)
        if match.route is None:
            raise RefusalError(405, headers={"allow": ", ".join(match.allowed)})
        method = match.route.target
        scope["gristmill.route"] = str(match.route.template)
        headers = Headers(scope=scope)
        exchange = Exchange(match.route, match.variables, headers, scope, receive, send)
        if scope["type"] == "websocket":
            await self._socket(exchange)
            return
        metadata = await self._callers.admit(method.path, scope, headers)
        if method.client_streaming:
            raise RefusalError(426, headers={"upgrade": "websocket", "connection": "upgrade"})
        timeout_s = caller.timeout_s(headers, self._limits.timeout_of(method))
        until = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s + BACKSTOP_S):
                await self._serve(exchange, metadata, until)
        except TimeoutError:
            raise DeadlineExpired("the deadline passed") from None

    async def _socket(self, exchange: Exchange) -> None:
        method, scope, send = exchange.route.target, exchange.scope, exchange.send
        protocol, headers = sockets.offered(exchange.headers)
        metadata = await self._callers.admit(method.path, scope, headers)
        if not method.client_streaming:
            raise RefusalError(400, "this is called with plain HTTP, not as a WebSocket")
        timeout_s = caller.timeout_s(headers, self._limits.default_stream_timeout_s)
        await exchange.receive()
        call = self._calls.start(method, None, metadata, timeout_s)
        depth, backstop_s = self._limits.max_json_depth, timeout_s + BACKSTOP_S
        socket = sockets.Socket(
            *(call, method.request, scope, exchange.receive, send, depth, backstop_s)
        )
        async with self._calls.held(call, socket.drain):
            await send({"type": "websocket.accept", "subprotocol": protocol, "headers": []})
            await socket.serve()

    async def _serve(self, exchange: Exchange, metadata: caller.Metadata, until: float) -> None:
        request = await self._request(exchange)
        remaining_s = until - time.monotonic()
        if remaining_s <= 0:
            raise DeadlineExpired("the deadline had passed when the request was read")
        method = exchange.route.target
        follows = method.server_streaming and exchange.route.http_method == "GET"
        call = self._calls.start(method, request, metadata, remaining_s)
        async with self._calls.attended(call, exchange.receive, follows=follows):
            if method.server_streaming:
                await self._stream(exchange, call)
                return
            body = await wire.encoded(await call.message())
            if exchange.route.http_method == "GET":
                await reply_cacheable(exchange.send, body, exchange.headers)
            else:
                await reply(exchange.send, body)

    async def _request(self, exchange: Exchange) -> Message:
        body = await read_json_body(exchange.headers, exchange.receive)
        return await wire.aside(
            len(body),
            lambda: binding.build(
                exchange.route,
                exchange.variables,
                exchange.scope["query_string"],
                body,
                self._limits.max_json_depth,
            ),
        )

    async def _stream(self, exchange: Exchange, call: OpenCall) -> None:
        items = paced(call.read, grpc.aio.EOF, self._limits.ping_interval_s)
        framing = framing_for(exchange.headers.get("accept", ""))
        await reply_stream(
            exchange.send, items, framing, lambda error: noted(error, exchange.scope, call)
        )
