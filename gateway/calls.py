"""Calls in flight behind requests: started, attended, cancelled. Knows no HTTP but its disconnect.

A client that goes away cancels its call, unary ones too. A drain cancels the streams opened with
GET, which follow something and would never end by themselves.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Receive

from gateway import errors
from gateway.caller import Metadata
from gateway.contract import Method
from gateway.errors import ClientGoneError
from gateway.upstream import Upstream, failure
from services.runtime.errors import Draining
from services.runtime.tracing import Tracing

_PROPAGATOR = TraceContextTextMapPropagator()


class OpenCall:
    """One call, and why it was cancelled where it was."""

    def __init__(self, call: Any, span: trace.Span | None) -> None:
        self._call = call
        self.span = span
        self.status = "OK"
        self._why: Exception | None = None

    def cancel(self, why: Exception) -> None:
        """Cancel it; whoever waits for it gets `why`."""
        self._why = self._why or why
        self._call.cancel()

    async def message(self) -> Message:
        """The answer of a unary call."""
        answer: Message = await self._await(self._call)
        return answer

    async def read(self) -> Any:
        """The next message of a stream, or grpc.aio.EOF."""
        return await self._await(self._call.read())

    async def _await(self, pending: Any) -> Any:
        try:
            return await pending
        except grpc.aio.AioRpcError as error:
            raise failure(error) from None
        except asyncio.CancelledError:
            # Cancelled by ourselves, not this task: then there is a reason.
            if self._why is not None:
                raise self._why from None
            raise

    def abandon(self) -> None:
        """Cancel what is still under way; nothing where it has ended."""
        self._call.cancel()


class Calls:
    """Starts calls and knows which of them follow something."""

    def __init__(self, upstreams: Mapping[str, Upstream], tracing: Tracing) -> None:
        self.upstreams = upstreams
        self._tracing = tracing
        self._following: set[OpenCall] = set()
        self._draining = False

    def start(
        self, method: Method, request: Message, metadata: Metadata, timeout_s: float
    ) -> OpenCall:
        """Begin a call, as a child of the caller's trace."""
        span = None
        if self._tracing.enabled:
            span = self._tracing.start(method.path, dict(metadata))
            metadata = _traced(metadata, span)
        callable_ = self.upstreams[method.upstream].call(method)
        return OpenCall(callable_(request, timeout=timeout_s, metadata=metadata), span)

    @asynccontextmanager
    async def attended(
        self, call: OpenCall, receive: Receive, *, follows: bool
    ) -> AsyncIterator[None]:
        """Watch over a call until the end of the block, which is also its end."""
        watcher = asyncio.create_task(_cancel_when_gone(call, receive))
        if follows:
            self._following.add(call)
            if self._draining:
                call.cancel(_draining())
        try:
            yield
        except Exception as error:
            call.status = errors.answer(error, "").status
            raise
        finally:
            watcher.cancel()
            self._following.discard(call)
            call.abandon()
            self._tracing.end(call.span, call.status)

    def drain(self) -> None:
        """End what follows; clients are told to resume elsewhere."""
        self._draining = True
        for call in tuple(self._following):
            call.cancel(_draining())

    async def close(self) -> None:
        """Close the channels and send the last spans."""
        await asyncio.gather(*(upstream.close() for upstream in self.upstreams.values()))
        self._tracing.flush()


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
