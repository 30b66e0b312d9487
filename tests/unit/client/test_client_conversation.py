"""Both clients in conversation with a generator: turns, barge-in, failures and ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import prompt_pb2
from gristmill.generator.v1.sampling_params_pb2 import SamplingParams
from gristmill_client import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    InvalidRequest,
    ServerError,
    Unavailable,
    Usage,
)
from gristmill_client._generate_messages import open_request, turn

from services.generator.engines.fake import FakeEngine
from services.runtime.errors import BackendFailed
from tests.unit.client.conftest import Twin
from tests.unit.client.conversing import Served, conversing, in_thread
from tests.unit.client.fakes import SOON_S
from tests.unit.generator.stack import ScriptedEngine, said, script

Begin = Callable[..., "Talk"]


class Talk:
    """A conversation of either client, and its server."""

    def __init__(self, twin: Twin, served: Served, **options: Any) -> None:
        self.twin = twin
        self.served = served
        self.engine = served.engine
        self.conversation = twin.open(lambda: twin.client.converse(**options))

    def say(self, what: Any, **options: Any) -> Any:
        return self.twin.open(lambda: self.conversation.say(what, **options))

    def cancel(self) -> None:
        self.twin.run(self.conversation.cancel())

    def close(self) -> None:
        self.twin.close(self.conversation)

    def first(self, answer: Any) -> str:
        """The first piece, of an engine that does not step by itself."""
        self.wait(self.served.step)
        return str(self.twin.next(answer))

    def until(self, true: Callable[[], Any]) -> None:
        """Wait for what the server does."""
        self.wait(lambda: self.served.until(true))

    def wait(self, call: Callable[[], Any]) -> None:
        """Call the server, while the client's loop runs if it has one."""
        done = in_thread(call)
        if self.twin.runner is None:
            done.result(SOON_S)
        else:
            self.twin.runner.run(_result(done))

    def text(self, answer: Any) -> str:
        """The rest of an answer."""
        return "".join(self.twin.collect(answer))


async def _result(done: Future[Any]) -> None:
    await asyncio.wait_for(asyncio.wrap_future(done), SOON_S)


@pytest.fixture
def talk(twin: Callable[..., Twin], transport: str, tmp_path: Path) -> Iterator[Begin]:
    """Begins one: `talk(engine, system="S.", bounds={...}, steps=False)`."""
    with ExitStack() as stack:

        def begin(
            engine: FakeEngine, *, steps: bool = True, bounds: Any = None, **options: Any
        ) -> Talk:
            served = stack.enter_context(
                conversing(engine, transport, tmp_path, steps=steps, **(bounds or {}))
            )
            made = Talk(twin(generator=served.address), served, **options)
            stack.callback(made.close)
            return made

        yield begin


def test_each_turn_is_answered_with_all_that_was_said_before(talk: Begin) -> None:
    """The fake repeats its prompt, which is the conversation so far."""
    history = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
    one = talk(FakeEngine(), model="parrot", alias="live", system="S.", history=history)
    first = one.say("one.")
    assert one.text(first) == first.text == "S.Hi.Yes?one."
    assert (first.turn_id, first.finish_reason) == ("1", "length")
    assert (first.model, first.version, first.prompt_tokens) == ("parrot", 3, 13)
    assert first.usage == Usage(13, 0, 13)
    assert first.timings.total_us > 0
    assert len(first.token_ids) == 13
    second = one.say([{"role": "user", "content": "two."}], turn_id="t")
    assert one.text(second) == "S.Hi.Yes?one." * 2 + "two."
    assert second.turn_id == "t"
    assert one.text(second) == "", "a second iteration gives nothing"


def test_a_turn_while_one_is_answered_ends_that_answer(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False)
    first = one.say("abcdef")
    assert one.first(first) == "a"
    assert first.finish_reason is None
    second = one.say("Z", max_tokens=1)
    assert one.text(first) == ""
    assert (first.text, first.finish_reason) == ("a", "cancelled")
    assert one.first(second) == "a"
    assert one.text(second) == ""
    assert (second.prompt_tokens, second.finish_reason) == (len("abcdef" + "a" + "Z"), "length")
    assert one.engine.aborted == [1]


