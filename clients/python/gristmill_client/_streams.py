"""The streams of the sync client: iterators that are context managers; know no request."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar

import grpc
from gristmill.generator.v1.generator_service_pb2 import GenerateStreamResponse
from gristmill.registry.v1.registry_service_pb2 import WatchResponse
from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from gristmill_client._config import Service
from gristmill_client._session import Session
from gristmill_client._text import TextSoFar
from gristmill_client._watch import WatchState
from gristmill_client.errors import GristmillError, Unavailable
from gristmill_client.resources import WatchEvent

M_co = TypeVar("M_co", covariant=True)
M = TypeVar("M")
T = TypeVar("T")


class Messages(Protocol[M_co]):
    """A server-streaming call, as grpc gives it."""

    def __next__(self) -> M_co: ...
    def cancel(self) -> bool: ...


class Closing:
    """`with stream:` closes it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class Stream(Closing, Generic[M, T]):
    """What a call sends, as it comes. `close()`, or leaving its `with`, cancels the call."""

    def __init__(
        self,
        session: Session,
        service: Service,
        call: Messages[M],
        read: Callable[[M], T | None],
    ) -> None:
        self._session = session
        self._service = service
        self._call = call
        self._read = read
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while True:
            try:
                message = next(self._call)
            except grpc.RpcError as error:
                if self._closed:
                    raise StopIteration from None
                raise self._session.error(self._service, error) from error
            if (value := self._read(message)) is not None:
                return value

    def close(self) -> None:
        """Cancels the call; the server stops working on it. Harmless when it has ended."""
        self._closed = True
        self._call.cancel()


class TextStream(TextSoFar, Stream[GenerateStreamResponse, str]):
    """The deltas of an answer; the attributes of the running result are TextSoFar's."""

    def __init__(self, session: Session, call: Messages[GenerateStreamResponse]) -> None:
        TextSoFar.__init__(self)
        Stream.__init__(self, session, "generator", call, self._feed)


class Watch(Closing):
    """The changes of the registry; goes on by itself after a cut. See Models.watch."""

    def __init__(self, session: Session, state: WatchState) -> None:
        self._session = session
        self._state = state
        self._events: deque[WatchEvent] = deque()
        self._call: Messages[WatchResponse] | None = None
        self._closing = threading.Event()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> WatchEvent:
        while not self._events:
            if self._closing.is_set():
                raise StopIteration
            self._step()
        return self._events.popleft()

    def close(self) -> None:
        """Ends the watch, from any thread."""
        self._closing.set()
        if self._call is not None:
            self._call.cancel()

    def _step(self) -> None:
        if self._call is None:
            stub = self._session.stub("registry", RegistryServiceStub)
            self._call = stub.Watch(self._state.request(), metadata=self._session.metadata)
            if self._closing.is_set():  # by another thread that saw no call to cancel yet
                self._call.cancel()
        try:
            self._events.extend(self._state.feed(next(self._call)))
        except StopIteration:
            self._pause(Unavailable("the registry ended the watch"))
        except grpc.RpcError as error:
            self._pause(self._session.error("registry", error))

    def _pause(self, error: GristmillError) -> None:
        self._call = None
        if not self._closing.is_set():
            self._closing.wait(self._state.pause(error))
