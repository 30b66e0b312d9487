"""A bidi call of grpc.aio that keeps what the server said last; knows no service.

Where the server ends a call while the client writes, grpc.aio puts "Internal error from Core" in
the place of the status that came, and its `read` gives up what had come before it
(https://github.com/grpc/grpc/issues/36066).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar, cast

import grpc

M = TypeVar("M")
T = TypeVar("T")

LOST_STATUS = "Internal error from Core"
# The status comes with a turn of the loop or two, once all before it has been read.
_STATUS_WAIT_S = 1.0
_STATUS_POLL_S = 0.005


class BidiMessages(Generic[M]):
    """What comes on a call, read to the very end. `on_end` hears that it is known how it ended."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Any, M], on_end: Callable[[], None]) -> None:
        self._call = call
        self._messages = aiter(call)
        self._on_end = on_end
        self._error: grpc.aio.AioRpcError | None = None
        self._given_up = False
        self._call.add_done_callback(self._done)

    async def read(self) -> M:
        """The next message; grpc.aio.EOF at the end. Raises AioRpcError, each time.

        Raises CancelledError where this task, or this call by `cancel`, was cancelled.
        """
        try:
            return await anext(self._messages)
        except asyncio.CancelledError:
            # Said of a call that its channel or its server has cancelled, too.
            if is_cancelled() or self._given_up:
                raise
        except (StopAsyncIteration, grpc.aio.AioRpcError):
            pass  # and how it ended is said below
        if (error := await self.failure()) is not None:
            raise error
        return cast(M, grpc.aio.EOF)

    def cancel(self) -> bool:
        self._given_up = True
        return self._call.cancel()

    async def failure(self) -> grpc.aio.AioRpcError | None:
        """How the call failed, waiting for its end; None: it did not."""
        await self._call.code()
        for _ in range(round(_STATUS_WAIT_S / _STATUS_POLL_S)):
            if not self._is_lost:
                break
            # A failed write was told of first: the status will replace that.
            await asyncio.sleep(_STATUS_POLL_S)
            self._keep()
        self._on_end()
        return self._error

    @property
    def _is_lost(self) -> bool:
        return self._error is not None and self._error.details() == LOST_STATUS

    def _done(self, _: object) -> None:
        self._keep()
        if not self._is_lost:
            self._on_end()

    def _keep(self) -> None:
        """The status as it stands now: later, another may be put in its place."""
        code = _now(self._call.code())
        self._error = None
        if code is grpc.StatusCode.OK:
            return
        self._error = grpc.aio.AioRpcError(
            code,
            _now(self._call.initial_metadata()),
            _now(self._call.trailing_metadata()),
            details=_now(self._call.details()),
        )


def is_cancelled() -> bool:
    """Whether this task is being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _now(value: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        value.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise RuntimeError("the call has not ended")