def test_an_answer_that_nobody_reads_does_not_hold_up_the_next(talk: Begin) -> None:
    one = talk(FakeEngine())
    left = one.say("x" * 3000)
    assert one.twin.next(left) == "x"
    last = one.say("x", max_tokens=1)
    assert one.text(last) == "x"
    assert left.finish_reason == "cancelled"
    assert one.text(left) == left.text[1:], "nothing is lost"


def test_cancelling_ends_the_answer_in_hand_and_the_conversation_goes_on(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False)
    one.cancel()
    first = one.say("abc")
    assert one.first(first) == "a"
    one.cancel()
    one.cancel()
    assert one.text(first) == ""
    assert (first.finish_reason, first.usage.completion_tokens) == ("cancelled", 1)
    one.cancel()
    second = one.say("Z", max_tokens=1)
    assert one.first(second) == "a"
    assert second.prompt_tokens == len("abc" + "a" + "Z")


def test_closing_an_answer_ends_it_alone(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False)
    first = one.say("abc")
    assert one.first(first) == "a"
    one.twin.close(first)
    one.twin.close(first)
    assert one.text(first) == ""
    one.until(lambda: one.engine.aborted == [1])
    second = one.say("Z", max_tokens=1)
    assert one.first(second) == "a"
    assert first.finish_reason == "cancelled"


def test_a_turn_that_fails_raises_its_own_error_and_leaves_no_trace(talk: Begin) -> None:
    engine = ScriptedEngine(script("ok."), [said("a"), BackendFailed("no")], script("ok."))
    one = talk(engine, steps=False)
    assert one.text(one.say("one.")) == "ok."
    bad = one.say("bad.")
    assert one.twin.next(bad) == "a"
    for _ in range(2):
        with pytest.raises(ServerError) as caught:
            one.twin.next(bad)
        assert caught.value.reason == "BACKEND_FAILED"
    assert (bad.text, bad.finish_reason) == ("a", None)
    good = one.say("two.")
    assert one.text(good) == "ok."
    assert good.prompt_tokens == len("one.ok.two.")


def test_a_turn_that_the_server_refuses_fails_alone(talk: Begin) -> None:
    one = talk(FakeEngine(), bounds={"max_history_bytes": 1024}, max_tokens=1)
    with pytest.raises(InvalidRequest, match=r"turn\.messages"):
        one.text(one.say("x" * 2000))
    assert one.text(one.say("x")) == "x"


def test_a_turn_has_its_own_time(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False, timeout=3000)
    late = one.say("x", timeout=0.03)
    with pytest.raises(DeadlineExceeded):
        one.twin.next(late)
    assert one.first(one.say("x")) == "x"


def test_what_ends_the_conversation_raises_from_the_answers(talk: Begin) -> None:
    one = talk(FakeEngine(), bounds={"idle_timeout_s": 0.05})
    assert one.text(one.say("x")) == "x"
    one.until(lambda: not one.served.open)
    for _ in range(70):
        with pytest.raises(DeadlineExceeded, match="no turn came"):
            one.twin.next(one.say("y"))


def test_a_server_that_drains_finishes_the_answer_in_hand(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False)
    first = one.say("ab")
    assert one.first(first) == "a"
    one.wait(one.served.drain)
    assert one.first(first) == "b"
    assert one.text(first) == ""
    assert first.finish_reason == "length"
    with pytest.raises(Unavailable) as caught:
        one.twin.next(one.say("c"))
    assert caught.value.reason == "DRAINING"


def test_leaving_a_conversation_cancels_it(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False)
    answer = one.say("abc")
    assert one.first(answer) == "a"
    one.close()
    one.close()
    one.until(lambda: one.engine.aborted == [1])
    assert one.text(answer) == ""
    assert (answer.text, answer.finish_reason) == ("a", None)
    with pytest.raises(RuntimeError, match="closed"):
        one.say("x")
    one.cancel()


