"""Messages that share what they compute: each ends as it would alone, and sooner."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.cache.flight import Flights, Outcome
from services.inference.cache.sharing import Settle, share
from services.inference.cache.values import Value
from services.inference.scoring import Outputs
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    BackendFailed,
    DeadlineExpired,
    DeadlineTooShort,
    GristmillError,
    InvalidRequest,
    Overloaded,
)

NAMES = ["a", "b", "c"]
VALUES = {name: Value.of(Outputs({"p": np.ones((1, 2))}), 0) for name in NAMES}
ERRORS = {name: InvalidRequest(f"{name} is bad") for name in NAMES}
LONG_S = 1000.0


class Loop(asyncio.SelectorEventLoop):
    """A loop on which time passes when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def settle(self, seconds: float = 0.0) -> None:
        """Let time pass, and then everything happen that can."""
        self.now += seconds
        self.run_until_complete(self._turns())

    async def _turns(self) -> None:
        """A turn may only show that a timer is due, so that two in a row must be idle."""
        idle = 0
        while idle < 2:
            await asyncio.sleep(0)
            idle = 0 if self._ready else idle + 1


@dataclass(eq=False)
class Run:
    """One call of a message's `compute`, which the test holds."""

    message: "Message"
    indices: list[int]
    settle: Settle
    end: asyncio.Future[None]
    left: set[int]
    over: bool = False

    def give(self, index: int, outcome: Outcome) -> None:
        """Settle an item; the last ends the call."""
        self.left.remove(index)
        if self.settle(index, outcome):
            self.message.hear(index, outcome)
        if not self.left and not self.end.done():
            self.end.set_result(None)


@dataclass(eq=False)
class Message:
    """A caller with its items."""

    names: Sequence[str | None]
    order: tuple[int, float]
    task: asyncio.Task[None] = field(init=False)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    cleanup: asyncio.Future[None] | None = None
    """What its computing takes to end."""
    doomed: type[BaseException] | None = None
    """How the test has it end, if not well."""

    def hear(self, index: int, outcome: Outcome) -> None:
        assert index not in self.outcomes, "told twice"
        self.outcomes[index] = outcome

    def open(self, name: str) -> bool:
        """Whether it still wants to know this."""
        return not self.task.done() and any(
            one == name and at not in self.outcomes for at, one in enumerate(self.names)
        )

    def computes(self, name: str) -> bool:
        """Whether it computes this."""
        return any(self.names[at] == name for run in self.runs if not run.over for at in run.left)


