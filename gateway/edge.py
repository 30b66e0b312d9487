"""The edge that every request passes, in and out: one ASGI object around the application.

In: request id, host and origin, limits, drain. Out: security headers, errors in their one shape,
metrics, a log line. It knows no route. Plain ASGI: nothing stands between the server's
`disconnect` and whoever waits for it.
"""

import asyncio
import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.bodies import BodyBounds, BoundedReceive
from gateway.caller import REQUEST_ID, RequestIds
from gateway.errors import Answer, CallFailedError, RefusalError, answer
from gateway.guard import SECURITY_HEADERS, Guard
from gateway.inhand import InHand
from gateway.replies import reply_empty, reply_error
from services.runtime import logs, metrics

# Answered while draining too: they are how the outside learns of it.
HEALTH_PATHS = ("/health/live", "/health/ready")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HSTS = "max-age=31536000"
_ADDED = {**SECURITY_HEADERS, "cache-control": "no-store"}


@dataclass(frozen=True, slots=True)
class EdgeParts:
    """What an edge decides with."""

    guard: Guard
    in_hand: InHand
    bounds: BodyBounds
    shaped: Callable[[Scope, Answer], Answer]
    """An error as the dialect has it whose path was asked for."""
    log_sample_every: int


class Sending:
    """Stands in for an ASGI `send`: adds the headers of every answer, remembers its status.

    What is answered to a WebSocket before its handshake is an HTTP answer too.
    """

    def __init__(self, send: Send, scope: Scope, request_id: str) -> None:
        self._send = send
        self._secure = scope["scheme"] in ("https", "wss")
        self._prefix = "websocket." if scope["type"] == "websocket" else ""
        self._request_id = request_id
        self.extra: dict[str, str] = {}
        self.status = 0

    async def __call__(self, message: Message) -> None:
        """Pass a message on."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = {**_ADDED, **self.extra, REQUEST_ID: self._request_id}
            if self._secure:
                added["strict-transport-security"] = _HSTS
            own: list[tuple[bytes, bytes]] = message["headers"]
            if any(name == b"cache-control" for name, _ in own):
                del added["cache-control"]
            message["headers"] = [*own, *((k.encode(), v.encode()) for k, v in added.items())]
        elif message["type"] == "websocket.accept":
            self.status = 101
            message["headers"] = [(REQUEST_ID.encode(), self._request_id.encode())]
        if self._prefix and message["type"].startswith("http."):
            message["type"] = self._prefix + message["type"]
        await self._send(message)


class Edge:
    """The middleware."""

    def __init__(self, app: ASGIApp, parts: EdgeParts) -> None:
        self._app = app
        self._parts = parts
        self._ids = RequestIds()
        self._log = logs.get_logger()
        self._count = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            return
        started = time.monotonic()
        headers = Headers(scope=scope)
        request_id = self._ids.of(headers.get(REQUEST_ID, ""))
        scope["gristmill.request_id"] = request_id
        sending = Sending(send, scope, request_id)
        failed: BaseException | None = None
        try:
            await self._admit(scope, headers, receive, sending)
        except asyncio.CancelledError:
            sending.status = sending.status or 499
            raise
        except Exception as error:
            failed = error
            await self._fail(scope, error, sending)
        finally:
            self._finish(scope, sending.status, time.monotonic() - started, failed)
            # Its traceback has this frame, and below it all that was read of the body.
            failed = None

    async def _admit(
        self, scope: Scope, headers: Headers, receive: Receive, sending: Sending
    ) -> None:
        parts = self._parts
        sending.extra = parts.guard.admit(headers)
        if _CONTROL.search(scope["path"]):
            # Patterns that end with a line take one line more.
            raise RefusalError(404)
        if scope["type"] == "websocket":
            scope["gristmill.bodies"] = parts.bounds.budget
            with parts.in_hand.one():
                await self._app(scope, receive, sending)
            return
        if scope["method"] == "OPTIONS":
            allowed = parts.guard.preflight(headers)
            if allowed is not None:
                sending.extra |= allowed
                await reply_empty(sending)
                return
        if scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, sending)
            return
        bounded = BoundedReceive(receive, scope, headers, parts.bounds)
        with parts.in_hand.one():
            try:
                bounded.check()
                await self._app(scope, bounded, sending)
            finally:
                bounded.release()

    async def _fail(self, scope: Scope, error: Exception, sending: Sending) -> None:
        found = answer(error, scope["gristmill.request_id"])
        scope["gristmill.answer"] = found
        if scope["type"] == "http":
            found = self._parts.shaped(scope, found)
        if sending.status:
            # Too late for a status: the server must cut the connection, so that nobody takes
            # what was sent for the whole.
            raise error
        await reply_error(sending, found)

    def _finish(
        self, scope: Scope, status: int, elapsed_s: float, failed: BaseException | None
    ) -> None:
        route = scope.get("gristmill.route") or getattr(scope.get("route"), "path", None) or "none"
        method = scope.get("method", "GET")
        metrics.HTTP_DURATION.labels(route, method, str(status)).observe(elapsed_s)
        found: Answer | None = scope.get("gristmill.answer")
        every = self._parts.log_sample_every
        if found is None and (not every or next(self._count) % every):
            return
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "status": status,
            "duration_ms": round(elapsed_s * 1000, 3),
            "request_id": scope["gristmill.request_id"],
            "identity": scope.get("gristmill.identity", ""),
        }
        if found is not None:
            fields |= {"code": found.status, "reason": found.reason}
            fields["error"] = found.body["error"]["message"]
            if route == "none":
                fields["path"] = scope["path"][:200]
        if found is not None and found.http == 500:
            # A failure behind this process has its trace in the log over there.
            own = None if isinstance(failed, CallFailedError) else failed
            self._log.error("request failed", exc_info=own, **fields)
        else:
            self._log.info("request", **fields)