def test_closing_the_client_cancels_its_conversations(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False)
    answer = one.say("abc")
    assert one.first(answer) == "a"
    one.twin.run(one.twin.client.close())
    with pytest.raises(Cancelled):
        one.twin.next(answer)
    with pytest.raises(Cancelled):
        one.twin.next(one.say("x"))


@pytest.mark.parametrize(
    ("what", "options", "error", "match"),
    [
        ("x", {"turn_id": "used"}, ValueError, "'used' is under way"),
        ("x", {"turn_id": ""}, ValueError, "1 to 128 characters"),
        ("x", {"turn_id": "i" * 129}, ValueError, "1 to 128 characters"),
        ("x", {"timeout": 0}, ValueError, "1 ms to 1 hour"),
        ("x", {"timeout": 3601}, ValueError, "1 ms to 1 hour"),
        ([], {}, ValueError, "1 to 128 messages"),
        ([{"role": "user"}] * 129, {}, ValueError, "1 to 128 messages"),
        ({"role": "user"}, {}, TypeError, "not one message"),
        ("x", {"n": 2}, TypeError, "no such option: n"),
        ("x", {"version": 2}, TypeError, "no such option: version"),
        ("x", {"regex": "a", "choices": ["b"]}, ValueError, "one constraint"),
    ],
)
def test_what_would_end_the_conversation_is_not_sent(
    talk: Begin, what: Any, options: Any, error: type[Exception], match: str
) -> None:
    one = talk(FakeEngine(), steps=False)
    answer = one.say("ab", turn_id="used")
    with pytest.raises(error, match=match):
        one.say(what, **options)
    assert one.first(answer) == "a"
    assert one.first(answer) == "b"
    assert one.text(answer) == ""
    assert one.first(one.say("x", turn_id="used")) == "a"


def test_turns_under_way_are_bounded(talk: Begin) -> None:
    one = talk(FakeEngine(), steps=False)
    first = one.say("x")
    one.until(lambda: one.engine.running)
    for _ in range(63):
        one.say("x")
    with pytest.raises(RuntimeError, match="64 turns are under way"):
        one.say("x")
    assert one.text(first) == ""
    assert one.say("x").turn_id == "65"


def test_what_a_conversation_is_opened_with_is_checked(twin: Callable[..., Twin]) -> None:
    client = twin()
    for options, error, match in (
        ({"n": 2}, TypeError, "no such option: n"),
        ({"tool_choice": "none"}, TypeError, "no such option: tool_choice"),
        ({"version": 1, "alias": "live"}, ValueError, "not both"),
        ({"timeout": 0}, ValueError, "1 ms to 1 hour"),
        ({"history": [{"role": "boss"}]}, ValueError, "ROLE_BOSS"),
    ):
        with pytest.raises(error, match=match):
            client.open(lambda options=options: client.client.converse(**options))


def test_the_opening_says_what_holds_for_all_turns() -> None:
    tools: Any = [{"name": "add"}]
    opened = open_request(
        "S.", [{"role": "user", "content": "Hi"}], "m", {"max_tokens": 5, "tools": tools}
    )
    assert opened.open == pb.OpenConversation(
        model={"model": "m"},
        history=[
            prompt_pb2.ChatMessage(role=prompt_pb2.ROLE_SYSTEM, content="S."),
            prompt_pb2.ChatMessage(role=prompt_pb2.ROLE_USER, content="Hi"),
        ],
        params=SamplingParams(max_tokens=5),
        tools=[prompt_pb2.Tool(name="add")],
    )


def test_a_turn_says_only_what_it_has_of_its_own() -> None:
    plain = turn("x", {"max_tokens": 5, "priority": 3}, {})
    assert (plain.HasField("params"), plain.priority) == (False, 3)
    urgent = turn("x", {"max_tokens": 5, "priority": 3}, {"priority": 1})
    assert (urgent.HasField("params"), urgent.priority) == (False, 1)


