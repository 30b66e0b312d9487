"""One GenerateBidi stream: turns in, answers out, one at a time, with the history between them.

A turn that comes while another is answered ends that answer (barge-in); what it had said stays in
the history. A turn that fails leaves no trace there. The model is resolved anew for each turn.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Self

import structlog
from gristmill.generator.v1 import generator_service_pb2 as pb

from services.generator import converters as to
from services.generator.generation import Asked, Choice, Generation, Interrupted, Prompt
from services.generator.generator import Generator
from services.generator.tools import Toolbox
from services.inference.serving import Serving
from services.runtime import status
from services.runtime.call import Call
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    BackendFailed,
    DeadlineExpired,
    Draining,
    GristmillError,
    InvalidRequest,
)

WAITING_TURNS = 8
"""Turns read ahead of the one that is answered; each but the last has been overtaken already."""
_log = structlog.get_logger()
Responses = AsyncGenerator[pb.GenerateBidiResponse, None]


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long and how large a conversation may be."""

    max_turns: int = 256
    max_history_bytes: int = 2**20
    idle_timeout_s: float = 600.0
    default_timeout_s: float = 120.0


@dataclass(slots=True, eq=False)
class _Turn:
    """One turn on its way."""

    message: pb.Turn
    deadline: Deadline
    generation: Generation | None = None
    stopped: bool = False

    def stop(self) -> None:
        """End its answer, begun or not."""
        self.stopped = True
        if self.generation is not None:
            self.generation.interrupt()


class Conversations:
    """The open ones: a drain must end them."""

    def __init__(self) -> None:
        self.open: set[Conversation] = set()
        self.draining = False

    def drain(self) -> None:
        """Each finishes the turn in hand and takes no more."""
        self.draining = True
        for one in list(self.open):
            one.drain()


