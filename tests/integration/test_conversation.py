"""GenerateBidi on both servers: turns and history, barge-in and cancelling, bounds and ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import ErrorInfo
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from gristmill.generator.v1 import prompt_pb2, result_pb2
from gristmill.generator.v1.sampling_params_pb2 import SamplingParams

from services.generator.conversation import Bounds, Conversations
from services.generator.engines.fake import FakeEngine
from services.generator.generator import Generator
from services.generator.servicer import GeneratorServicer
from services.runtime.errors import BackendFailed
from services.runtime.server import Service
from tests.harness import Served, details, reason, serve, soon
from tests.unit.generator.stack import ScriptedEngine, generator, said, script, serving, until

Code = grpc.StatusCode
CONTEXT = 4000


@dataclass
class Talk:
    """One stream, and what is left of it to read."""

    call: Any
    seen: list[pb.GenerateBidiResponse] = field(default_factory=list)

    async def open(self, *history: prompt_pb2.ChatMessage, **params: Any) -> None:
        """Begin."""
        opening = pb.OpenConversation(history=history, params=SamplingParams(**params))
        await soon(self.call.write(pb.GenerateBidiRequest(open=opening)))

    async def turn(self, turn_id: str, content: str, **more: Any) -> None:
        """Say something."""
        message = prompt_pb2.ChatMessage(role=prompt_pb2.ROLE_USER, content=content)
        turn = pb.Turn(id=turn_id, messages=[message], **more)
        await soon(self.call.write(pb.GenerateBidiRequest(turn=turn)))

    async def cancel(self, turn_id: str = "") -> None:
        """Enough."""
        await soon(self.call.write(pb.GenerateBidiRequest(cancel=pb.CancelTurn(id=turn_id))))

    async def read(self) -> pb.GenerateBidiResponse:
        """The next message."""
        response = await soon(self.call.read())
        assert response is not grpc.aio.EOF, "the stream has ended"
        self.seen.append(response)
        return response

    async def answer(self, turn_id: str) -> tuple[str, pb.GenerateBidiResponse]:
        """The text of a turn and what ended it; every message must be its."""
        said_ = ""
        while True:
            response = await self.read()
            assert response.turn_id == turn_id
            kind = response.WhichOneof("event")
            if kind == "delta":
                assert response.delta.text
                said_ += response.delta.text
            elif kind != "started":
                return said_, response

    async def end(self) -> None:
        """Half-close: nothing more may come, and all is well."""
        await soon(self.call.done_writing())
        assert await soon(self.call.read()) is grpc.aio.EOF
        assert await soon(self.call.code()) is Code.OK


@dataclass
class Running:
    """A generator that is served."""

    served: Served
    generator: Generator
    conversations: Conversations

    def talk(self, **options: Any) -> Talk:
        """A conversation."""
        return Talk(rpc.GeneratorServiceStub(self.served.channel).GenerateBidi(**options))


@asynccontextmanager
async def running(
    engine: FakeEngine, transport: str, folder: Path, *, steps: bool = True, **bounds: Any
) -> AsyncIterator[Running]:
    """Serve `engine`, which steps by itself unless told not to."""

    async def step() -> None:
        while True:
            engine.step()
            await asyncio.sleep(0.001)

    stepping = asyncio.ensure_future(step() if steps else asyncio.sleep(0))
    conversations = Conversations()
    with generator(engine, context=CONTEXT) as one:
        servicer = GeneratorServicer(
            await serving(one, folder), conversations, bounds=Bounds(**bounds)
        )
        service = Service(
            "generator",
            servicers=[(rpc.add_GeneratorServiceServicer_to_server, servicer)],
            on_drain=[conversations.drain],
        )
        async with serve(service, transport) as served:
            yield Running(served, one, conversations)
            await served.idle()
            assert one.admission.items == 0, "a permit was not returned"
            assert not conversations.open
            assert not engine.running
    stepping.cancel()


def error_reason(response: pb.GenerateBidiResponse) -> str:
    """Why a turn failed."""
    assert response.WhichOneof("event") == "error"
    return str(details(response.error, ErrorInfo)[0].reason)


async def test_each_turn_is_answered_with_all_that_was_said_before(
    transport: str, tmp_path: Path
) -> None:
    """The fake repeats its prompt, which is the conversation so far."""
    async with running(FakeEngine(), transport, tmp_path) as r:
        talk = r.talk()
        await talk.open(prompt_pb2.ChatMessage(role=prompt_pb2.ROLE_SYSTEM, content="S."))
        await talk.turn("1", "one.")
        assert (await talk.answer("1"))[0] == "S.one."
        assert talk.seen[0].started.prompt_tokens == 6
        await talk.turn("2", "two.")
        text, last = await talk.answer("2")
        assert text == "S.one.S.one.two."
        finished = last.finished
        assert finished.choices[0].finish_reason == result_pb2.FINISH_REASON_LENGTH
        assert finished.usage == result_pb2.Usage(
            prompt_tokens=16, cached_tokens=6, completion_tokens=16
        )
        await talk.end()


async def test_the_prefix_is_used_again(transport: str, tmp_path: Path) -> None:
    async with running(FakeEngine(), transport, tmp_path) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("1", "x" * 50)
        await talk.answer("1")
        await talk.turn("2", "y")
        _, last = await talk.answer("2")
        assert last.finished.usage.cached_tokens == 50
        await talk.end()


async def test_barge_in_ends_the_answer_and_keeps_what_it_said(
    transport: str, tmp_path: Path
) -> None:
    engine = FakeEngine()
    async with running(engine, transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("1", "abcdef")
        assert (await talk.read()).HasField("started")
        for letter in "ab":
            await until(lambda: engine.running)
            engine.step()
            assert (await talk.read()).delta.text == letter
        await talk.turn("2", "Z")
        text, last = await talk.answer("1")
        assert text == ""
        assert last.finished.choices[0].finish_reason == result_pb2.FINISH_REASON_CANCELLED
        assert last.finished.usage.completion_tokens == 2
        assert (await talk.read()).started.prompt_tokens == len("abcdef" + "ab" + "Z")
        await until(lambda: engine.aborted == [1])
        await talk.cancel("2")
        await talk.answer("2")
        await talk.end()


@pytest.mark.parametrize("turn_id", ["", "1"])
async def test_a_turn_can_be_cancelled(transport: str, tmp_path: Path, turn_id: str) -> None:
    engine = FakeEngine()
    async with running(engine, transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("1", "abcdef")
        assert (await talk.read()).HasField("started")
        await talk.cancel(turn_id)
        _, last = await talk.answer("1")
        assert last.finished.choices[0].finish_reason == result_pb2.FINISH_REASON_CANCELLED
        await talk.cancel("nobody")
        await talk.end()


async def test_turns_that_were_overtaken_before_they_began_are_cancelled(
    transport: str, tmp_path: Path
) -> None:
    engine = FakeEngine()
    async with running(engine, transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("0", "first")
        assert (await talk.read()).HasField("started")
        for number in range(1, 6):
            await talk.turn(str(number), "x")
        for number in range(5):
            _, last = await talk.answer(str(number))
            assert last.finished.choices[0].finish_reason == result_pb2.FINISH_REASON_CANCELLED
        started = await talk.read()
        assert started.turn_id == "5"
        # One that had begun when the next came stays in the history, one that had not does not.
        assert len("first" + "x") <= started.started.prompt_tokens <= len("first" + 5 * "x")
        await talk.cancel()
        await talk.answer("5")
        await talk.end()


async def test_a_turn_that_fails_leaves_no_trace(transport: str, tmp_path: Path) -> None:
    engine = ScriptedEngine(script("ok."), [said("a"), BackendFailed("no")], script("ok."))
    async with running(engine, transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("1", "one.")
        assert (await talk.answer("1"))[0] == "ok."
        await talk.turn("2", "bad.")
        text, last = await talk.answer("2")
        assert (text, error_reason(last)) == ("a", "BACKEND_FAILED")
        assert last.error.code == code_pb2.INTERNAL
        await talk.turn("3", "two.")
        started = await talk.read()
        assert started.started.prompt_tokens == len("one.ok.two.")
        assert (await talk.answer("3"))[0] == "ok."
        await talk.end()


@pytest.mark.parametrize(
    ("bounds", "turns", "wanted"),
    [
        ({"max_turns": 1}, ["a", "b"], "turn"),
        ({"max_history_bytes": 1024}, ["a" * 600, "b" * 600], "turn.messages"),
    ],
)
async def test_a_conversation_is_bounded(
    transport: str, tmp_path: Path, bounds: dict[str, int], turns: list[str], wanted: str
) -> None:
    async with running(FakeEngine(), transport, tmp_path, **bounds) as r:
        talk = r.talk()
        await talk.open(max_tokens=1)
        first, second = turns
        await talk.turn("1", first)
        assert (await talk.answer("1"))[1].HasField("finished")
        await talk.turn("2", second)
        _, last = await talk.answer("2")
        assert error_reason(last) == "INVALID_FIELD"
        assert wanted in last.error.message
        await talk.end()


async def test_a_turn_has_its_own_time(transport: str, tmp_path: Path) -> None:
    async with running(FakeEngine(), transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        turn = pb.Turn(id="1", messages=[prompt_pb2.ChatMessage(role=2, content="x")])
        turn.timeout.FromTimedelta(timedelta(milliseconds=30))
        await soon(talk.call.write(pb.GenerateBidiRequest(turn=turn)))
        _, last = await talk.answer("1")
        assert error_reason(last) == "DEADLINE_EXPIRED"
        await talk.end()


async def test_nobody_who_says_nothing_is_waited_for(transport: str, tmp_path: Path) -> None:
    async with running(FakeEngine(), transport, tmp_path, idle_timeout_s=0.05) as r:
        talk = r.talk()
        await talk.open()
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await soon(talk.call.read())
        assert ended.value.code() is Code.DEADLINE_EXCEEDED
        assert reason(ended.value) == "DEADLINE_EXPIRED"


async def test_half_closing_finishes_the_turn(transport: str, tmp_path: Path) -> None:
    async with running(FakeEngine(), transport, tmp_path) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("1", "to the end")
        await soon(talk.call.done_writing())
        assert (await talk.answer("1"))[0] == "to the end"
        assert await soon(talk.call.read()) is grpc.aio.EOF


async def test_what_comes_before_the_beginning_ends_the_stream(
    transport: str, tmp_path: Path
) -> None:
    async with running(FakeEngine(), transport, tmp_path) as r:
        for twice in (False, True):
            talk = r.talk()
            if twice:
                await talk.open()
                await talk.open()
            else:
                await talk.turn("1", "x")
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await soon(talk.call.read())
            assert ended.value.code() is Code.INVALID_ARGUMENT
            assert reason(ended.value) == "INVALID_FIELD"


async def test_several_answers_to_one_turn_are_refused(transport: str, tmp_path: Path) -> None:
    async with running(FakeEngine(), transport, tmp_path) as r:
        talk = r.talk()
        await talk.open(n=2)
        await talk.turn("1", "x")
        _, last = await talk.answer("1")
        assert "params.n" in last.error.message
        await talk.turn("2", "x", params=SamplingParams(n=1))
        assert (await talk.answer("2"))[1].HasField("finished")
        await talk.end()


async def test_leaving_leaves_nothing_behind(transport: str, tmp_path: Path) -> None:
    engine = FakeEngine()
    async with running(engine, transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("1", "abc")
        assert (await talk.read()).HasField("started")
        await until(lambda: engine.running)
        talk.call.cancel()
        await until(lambda: engine.aborted == [1])
        await until(lambda: not r.conversations.open)


async def test_a_drain_finishes_the_turn_and_says_why_it_ends(
    transport: str, tmp_path: Path
) -> None:
    engine = FakeEngine()
    async with running(engine, transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        await talk.turn("1", "a")
        assert (await talk.read()).HasField("started")
        await until(lambda: engine.running)
        r.conversations.drain()
        engine.step()
        assert (await talk.answer("1"))[0] == "a"
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await soon(talk.call.read())
        assert ended.value.code() is Code.UNAVAILABLE
        assert reason(ended.value) == "DRAINING"


@pytest.mark.parametrize("round_", range(5))
async def test_a_turn_that_is_overtaken_as_it_begins_is_cancelled(
    transport: str, tmp_path: Path, round_: int
) -> None:
    engine = FakeEngine()
    async with running(engine, transport, tmp_path, steps=False) as r:
        talk = r.talk()
        await talk.open()
        for number in range(4):
            await talk.turn(str(number), "x")
        seen: dict[str, Any] = {}
        while len(seen) < 3:
            response = await talk.read()
            if response.HasField("finished"):
                seen[response.turn_id] = response.finished.choices[0].finish_reason
        assert seen == dict.fromkeys("012", result_pb2.FINISH_REASON_CANCELLED)
        await talk.cancel()
        await talk.answer("3")
        await talk.end()
