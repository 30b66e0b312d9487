"""The edge that every call passes, in and out: one object, wrapped around each handler once.

In: request id, identity and scope, deadline, trace, timer, bounds of the contract. Out: metrics, a
log line, exceptions turned into statuses with details. It knows no service.

Handlers are wrapped when they are registered, not looked up through a chain of interceptors on
each call: that costs less and is the same on both transports.
"""

import asyncio
import itertools
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc.aio import AbortError
from opentelemetry import trace

from services.runtime import logs, metrics, status
from services.runtime.auth import ANONYMOUS, PUBLIC, SCOPES, Authenticator, Credentials
from services.runtime.bounds import Bounds
from services.runtime.call import Call, Identity, enter
from services.runtime.deadline import Deadline
from services.runtime.errors import Draining, GristmillError, InvalidRequest, NotImplementedYet
from services.runtime.tracing import Tracing

Behaviour = Callable[..., Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Decode = Callable[[bytes], Any]
REQUEST_ID = "x-request-id"
DELEGATED = "x-gristmill-identity"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
# grpcio and native report a call without a deadline as None or as a very large number.
_NO_DEADLINE_S = 365 * 86400.0


@dataclass(slots=True)
class _Open:
    """One call between its edges in and out."""

    method: str
    started: float
    request_id: str = ""
    timeout_s: float | None = None
    """What the caller gave; None where it gave none."""
    call: Call | None = None
    span: trace.Span | None = None


class Interceptor:
    """Wraps handlers; counts what is in flight, so that a drain knows when it is done."""

    def __init__(
        self,
        authenticator: Authenticator,
        tracing: Tracing,
        default_timeout_s: float,
        log_sample_every: int = 0,
        pushback: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticator = authenticator
        self._tracing = tracing
        self._default_timeout_s = default_timeout_s
        self._log_every = log_sample_every
        self._pushback = pushback
        self._clock = clock
        self._bounds = Bounds()
        self._log = logs.get_logger()
        self._prefix = secrets.token_hex(6)
        self._count = itertools.count(1)
        self._idle = asyncio.Event()
        self._durations: dict[tuple[str, str], Any] = {}
        self.in_flight = 0
        self.draining = False
        # Read when it is scraped: two updates fewer in each call.
        metrics.CALLS_IN_FLIGHT.set_function(lambda: self.in_flight)

    def wrap(self, method: str, handler: Handler) -> Handler:
        """The handler of `method` with the edge around it."""
        kind, behaviour = _behaviour(handler)
        started = metrics.CALLS_STARTED.labels(method)
        decode = handler.request_deserializer or bytes
        wrapped = (
            self._streaming(method, behaviour, decode, started, requests=handler.request_streaming)
            if handler.response_streaming
            else self._unary(method, behaviour, decode, started)
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        # No deserializer: each transport has its own answer to bytes that are no message.
        made: Handler = make(wrapped, None, handler.response_serializer)
        return made

    async def wait_idle(self, grace_s: float) -> bool:
        """Wait until nothing is in flight; False when the grace ran out first."""
        try:
            async with asyncio.timeout(grace_s):
                while self.in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def _unary(self, method: str, behaviour: Behaviour, decode: Decode, started: Any) -> Behaviour:
        async def unary(request: Any, context: Any) -> Any:
            opened = self._enter(method, started)
            try:
                self._admit(opened, context)
                response = await behaviour(self._message(request, decode), context)
            except BaseException as error:
                await self._fail(opened, context, error)
            self._close(opened, context)
            return response

        return unary

    def _streaming(
        self, method: str, behaviour: Behaviour, decode: Decode, started: Any, *, requests: bool
    ) -> Behaviour:
        async def streaming(request: Any, context: Any) -> AsyncIterator[Any]:
            opened = self._enter(method, started)
            try:
                self._admit(opened, context)
                given = (
                    self._messages(request, decode) if requests else self._message(request, decode)
                )
                # A caller that leaves ends the handler now, not when it is garbage.
                async with aclosing(behaviour(given, context)) as responses:
                    async for response in responses:
                        yield response
            except BaseException as error:
                await self._fail(opened, context, error)
            self._close(opened, context)

        return streaming

    def _message(self, request: bytes, decode: Decode) -> Any:
        """The message in `request`, within its bounds."""
        try:
            message = decode(request)
        except DecodeError as error:
            raise InvalidRequest("the request is no message of this method") from error
        self._bounds.check(message)
        return message

    async def _messages(self, requests: AsyncIterator[bytes], decode: Decode) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._message(request, decode)

    def _enter(self, method: str, started: Any) -> _Open:
        self.in_flight += 1
        started.inc()
        return _Open(method, self._clock())

    def _admit(self, opened: _Open, context: Any) -> None:
        """Establish who calls, until when, under which id; refuse what must not pass."""
        sent = dict(context.invocation_metadata() or ())
        given = sent.get(REQUEST_ID, "")
        opened.request_id = (
            given if _REQUEST_ID.fullmatch(given) else f"{self._prefix}-{next(self._count):x}"
        )
        identity = self._identity(opened.method, sent)
        if self.draining and SCOPES.get(opened.method) != PUBLIC:
            raise Draining("this server is shutting down")
        remaining = context.time_remaining()
        if remaining is None or remaining > _NO_DEADLINE_S:
            remaining = self._default_timeout_s
        else:
            opened.timeout_s = remaining
        deadline = Deadline(opened.started + remaining)
        bounded = opened.timeout_s is not None
        opened.call = Call(opened.method, opened.request_id, identity, deadline, sent, bounded)
        enter(opened.call)
        if self._tracing.enabled:
            opened.span = self._tracing.start(opened.method, sent)

    def _identity(self, method: str, sent: dict[str, Any]) -> Identity:
        authorization = sent.pop("authorization", "")  # for nobody behind the edge
        if not self._authenticator.enabled and method in SCOPES and DELEGATED not in sent:
            return ANONYMOUS
        return self._authenticator.authorize(
            method,
            Credentials(
                authorization,
                sent.get(DELEGATED, ""),
                sent.get("x-gristmill-scopes", ""),
            ),
        )

    def _close(self, opened: _Open, context: Any) -> None:
        context.set_trailing_metadata(((REQUEST_ID, opened.request_id),))
        self._finish(opened, "OK", None)

    async def _fail(self, opened: _Open, context: Any, error: BaseException) -> NoReturn:
        """End the call with the status of `error`; never returns."""
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._finish(opened, _gave_up(opened, self._clock()), None)
            raise error
        if isinstance(error, AbortError) or not isinstance(error, Exception):
            self._finish(opened, "UNKNOWN", error)
            raise error
        if isinstance(error, NotImplementedError):
            error = NotImplementedYet(f"{opened.method[1:]} is in the contract, not yet built")
        code = status.code_of(error)
        self._finish(opened, code.name, error)
        await context.abort(code, *self._answer(error, opened.request_id))
        raise AssertionError("abort returned")

    def _answer(
        self, error: Exception, request_id: str
    ) -> tuple[str, tuple[tuple[str, str | bytes], ...]]:
        """Message and trailing metadata of a failed call: the one place that builds them."""
        answer = status.to_status(error, request_id)
        trailing: list[tuple[str, str | bytes]] = [
            ("grpc-status-details-bin", answer.SerializeToString())
        ]
        if request_id:
            trailing.append((REQUEST_ID, request_id))
        retryable = isinstance(error, GristmillError) and error.retry_after_s is not None
        if retryable and self._pushback:
            milliseconds = max(1, math.ceil(status.retry_after_s(error) * 1000))
            trailing.append(("grpc-retry-pushback-ms", str(milliseconds)))
        return answer.message, tuple(trailing)

    def _finish(self, opened: _Open, code: str, error: BaseException | None) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()
        elapsed = self._clock() - opened.started
        key = (opened.method, code)
        duration = self._durations.get(key)
        if duration is None:
            duration = self._durations[key] = metrics.CALL_DURATION.labels(*key)
        duration.observe(elapsed)
        if opened.span is not None:
            self._tracing.end(opened.span, code)
        self._write(opened, code, elapsed, error)

    def _write(self, opened: _Open, code: str, elapsed: float, error: BaseException | None) -> None:
        if code == "OK" and (not self._log_every or next(self._count) % self._log_every):
            return
        identity = opened.call.identity.name if opened.call else ""
        fields = {
            "method": opened.method,
            "status": code,
            "duration_ms": round(elapsed * 1000, 3),
            "request_id": opened.request_id,
            "identity": identity,
        }
        if isinstance(error, GristmillError):
            fields["reason"] = error.reason_given
            fields["error"] = error.message
        if opened.span is not None:
            fields["trace_id"] = f"{opened.span.get_span_context().trace_id:032x}"
        if error is not None and code in ("INTERNAL", "UNKNOWN", "DATA_LOSS"):
            self._log.error("call failed", exc_info=error, **fields)
        else:
            self._log.info("call", **fields)


def _gave_up(opened: _Open, now: float) -> str:
    """What ended a cancelled call: its caller, or the caller's deadline.

    The caller's timer and ours race, and its deadline comes to us rounded up by a hundredth.
    """
    if opened.timeout_s is None:
        return "CANCELLED"
    left_s = opened.started + opened.timeout_s - now
    return "DEADLINE_EXCEEDED" if left_s <= 0.05 + opened.timeout_s / 100 else "CANCELLED"


def _behaviour(handler: Handler) -> tuple[str, Behaviour]:
    for kind in ("unary_unary", "unary_stream", "stream_stream", "stream_unary"):
        behaviour = getattr(handler, kind)
        if behaviour is not None:
            return kind, behaviour
    raise TypeError(f"a handler without behaviour: {handler}")


class _Methods(grpc.GenericRpcHandler):
    """All methods by path: what grpc.aio dispatches from."""

    def __init__(self) -> None:
        self.by_path: dict[str, Handler] = {}

    def service(self, details: grpc.HandlerCallDetails) -> "Handler | None":
        return self.by_path.get(details.method)


class Registrar:
    """Stands in for the server while generated code adds handlers to it, and wraps each."""

    def __init__(self, server: grpc.aio.Server, interceptor: Interceptor) -> None:
        self._server = server
        self._interceptor = interceptor
        self._methods = _Methods()
        server.add_generic_rpc_handlers((self._methods,))
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Generated code adds each method twice; the registered form is the one that is used."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Handler]) -> None:
        """Wrap and pass on the handlers of one service."""
        wrapped = {
            name: self._interceptor.wrap(f"/{service}/{name}", handler)
            for name, handler in handlers.items()
        }
        self._methods.by_path.update({f"/{service}/{n}": h for n, h in wrapped.items()})
        # native serves what is registered and leaves the rest to the generic handler above;
        # grpc.aio takes no notice of registered methods.
        native = {n: h for n, h in wrapped.items() if not h.request_streaming}
        self._server.add_registered_method_handlers(service, native)
        self.services.append(service)