class Conversation:
    """One stream; `asked` makes what is asked of a turn."""

    def __init__(
        self,
        serving: Serving[Generator],
        conversations: Conversations,
        call: Call,
        asked: Callable[..., Asked],
        bounds: Bounds,
    ) -> None:
        self._serving = serving
        self._conversations = conversations
        self._call = call
        self._asked = asked
        self._bounds = bounds
        self._open: pb.OpenConversation | None = None
        self._toolbox: Toolbox | None = None
        self._history: list[dict[str, Any]] = []
        self._turns = 0
        self._waiting: deque[_Turn] = deque()
        self._current: _Turn | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._draining = conversations.draining

    async def __aenter__(self) -> Self:
        self._conversations.open.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._conversations.open.discard(self)
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    def drain(self) -> None:
        """Read no more; the turn in hand is finished."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()

    async def answers(self, requests: AsyncIterator[pb.GenerateBidiRequest]) -> Responses:
        """The answers; ends after the last turn that was sent, or raises what ended it."""
        self._reader = reader = asyncio.ensure_future(self._read(requests))
        reader.add_done_callback(lambda _: self._changed.set())
        if self._draining:
            reader.cancel()
        while (turn := await self._next(reader)) is not None:
            self._current = turn
            try:
                async with aclosing(self._answer(turn)) as responses:
                    async for response in responses:
                        yield response
            finally:
                self._current = None
        if reader.cancelled():
            raise Draining("this server is shutting down; begin again elsewhere")
        if error := reader.exception():
            raise error

    async def _next(self, reader: "asyncio.Task[None]") -> _Turn | None:
        """The next turn; None when there will be none."""
        try:
            async with asyncio.timeout(self._bounds.idle_timeout_s):
                while not self._waiting:
                    if reader.done():
                        return None
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            idle_s = self._bounds.idle_timeout_s
            raise DeadlineExpired(f"no turn came for {idle_s:g} s") from None
        self._room.set()
        return self._waiting.popleft()

    async def _read(self, requests: AsyncIterator[pb.GenerateBidiRequest]) -> None:
        async for request in requests:
            kind = request.WhichOneof("message")
            if (kind == "open") != (self._open is None):
                said = "is the first message, and only the first"
                raise InvalidRequest.field("open", said)
            if kind == "open":
                self._begin(request.open)
            elif kind == "turn":
                await self._take(request.turn)
            elif kind == "cancel":
                self._cancel(request.cancel.id)
            else:
                raise InvalidRequest.field("message", "is required")

    def _begin(self, opened: pb.OpenConversation) -> None:
        self._open = opened
        self._history = list(to.messages_in(opened.history, "open.history"))
        tools = to.tools_in(opened.tools, "open.tools")
        self._toolbox = Toolbox(tools) if tools else None

    async def _take(self, message: pb.Turn) -> None:
        """Let a turn wait; what is answered now is answered no further."""
        under_way = [*self._waiting, *([self._current] if self._current else [])]
        if message.id in {turn.message.id for turn in under_way}:
            raise InvalidRequest.field("turn.id", "is that of a turn under way")
        for turn in under_way:
            turn.stop()
        self._waiting.append(_Turn(message, self._until(message)))
        self._changed.set()
        while len(self._waiting) > WAITING_TURNS:
            self._room.clear()
            await self._room.wait()

    def _cancel(self, turn_id: str) -> None:
        for turn in [*self._waiting, *([self._current] if self._current else [])]:
            if turn_id in ("", turn.message.id):
                turn.stop()

    def _until(self, message: pb.Turn) -> Deadline:
        """When nobody waits any more for the answer; never after the stream ends."""
        given = message.timeout.ToTimedelta().total_seconds() if message.HasField("timeout") else 0
        deadline = Deadline.after(given or self._bounds.default_timeout_s)
        return min(deadline, self._call.deadline) if self._call.bounded else deadline

    async def _answer(self, turn: _Turn) -> Responses:
        """What comes of one turn; what fails is its own."""
        said = turn.message.id
        try:
            async with aclosing(self._generated(turn)) as responses:
                async for response in responses:
                    response.turn_id = said
                    yield response
        except GristmillError as error:
            yield self._failed(said, error)
        except Exception as error:
            _log.exception("turn not answered", request_id=self._call.request_id)
            yield self._failed(said, BackendFailed(f"{type(error).__name__}"))

    def _failed(self, turn_id: str, error: GristmillError) -> pb.GenerateBidiResponse:
        answer = status.to_status(error, self._call.request_id)
        return pb.GenerateBidiResponse(turn_id=turn_id, error=answer)

    async def _generated(self, turn: _Turn) -> Responses:
        assert self._open is not None  # noqa: S101  # no turn is taken before
        message = turn.message
        if turn.stopped:
            yield pb.GenerateBidiResponse(finished=pb.Finished(choices=[_cancelled()]))
            return
        said = to.messages_in(message.messages, "turn.messages")
        self._check_bounds(said)
        params = message.params if message.HasField("params") else self._open.params
        wanted = to.wanted(self._open.model, self._call.metadata)
        loaded_use = await self._serving.ready(wanted, turn.deadline)
        with loaded_use as loaded:
            generator = to.runner(loaded)
            asked = self._asked(params, message.priority, self._call, turn.deadline)
            if asked.n > 1:
                raise InvalidRequest.field("params.n", "a conversation goes on from one answer")
            prompt = Prompt(messages=(*self._history, *said), toolbox=self._toolbox)
            generator.check(asked.sampling)
            generation, sampling = await generator.prepare(prompt, asked, "turn")
            turn.generation = generation
            if turn.stopped:  # while it was prepared
                generation.interrupt()
            with generator.admit(generation, sampling, asked) as permit:
                yield pb.GenerateBidiResponse(started=to.started_out(loaded, generation))
                stream = generator.stream(generation, sampling, asked, permit)
                try:
                    async with aclosing(stream) as deltas:  # type: ignore[type-var]
                        async for delta in deltas:
                            out = to.delta_out(delta, generator.engine.tokenizer)
                            yield pb.GenerateBidiResponse(delta=out)
                except Interrupted:
                    for choice in generation.choices:
                        choice.finish = "cancelled"
            self._remember(said, generation.choices)
            yield pb.GenerateBidiResponse(finished=to.finished_out(generation))

    def _check_bounds(self, said: Sequence[dict[str, Any]]) -> None:
        self._turns += 1
        if self._turns > self._bounds.max_turns:
            most = self._bounds.max_turns
            raise InvalidRequest.field("turn", f"a conversation has at most {most} turns")
        size = sum(_size(message) for message in (*self._history, *said))
        if size > self._bounds.max_history_bytes:
            most = self._bounds.max_history_bytes
            raise InvalidRequest.field(
                "turn.messages", f"the conversation has {size} bytes with it, at most {most} fit"
            )

    def _remember(self, said: Sequence[dict[str, Any]], choices: Sequence[Choice]) -> None:
        self._history += said
        answer: dict[str, Any] = {"role": "assistant", "content": "".join(c.text for c in choices)}
        calls = [to.call_in(call) for choice in choices for call in choice.calls]
        if calls:
            answer["tool_calls"] = calls
        if answer["content"] or calls:
            self._history.append(answer)


def _size(message: dict[str, Any]) -> int:
    calls = message.get("tool_calls", ())
    return len(message["content"].encode(errors="replace")) + sum(len(str(call)) for call in calls)


def _cancelled() -> Any:
    return to.choice_out(Choice(0, finish="cancelled"))
