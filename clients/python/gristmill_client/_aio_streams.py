"""The streams of the async client: iterators that are context managers; know no request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import grpc
from gristmill.generator.v1.generator_service_pb2 import GenerateStreamResponse
from gristmill.registry.v1.registry_service_pb2 import WatchResponse
from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from gristmill_client._aio_calls import is_cancelled
from gristmill_client._aio_session import AsyncSession
from gristmill_client._config import Service
from gristmill_client._text import TextSoFar
from gristmill_client._watch import WatchState
from gristmill_client.errors import GristmillError, Unavailable
from gristmill_client.resources import WatchEvent

M_co = TypeVar("M_co", covariant=True)
M = TypeVar("M")
T = TypeVar("T")


class AsyncMessages(Protocol[M_co]):
    """A server-streaming call, as grpc.aio gives it: `read` gives EOF at the end."""

    async def read(self) -> M_co: ...
    def cancel(self) -> bool: ...


class Closing:
    """`async with stream:` closes it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        raise NotImplementedError


class AsyncStream(Closing, Generic[M, T]):
    """What a call sends, as it comes. `close()`, or leaving its `async with`, cancels the call."""

    def __init__(
        self,
        session: AsyncSession,
        service: Service,
        call: AsyncMessages[M],
        read: Callable[[M], T | None],
    ) -> None:
        self._session = session
        self._service = service
        self._call = call
        self._read = read
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while True:
            try:
                message = await self._call.read()
            except grpc.RpcError as error:
                raise self._session.error(self._service, error) from error
            except asyncio.CancelledError:
                # grpc.aio says the same when our call was closed and when our task was cancelled.
                if self._closed and not is_cancelled():
                    raise StopAsyncIteration from None
                raise
            if message is grpc.aio.EOF:
                raise StopAsyncIteration
            if (value := self._read(message)) is not None:
                return value

    async def close(self) -> None:
        """Cancels the call; the server stops working on it. Harmless when it has ended."""
        self._closed = True
        self._call.cancel()


class AsyncTextStream(TextSoFar, AsyncStream[GenerateStreamResponse, str]):
    """The deltas of an answer; the attributes of the running result are TextSoFar's."""

    def __init__(self, session: AsyncSession, call: AsyncMessages[GenerateStreamResponse]) -> None:
        TextSoFar.__init__(self)
        AsyncStream.__init__(self, session, "generator", call, self._feed)


class AsyncWatch(Closing):
    """The changes of the registry; goes on by itself after a cut. See Models.watch."""

    def __init__(self, session: AsyncSession, state: WatchState) -> None:
        self._session = session
        self._state = state
        self._events: deque[WatchEvent] = deque()
        self._call: AsyncMessages[WatchResponse] | None = None
        self._closing = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchEvent:
        while not self._events:
            if self._closing.is_set():
                raise StopAsyncIteration
            await self._step()
        return self._events.popleft()

    async def close(self) -> None:
        """Ends the watch, from any task."""
        self._closing.set()
        if self._call is not None:
            self._call.cancel()

    async def _step(self) -> None:
        if self._call is None:
            stub = self._session.stub("registry", RegistryServiceStub)
            self._call = stub.Watch(self._state.request(), metadata=self._session.metadata)
        try:
            message = await self._call.read()
        except grpc.RpcError as error:
            await self._pause(self._session.error("registry", error))
        except asyncio.CancelledError:
            if is_cancelled() or not self._closing.is_set():
                raise
        else:
            if message is grpc.aio.EOF:
                await self._pause(Unavailable("the registry ended the watch"))
            else:
                self._events.extend(self._state.feed(message))

    async def _pause(self, error: GristmillError) -> None:
        self._call = None
        if not self._closing.is_set():
            pause = self._state.pause(error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause)
