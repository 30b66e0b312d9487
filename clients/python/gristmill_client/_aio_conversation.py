"""The conversation of the async client: turns from any task, each answer to one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Self, Unpack

import grpc
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1.generator_service_pb2_grpc import GeneratorServiceStub

from gristmill_client._aio_calls import BidiMessages, is_cancelled
from gristmill_client._aio_session import AsyncSession
from gristmill_client._aio_streams import Closing
from gristmill_client._generate_messages import Said
from gristmill_client._turns import AnswerSoFar, Defaults, Turns, unfinished
from gristmill_client.completion import TurnOptions


class AsyncConversation(Closing):
    """Turns out, answers in, one at a time: the twin of Conversation.

    Any number of tasks may say, cancel and iterate, each its own answer. A task that is cancelled
    leaves the conversation as it is.
    """

    def __init__(
        self, session: AsyncSession, opening: pb.GenerateBidiRequest, defaults: Defaults
    ) -> None:
        self._session = session
        self._defaults = defaults
        self._turns = Turns()
        self._reading: asyncio.Task[None] | None = None
        # Of turns, whose number is bounded.
        self._sending: asyncio.Queue[pb.GenerateBidiRequest | None] = asyncio.Queue()
        self._sending.put_nowait(opening)
        call = session.stub("generator", GeneratorServiceStub).GenerateBidi(
            _each(self._sending), metadata=session.metadata
        )
        end = partial(self._sending.put_nowait, None)
        self._call: BidiMessages[pb.GenerateBidiResponse] = BidiMessages(call, end)

    def say(
        self,
        said: Said,
        *,
        turn_id: str | None = None,
        timeout: float | None = None,
        **options: Unpack[TurnOptions],
    ) -> AsyncAnswer:
        """As Conversation.say, for `async for` and `async with`; needs no await itself."""
        turn = self._defaults.turn(said, turn_id, timeout, options)
        answer = AsyncAnswer(self)
        self._send(self._turns.begin(turn, answer))
        return answer

    async def cancel(self) -> None:
        """As Conversation.cancel."""
        self._cancel()

    async def close(self) -> None:
        """Cancels the call; the server stops working on it. Harmless when it has ended."""
        self._turns.close()
        self._sending.put_nowait(None)
        self._call.cancel()
        if self._reading is not None:
            await asyncio.wait((self._reading,))

    def _cancel(self, answer: AsyncAnswer | None = None) -> None:
        self._send(self._turns.cancel(answer))

    def _send(self, request: pb.GenerateBidiRequest | None) -> None:
        if request is not None:
            self._sending.put_nowait(request)

    async def _next(self, answer: AsyncAnswer) -> str | None:
        """The next piece; None at the end.

        A task of its own reads for all that wait: one that is cancelled would cancel the call.
        """
        while not answer._settled:
            if self._reading is None or self._reading.done():
                self._reading = asyncio.ensure_future(self._read())
            reading = self._reading
            await asyncio.wait((reading,))
            reading.result()
        return answer._take()

    async def _read(self) -> None:
        """Takes one message to whom it belongs."""
        try:
            response = await self._call.read()
        except grpc.RpcError as error:
            self._turns.fail(partial(self._session.error, "generator", error))
        except asyncio.CancelledError:
            if is_cancelled():
                raise
            self._turns.fail(unfinished)  # closed, which nothing that is under way survives
        else:
            if isinstance(response, pb.GenerateBidiResponse):
                self._turns.hear(response)
            else:  # the end
                self._turns.fail(unfinished)


class AsyncAnswer(AnswerSoFar, Closing):
    """The answer to a turn, as it comes: the twin of Answer."""

    def __init__(self, conversation: AsyncConversation) -> None:
        super().__init__()
        self._conversation = conversation

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if (piece := await self._conversation._next(self)) is None:
            raise StopAsyncIteration
        return piece

    async def close(self) -> None:
        """Ends this answer alone, and the iteration at once. Harmless when it has ended."""
        self._conversation._cancel(self)
        self._drop()


async def _each(
    queue: asyncio.Queue[pb.GenerateBidiRequest | None],
) -> AsyncIterator[pb.GenerateBidiRequest]:
    while (request := await queue.get()) is not None:
        yield request
