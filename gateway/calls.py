"""Calls in flight behind requests: started, attended, ended. Knows no HTTP but its disconnect.

A client that goes away cancels its call. A drain ends the streams that would not end by themselves:
those opened with GET, which follow something, are cancelled; WebSockets take no more.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf.message import Message
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Receive, Scope

from gateway import errors
from gateway.caller import Metadata
from gateway.contract import Method
from gateway.errors import ClientGoneError
from gateway.opencall import OpenCall
from gateway.upstream import Upstream
from services.runtime.errors import Draining, UpstreamUnavailable
from services.runtime.tracing import Tracing

_PROPAGATOR = TraceContextTextMapPropagator()


class Calls:
    """Starts calls and knows which of them would not end by themselves."""

    def __init__(self, upstreams: Mapping[str, Upstream], tracing: Tracing) -> None:
        self.upstreams = upstreams
        self._tracing = tracing
        self._endless: dict[OpenCall, Callable[[], None]] = {}
        self._draining = False

    def start(
        self, method: Method, request: Message | None, metadata: Metadata, timeout_s: float
    ) -> OpenCall:
        """Begin a call, as a child of the caller's trace; no request where the client streams."""
        until = time.monotonic() + timeout_s
        span = None
        if self._tracing.enabled:
            span = self._tracing.start(method.path, dict(metadata))
            metadata = _traced(metadata, span)
        given = () if request is None else (request,)
        repeatable = method.repeatable
        if method.by_request_id and request is not None:
            repeatable = repeatable and bool(getattr(request, "request_id"))  # noqa: B009  # of some

        def begin(callable_: Any) -> Any:
            return callable_(*given, timeout=until - time.monotonic(), metadata=metadata)

        try:
            upstream = self.upstreams[method.upstream]
            call = OpenCall(upstream, method, begin, until, repeatable=repeatable)
        except UpstreamUnavailable as error:
            self._tracing.end(span, errors.answer(error, "").status)
            raise
        call.span = span
        return call

    @asynccontextmanager
    async def attended(
        self, call: OpenCall, receive: Receive, *, follows: bool
    ) -> AsyncIterator[None]:
        """Hold a call and watch whether its client is still there."""
        watcher = asyncio.create_task(_cancel_when_gone(call, receive))
        on_drain = (lambda: call.cancel(_draining())) if follows else None
        try:
            async with self.held(call, on_drain):
                yield
        finally:
            watcher.cancel()

    @asynccontextmanager
    async def held(
        self, call: OpenCall, on_drain: Callable[[], None] | None
    ) -> AsyncIterator[None]:
        """A call until the end of the block, which is also its end."""
        if on_drain is not None:
            self._endless[call] = on_drain
            if self._draining:
                on_drain()
        try:
            yield
        except Exception as error:
            call.status = errors.answer(error, "").status
            raise
        finally:
            self._endless.pop(call, None)
            call.abandon()
            self._tracing.end(call.span, call.status)

    def drain(self) -> None:
        """End what would not end by itself; clients are told to go on elsewhere."""
        self._draining = True
        for on_drain in tuple(self._endless.values()):
            on_drain()

    async def close(self) -> None:
        """Close the channels and send the last spans."""
        await asyncio.gather(*(upstream.close() for upstream in self.upstreams.values()))
        self._tracing.flush()


def noted(error: Exception, scope: Scope, call: OpenCall) -> errors.Answer:
    """The answer to what failed after the first byte; noted for the log and the trace."""
    found = errors.answer(error, scope["gristmill.request_id"])
    scope["gristmill.answer"] = found
    call.status = found.status
    return found


async def _cancel_when_gone(call: OpenCall, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call.cancel(ClientGoneError())


def _draining() -> Exception:
    return Draining("this gateway is shutting down; resume from the last message received")


def _traced(metadata: Metadata, span: trace.Span | None) -> Metadata:
    """The metadata with the trace context of `span` in place of the caller's."""
    carrier: dict[str, str] = {}
    if span is not None:
        _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span))
    kept = tuple((key, value) for key, value in metadata if key not in carrier)
    return (*kept, *carrier.items())