def test_parameters_of_a_turn_come_with_the_conversations() -> None:
    colder = turn("x", {"max_tokens": 5, "temperature": 1.5}, {"temperature": 0.0})
    assert colder.params == SamplingParams(max_tokens=5, temperature=0.0)
    default = turn("x", {"temperature": 1.5}, {"temperature": None})
    assert default.HasField("params")
    assert default.params == SamplingParams()


def test_a_constraint_of_a_turn_comes_without_the_conversations() -> None:
    other = turn("x", {"json_object": True, "seed": 1}, {"regex": "a+"})
    assert other.params.constraint.regex == "a+"
    assert other.params.seed == 1
    free = turn("x", {"json_object": True}, {"json_object": False})
    assert not free.params.HasField("constraint")


def test_a_thread_may_interrupt_what_another_reads(transport: str, tmp_path: Path) -> None:
    with conversing(FakeEngine(), transport, tmp_path, steps=False) as served:
        with Client(generator=served.address) as client, client.converse() as talk:
            first = talk.say("abc")
            served.step()
            assert next(first) == "a"
            reading = in_thread(lambda: list(first))
            second = talk.say("Z", max_tokens=1)
            also = in_thread(lambda: list(second))
            assert reading.result(SOON_S) == []
            served.step()
            assert also.result(SOON_S) == ["a"]
            assert (first.finish_reason, second.finish_reason) == ("cancelled", "length")


def test_leaving_ends_the_iteration_of_another_thread(transport: str, tmp_path: Path) -> None:
    with conversing(FakeEngine(), transport, tmp_path, steps=False) as served:
        with Client(generator=served.address) as client:
            with client.converse() as talk:
                answer = talk.say("abc")
                reading = in_thread(lambda: list(answer))
                served.step()
            assert reading.result(SOON_S) in ([], ["a"])


def test_a_conversation_that_is_dropped_is_cancelled(transport: str, tmp_path: Path) -> None:
    with conversing(FakeEngine(), transport, tmp_path, steps=False) as served:
        with Client(generator=served.address) as client:
            answer = client.converse().say("abc")
            served.step()
            assert next(answer) == "a"
            del answer
            gc.collect()
            served.until(lambda: served.engine.aborted == [1])


async def test_a_cancelled_task_leaves_the_conversation(transport: str, tmp_path: Path) -> None:
    with conversing(FakeEngine(), transport, tmp_path, steps=False) as served:
        async with AsyncClient(generator=served.address) as client, client.converse() as talk:
            first = talk.say("abc")
            await asyncio.to_thread(served.step)
            assert await anext(first) == "a"
            reading = asyncio.ensure_future(anext(first))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            await asyncio.to_thread(served.step)
            assert await anext(first) == "b"
            second = talk.say("Z", max_tokens=1)
            assert [piece async for piece in first] == []
            assert first.finish_reason == "cancelled"
            await asyncio.to_thread(served.step)
            assert [piece async for piece in second] == ["a"]


async def test_tasks_read_their_own_answers(transport: str, tmp_path: Path) -> None:
    async def pieces(answer: Any) -> list[str]:
        return [piece async for piece in answer]

    with conversing(FakeEngine(), transport, tmp_path, steps=False) as served:
        async with AsyncClient(generator=served.address) as client:
            async with client.converse() as talk:
                first = talk.say("ab")
                await asyncio.to_thread(served.step)
                assert await anext(first) == "a"
                readings = [
                    asyncio.ensure_future(pieces(answer))
                    for answer in (first, talk.say("ab", max_tokens=1))
                ]
                assert await readings[0] == []
                await asyncio.to_thread(served.step)
                assert await readings[1] == ["a"]
                left = asyncio.ensure_future(pieces(talk.say("ab")))
                await asyncio.sleep(0)
            assert await left == []
