"""One call behind a request: tried again where that does no harm, cancelled with a reason.

A call whose service was not reached is tried again, within the budget of the service, where the
contract says that it may be repeated; one that a process refused before it began goes to another
process. Never after its first message. Knows no HTTP.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import Message
from opentelemetry import trace

from gateway import errors
from gateway.contract import Method
from gateway.errors import CallFailedError
from gateway.upstream import Address, Upstream, failure
from services.runtime import metrics
from services.runtime.errors import DRAINING, MODEL_NOT_READY, DeadlineExpired

MOST_TRIES = 3
RETRY_PAUSE_S = (0.05, 0.15)
"""Before the same address is tried again; another one is tried at once."""
REFUSED = (DRAINING, MODEL_NOT_READY)
"""Said before anything was done: another process may do it."""
MOST_REST_S = 5.0
"""How long a process that has refused is left to others at most."""


class OpenCall:
    """One call, tried again where that does no harm, and why it was cancelled where it was."""

    def __init__(
        self,
        upstream: Upstream,
        method: Method,
        begin: Callable[[Any], Any],
        until: float,
        *,
        repeatable: bool,
    ) -> None:
        self._upstream = upstream
        self._method = method
        self._begin = begin
        self._until = until
        self._repeatable = repeatable
        self._tried: list[Address] = []
        self._answered = False
        self._call: Any = None
        self._why: Exception | None = None
        self.span: trace.Span | None = None
        self.status = "OK"
        self._try()

    def _try(self) -> None:
        address = self._upstream.pick(self._tried)
        self._tried.append(address)
        self._call = self._begin(address.call(self._method))

    def cancel(self, why: Exception) -> None:
        """Cancel it; whoever waits for it gets `why`."""
        self._why = self._why or why
        self._call.cancel()

    async def message(self) -> Message:
        """The answer of a unary call."""
        answer: Message = await self._settled(lambda: self._call)
        return answer

    async def read(self) -> Any:
        """The next message of a stream, or grpc.aio.EOF."""
        return await self._settled(lambda: self._call.read())

    async def write(self, message: Message) -> None:
        """Send a message of a client's stream; nothing where the call has ended."""
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._call.write(message)

    async def done_writing(self) -> None:
        """There are no more of them."""
        with suppress(asyncio.InvalidStateError, grpc.aio.AioRpcError):
            await self._call.done_writing()

    async def _settled(self, pending: Callable[[], Awaitable[Any]]) -> Any:
        """What comes, from another address where the first could not begin."""
        while True:
            try:
                result = await self._await(pending())
            except CallFailedError as error:
                self._note(error)
                if self._answered or not self._may_try_again(error):
                    raise
            else:
                if not self._answered:
                    self._answered = True
                    self._tried[-1].breaker.succeeded()
                    self._upstream.budget.succeeded()
                return result
            if len(self._tried) >= len(self._upstream.addresses):
                await asyncio.sleep(random.uniform(*RETRY_PAUSE_S))
                if self._why is not None:
                    raise self._why
            metrics.UPSTREAM_RETRIES.labels(self._upstream.name).inc()
            self._try()

    def _note(self, error: CallFailedError) -> None:
        address, now = self._tried[-1], time.monotonic()
        if not error.reached:
            address.breaker.failed(now)
            self._upstream.budget.failed()
            return
        address.breaker.succeeded()
        if errors.reason_of(error.status) in REFUSED:
            # It costs a process nothing to refuse; so that takes nothing from the budget.
            hint_s = errors.retry_delay_s(error.status)
            address.resting_until = now + min(MOST_REST_S, hint_s or 0.0)
        elif errors.is_unavailable(error):
            self._upstream.budget.failed()

    def _may_try_again(self, error: CallFailedError) -> bool:
        """Whether another try does no harm, and may help."""
        if not errors.is_unavailable(error) or self._method.client_streaming:
            return False
        if len(self._tried) >= MOST_TRIES or time.monotonic() + RETRY_PAUSE_S[1] >= self._until:
            return False
        if errors.reason_of(error.status) in REFUSED:
            # Before anything was done; the same process would refuse it again.
            return len(self._tried) < len(self._upstream.addresses)
        if error.reached or not self._upstream.budget.allows():
            return False
        return self._repeatable

    async def _await(self, pending: Awaitable[Any]) -> Any:
        try:
            return await pending
        except grpc.aio.AioRpcError as error:
            failed = failure(error)
            if time.monotonic() >= self._until and not failed.explained:
                # Whatever a call fails of then, a message that could not be sent, say.
                raise DeadlineExpired("the deadline passed") from None
            raise failed from None
        except asyncio.CancelledError:
            # Cancelled by ourselves, not this task: then there is a reason.
            if self._why is not None:
                raise self._why from None
            raise

    def abandon(self) -> None:
        """Cancel what is still under way; nothing where it has ended."""
        self._call.cancel()
