"""The bidi stream of the async client: sends from any task, gives results to one."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Self, Unpack

from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1.classifier_service_pb2_grpc import ClassifierServiceStub

from gristmill_client import _classify_messages as messages
from gristmill_client._aio_calls import BidiMessages
from gristmill_client._aio_session import AsyncSession
from gristmill_client._aio_streams import AsyncStream, Closing
from gristmill_client._bidi import Defaults, Outbox, identified, no_room, unanswered
from gristmill_client.errors import GristmillError
from gristmill_client.prediction import ClassifyOptions, Item, Prediction


class AsyncClassifyBidiStream(Closing):
    """Items out, (id, Prediction) in as each is done: the twin of ClassifyBidiStream.

    Any number of tasks may send while one iterates.
    """

    def __init__(
        self, session: AsyncSession, defaults: Defaults, stream_timeout: float | None
    ) -> None:
        self._session = session
        self._defaults = defaults
        self._sending = _Sending()
        call = session.stub("classifier", ClassifierServiceStub).ClassifyBidi(
            self._sending, timeout=stream_timeout, metadata=session.metadata
        )
        self._call: BidiMessages[pb.ClassifyBidiResponse] = BidiMessages(call, self._sending.end)
        self._answers = AsyncStream(
            session, "classifier", self._call, messages.identified_predictions
        )
        self._ready: deque[tuple[str, Prediction]] = deque()
        self._closed = False

    async def send(
        self,
        item: Item,
        *,
        id: str | None = None,  # noqa: A002  # the contract's name
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> str:
        """As ClassifyBidiStream.send; waits for another task to iterate where there is no room."""
        return (await self._send([(id, item)], model, timeout, options))[0]

    async def send_many(
        self,
        items: Mapping[str, Item] | Iterable[Item],
        *,
        model: str | None = None,
        timeout: float | None = None,
        **options: Unpack[ClassifyOptions],
    ) -> list[str]:
        """As ClassifyBidiStream.send_many."""
        return await self._send(identified(items), model, timeout, options)

    async def close_send(self) -> None:
        """Says that nothing more will be sent: the iteration ends when all is answered."""
        self._sending.close()

    @property
    def has_room(self) -> bool:
        """As ClassifyBidiStream.has_room."""
        return self._sending.has_room

    @property
    def pending(self) -> tuple[str, ...]:
        """As ClassifyBidiStream.pending."""
        return self._sending.pending

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, Prediction]:
        if self._closed:
            raise StopAsyncIteration
        while not self._ready:
            try:
                self._ready.extend(await anext(self._answers))
            except StopAsyncIteration:
                if self.pending and not self._closed:
                    raise unanswered() from None
                raise
        id_, prediction = self._ready.popleft()
        self._sending.answered(id_)
        return id_, prediction

    async def close(self) -> None:
        """Cancels the call; the server stops working on it. Harmless when it has ended."""
        self._closed = True
        self._sending.end()
        await self._answers.close()

    async def _send(
        self,
        items: Iterable[tuple[str | None, Item]],
        model: str | None,
        timeout: float | None,
        options: ClassifyOptions,
    ) -> list[str]:
        request, patience_s = self._defaults.message(items, model, timeout, options)
        ids = await self._sending.put(request, patience_s)
        if ids is None:
            raise await self._end()
        return ids

    async def _end(self) -> GristmillError | RuntimeError:
        """Why nothing more can be sent."""
        if self._closed:
            return RuntimeError("the stream is closed")
        error = await self._call.failure()
        return unanswered() if error is None else self._session.error("classifier", error)


def open_stream(
    session: AsyncSession,
    model: str | None,
    timeout: float | None,
    stream_timeout: float | None,
    options: ClassifyOptions,
) -> AsyncClassifyBidiStream:
    timeout_s = session.config.timeout_s if timeout is None else timeout
    return AsyncClassifyBidiStream(session, Defaults(model, timeout_s, options), stream_timeout)


class _Sending:
    """The outbox between the tasks that send and gRPC's own, which pulls; holds no call."""

    def __init__(self) -> None:
        self._outbox = Outbox()
        self._changed = asyncio.Event()

    @property
    def has_room(self) -> bool:
        return self._outbox.settled

    @property
    def pending(self) -> tuple[str, ...]:
        return tuple(self._outbox.pending)

    async def put(self, request: pb.ClassifyBidiRequest, patience_s: float) -> list[str] | None:
        """The ids, or None where the call has ended. Raises DeadlineExceeded."""
        if not self._outbox.settled:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._until(lambda: self._outbox.settled)
        if not self._outbox.settled:
            raise no_room(patience_s)
        ids = self._outbox.put(request)
        self._changed.set()
        return ids

    def answered(self, id: str) -> None:  # noqa: A002  # the contract's name
        self._outbox.answered(id)
        self._changed.set()

    def close(self) -> None:
        self._outbox.half_closed = True
        self._changed.set()

    def end(self) -> None:
        self._outbox.ended = True
        self._changed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pb.ClassifyBidiRequest:
        await self._until(lambda: self._outbox.ready)
        request = self._outbox.take()
        self._changed.set()
        if request is None:
            raise StopAsyncIteration
        return request

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            self._changed.clear()
            await self._changed.wait()