class Suite:
    """Messages over one table of flights."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.flights = Flights()
        self.messages: list[Message] = []

    def ask(self, *names: str | None, priority: int = 5, within_s: float = LONG_S) -> Message:
        message = Message(names, (priority, self.loop.now + within_s))
        self.messages.append(message)
        message.task = self.loop.create_task(self._share(message))
        self.loop.settle()
        return message

    async def _share(self, message: Message) -> None:
        wanted = [(at, name and name.encode()) for at, name in enumerate(message.names)]

        async def compute(indices: Sequence[int], settle: Settle) -> None:
            run = Run(message, list(indices), settle, self.loop.create_future(), set(indices))
            message.runs.append(run)
            try:
                await run.end
            finally:
                run.over = True
                if message.cleanup is not None:
                    await message.cleanup

        deadline = Deadline(message.order[1])
        told = message.hear
        await share(self.flights, wanted, message.order, deadline, compute, told, self.loop.time)

    def runs(self) -> list[Run]:
        """Every call of `compute` that has not ended."""
        return [run for message in self.messages for run in message.runs if not run.over]

    def close(self) -> None:
        for message in self.messages:
            message.task.cancel()
        self.loop.settle()
        assert len(self.flights) == 0
        assert all(message.task.done() for message in self.messages)
        assert not self.runs()
        assert asyncio.all_tasks(self.loop) == set()
        self.loop.close()


@pytest.fixture
def suite() -> Iterator[Suite]:
    one = Suite()
    yield one
    one.close()


def ended(message: Message) -> BaseException | None:
    """How a message that has ended did so."""
    assert message.task.done()
    if message.task.cancelled():
        return asyncio.CancelledError()
    return message.task.exception()


def give(suite: Suite, run: Run, index: int, outcome: Outcome) -> None:
    run.give(index, outcome)
    suite.loop.settle()


def refuse(suite: Suite, run: Run, error: GristmillError) -> None:
    run.end.set_exception(error)
    suite.loop.settle()


def test_a_message_alone_computes_all_in_one_go_and_in_its_own_task(suite: Suite) -> None:
    message = suite.ask("a", "b", None)
    (run,) = message.runs
    assert run.indices == [0, 1, 2]
    assert asyncio.all_tasks(suite.loop) == {message.task}
    give(suite, run, 0, VALUES["a"])
    give(suite, run, 2, VALUES["c"])
    assert not message.task.done()
    give(suite, run, 1, ERRORS["b"])
    assert ended(message) is None
    assert message.outcomes == {0: VALUES["a"], 1: ERRORS["b"], 2: VALUES["c"]}


def test_the_second_of_equal_messages_computes_nothing(suite: Suite) -> None:
    first, second = suite.ask("a", "b"), suite.ask("b", "a")
    assert second.runs == []
    give(suite, first.runs[0], 0, VALUES["a"])
    assert second.outcomes == {1: VALUES["a"]}, "at once, not when all is there"
    give(suite, first.runs[0], 1, VALUES["b"])
    assert ended(second) is None
    assert second.outcomes == {0: VALUES["b"], 1: VALUES["a"]}


def test_equal_items_of_a_message_are_computed_once(suite: Suite) -> None:
    message = suite.ask("a", "b", "a", "a")
    assert message.runs[0].indices == [0, 1]
    give(suite, message.runs[0], 0, VALUES["a"])
    assert sorted(message.outcomes) == [0, 2, 3]
    give(suite, message.runs[0], 1, VALUES["b"])
    assert ended(message) is None


def test_equal_items_fail_together_whatever_the_error(suite: Suite) -> None:
    message = suite.ask("a", "a")
    error = Overloaded("full")
    give(suite, message.runs[0], 0, error)
    assert ended(message) is None
    assert message.outcomes == {0: error, 1: error}


def test_items_without_a_key_are_everybody_s_own(suite: Suite) -> None:
    first, second = suite.ask(None), suite.ask(None)
    assert [first.runs[0].indices, second.runs[0].indices] == [[0], [0]]


def test_what_a_message_waits_for_and_what_it_computes_go_on_together(suite: Suite) -> None:
    first, second = suite.ask("a"), suite.ask("a", "b")
    assert second.runs[0].indices == [1]
    give(suite, second.runs[0], 1, VALUES["b"])
    assert not second.task.done()
    give(suite, first.runs[0], 0, VALUES["a"])
    assert ended(second) is None


@pytest.mark.parametrize("error", [Overloaded("full"), DeadlineTooShort("late")], ids=repr)
def test_a_refusal_is_the_message_s_own(suite: Suite, error: GristmillError) -> None:
    first, second = suite.ask("a", "b"), suite.ask("a", "b")
    refuse(suite, first.runs[0], error)
    assert ended(first) is error
    assert second.runs[0].indices == [0, 1], "both at once, under one permit"
    give(suite, second.runs[0], 0, VALUES["a"])
    give(suite, second.runs[0], 1, VALUES["b"])
    assert ended(second) is None


def test_a_bug_of_one_is_not_told_to_others(suite: Suite) -> None:
    first, second = suite.ask("a"), suite.ask("a")
    first.runs[0].end.set_exception(ZeroDivisionError())
    suite.loop.settle()
    assert isinstance(ended(first), ZeroDivisionError)
    assert second.runs[0].indices == [0]


def test_who_is_cancelled_hands_over_at_once(suite: Suite) -> None:
    first, second, third = suite.ask("a"), suite.ask("a"), suite.ask("a")
    second.task.cancel()
    suite.loop.settle()
    assert third.runs == [], "who waited leaves nobody behind"
    first.task.cancel()
    suite.loop.settle()
    assert first.runs[0].over
    assert third.runs[0].indices == [0]
    give(suite, third.runs[0], 0, VALUES["a"])
    assert ended(third) is None


def test_who_takes_over_does_not_wait_for_how_the_other_ends(suite: Suite) -> None:
    other, first, second = suite.ask("b"), suite.ask("a", "b"), suite.ask("a")
    first.cleanup = suite.loop.create_future()
    first.task.cancel()
    suite.loop.settle()
    assert not first.task.done()
    assert second.runs[0].indices == [0]
    give(suite, second.runs[0], 0, VALUES["a"])
    assert ended(second) is None
    first.cleanup.set_result(None)
    suite.loop.settle()
    assert first.task.cancelled()
    give(suite, other.runs[0], 0, VALUES["b"])


def test_who_waits_gives_up_when_its_own_time_has_passed(suite: Suite) -> None:
    first, second = suite.ask("a", within_s=1), suite.ask("a", within_s=2)
    suite.loop.settle(1.99)
    assert not second.task.done()
    suite.loop.settle(0.01)
    assert isinstance(ended(second), DeadlineExpired)
    give(suite, first.runs[0], 0, VALUES["a"])
    assert ended(first) is None, "its own batcher tells it what it waited for too long"


def test_a_deadline_that_has_passed_already_waits_for_nothing(suite: Suite) -> None:
    suite.ask("a", within_s=-2)
    second = suite.ask("a", within_s=-1)
    assert isinstance(ended(second), DeadlineExpired)


def test_the_time_of_another_does_not_end_a_message(suite: Suite) -> None:
    first, second = suite.ask("a", within_s=1), suite.ask("a", within_s=2)
    suite.loop.settle(1)
    refuse(suite, first.runs[0], DeadlineExpired("the deadline passed"))
    assert second.runs[0].indices == [0]
    give(suite, second.runs[0], 0, VALUES["a"])
    assert ended(second) is None


@pytest.mark.parametrize("how", [{"priority": 1}, {"within_s": 1.0}], ids=str)
def test_the_more_urgent_computes_for_itself_and_then_for_all(
    suite: Suite, how: dict[str, Any]
) -> None:
    slow, urgent, waiting = suite.ask("a", "b"), suite.ask("a", **how), suite.ask("a")
    assert urgent.runs[0].indices == [0]
    assert waiting.runs == []
    give(suite, urgent.runs[0], 0, VALUES["a"])
    assert ended(urgent) is None
    assert ended(waiting) is None
    # What the slow one computes all the same is its own.
    give(suite, slow.runs[0], 0, VALUES["a"])
    give(suite, slow.runs[0], 1, VALUES["b"])
    assert ended(slow) is None


def test_the_more_urgent_takes_what_another_has_first_and_stops_computing(suite: Suite) -> None:
    slow, urgent = suite.ask("a"), suite.ask("a", priority=1)
    give(suite, slow.runs[0], 0, VALUES["a"])
    assert ended(urgent) is None
    assert urgent.outcomes == {0: VALUES["a"]}
    assert urgent.runs[0].over


def test_two_outcomes_in_one_turn_are_one(suite: Suite) -> None:
    slow, urgent = suite.ask("a"), suite.ask("a", priority=1)
    slow.runs[0].give(0, VALUES["a"])
    urgent.runs[0].give(0, VALUES["a"])
    suite.loop.settle()
    assert (ended(slow), ended(urgent)) == (None, None)


def test_who_is_asked_to_compute_and_told_in_one_turn_computes_nothing(suite: Suite) -> None:
    slow = suite.ask("a")
    urgent = suite.flights.join(b"a", (1, 0.0), lambda *_: None)
    waiting = suite.ask("a", "b", priority=4)
    suite.flights.leave(urgent)
    slow.runs[0].give(0, VALUES["a"])
    suite.loop.settle()
    assert waiting.outcomes == {0: VALUES["a"]}
    assert [run.indices for run in waiting.runs] == [[1]]
    give(suite, waiting.runs[0], 1, VALUES["b"])
    assert ended(waiting) is None


def test_what_was_computed_twice_is_told_once(suite: Suite) -> None:
    slow, urgent = suite.ask("a"), suite.ask("a", "b", priority=1)
    give(suite, slow.runs[0], 0, VALUES["a"])
    assert urgent.outcomes == {0: VALUES["a"]}
    give(suite, urgent.runs[0], 0, VALUES["a"])
    give(suite, urgent.runs[0], 1, VALUES["b"])
    assert ended(urgent) is None


def test_to_forget_an_item_is_a_bug_that_is_seen(suite: Suite) -> None:
    alone, waiting = suite.ask("a", "b"), suite.ask("b")
    alone.runs[0].end.set_result(None)
    suite.loop.settle()
    assert isinstance(ended(alone), RuntimeError)
    waiting.runs[0].end.set_result(None)
    suite.loop.settle()
    assert isinstance(ended(waiting), RuntimeError)


def test_nothing_wanted_is_nothing_computed(suite: Suite) -> None:
    message = suite.ask()
    assert ended(message) is None
    assert message.runs == []


GIVE_UPS = [Overloaded("full"), DeadlineTooShort("late")]


@settings(max_examples=80, stateful_step_count=40, deadline=None)
class Calls(RuleBasedStateMachine):
    """Messages come, are answered, refused and cancelled, and time passes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.suite = Suite()

    def running(self) -> list[Run]:
        return self.suite.runs()

    def live(self) -> list[Message]:
        return [message for message in self.suite.messages if not message.task.done()]

    @rule(
        names=st.lists(st.sampled_from([*NAMES, None]), max_size=4),
        priority=st.integers(4, 6),
        within_s=st.sampled_from([1.0, 2.0, 3.0]),
    )
    def ask(self, names: list[str | None], priority: int, within_s: float) -> None:
        self.suite.ask(*names, priority=priority, within_s=within_s)

    @precondition(lambda self: any(run.left for run in self.running()))
    @rule(draw=st.data(), outcome=st.sampled_from(["value", "error", "failed", "full"]))
    def give(self, draw: st.DataObject, outcome: str) -> None:
        run = draw.draw(st.sampled_from([run for run in self.running() if run.left]), "run")
        index = draw.draw(st.sampled_from(sorted(run.left)), "index")
        name = run.message.names[index] or "a"
        found: Outcome = {
            "value": VALUES[name],
            "error": ERRORS[name],
            "failed": BackendFailed(name),
            "full": GIVE_UPS[0],
        }[outcome]
        if outcome == "full":
            run.message.outcomes.setdefault(-1, found)  # it may have an error of its own
        give(self.suite, run, index, found)

    @precondition(lambda self: self.running())
    @rule(draw=st.data(), error=st.sampled_from(GIVE_UPS))
    def refuse(self, draw: st.DataObject, error: GristmillError) -> None:
        run = draw.draw(st.sampled_from(self.running()), "run")
        run.message.doomed = type(error)
        refuse(self.suite, run, error)
        assert ended(run.message) is error

    @precondition(lambda self: self.live())
    @rule(draw=st.data())
    def cancel(self, draw: st.DataObject) -> None:
        message = draw.draw(st.sampled_from(self.live()), "message")
        message.doomed = asyncio.CancelledError
        message.task.cancel()
        self.suite.loop.settle()
        assert isinstance(ended(message), asyncio.CancelledError)

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def wait(self, seconds: float) -> None:
        self.suite.loop.settle(seconds)
        for run in self.running():
            # As the batcher does.
            if run.message.order[1] <= self.suite.loop.now and not run.end.done():
                run.end.set_exception(DeadlineExpired("the deadline passed"))
        self.suite.loop.settle()

    @invariant()
    def whatever_is_open_is_computed_for_whoever_wants_it(self) -> None:
        for name in NAMES:
            computing = [m.order for m in self.live() if m.computes(name)]
            for message in self.live():
                if message.open(name):
                    assert computing, "nobody computes"
                    assert min(computing) <= message.order, "waits for somebody less urgent"

    @invariant()
    def nobody_ends_for_a_reason_that_is_not_its_own(self) -> None:
        for message in self.suite.messages:
            if not message.task.done():
                assert message.order[1] > self.suite.loop.now
                continue
            how = ended(message)
            if how is None:
                assert sorted(at for at in message.outcomes if at >= 0) == list(
                    range(len(message.names))
                )
            elif isinstance(how, DeadlineExpired):
                assert message.order[1] <= self.suite.loop.now
            else:
                assert message.doomed is type(how)

    @invariant()
    def everybody_has_the_outcome_of_its_own_items(self) -> None:
        for message in self.suite.messages:
            for at, outcome in message.outcomes.items():
                if at < 0:
                    continue
                name = message.names[at]
                if isinstance(outcome, Overloaded):
                    assert -1 in message.outcomes, "full for somebody else"
                elif isinstance(outcome, BackendFailed):
                    assert name is None or outcome.message == name
                elif name is not None:
                    assert outcome in (VALUES[name], ERRORS[name])

    @invariant()
    def whoever_has_ended_computes_no_more(self) -> None:
        assert all(not run.message.task.done() for run in self.running())

    def teardown(self) -> None:
        self.suite.close()


TestCalls = Calls.TestCase
