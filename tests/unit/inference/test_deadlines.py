"""One timer for many deadlines: each is told once, in time, and only while somebody waits."""

import asyncio
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.deadlines import SPARE, Deadlines
from tests.harness import FakeClock, soon


@dataclass(eq=False)
class Thing:
    """Something that waits until `at`, and how often it was told that its deadline passed."""

    at: float
    future: "asyncio.Future[None]"
    passed: int = 0


@dataclass
class Watch:
    """Deadlines, and what they said."""

    clock: Any
    loop: asyncio.AbstractEventLoop
    told: list[Thing] = field(default_factory=list)
    deadlines: Deadlines[Thing] = field(init=False)

    def __post_init__(self) -> None:
        self.deadlines = Deadlines(self.clock, self.passed)

    def passed(self, thing: Thing) -> None:
        """A deadline passed: as the batcher does, nobody waits for the thing any more."""
        assert not thing.future.done(), "told of what was done"
        assert thing.at <= self.clock(), "told before its time"
        thing.passed += 1
        self.told.append(thing)
        self.done(thing)

    def add(self, after_s: float) -> Thing:
        """Something waits for so long."""
        thing = Thing(self.clock() + after_s, self.loop.create_future())
        self.deadlines.add(thing.at, thing)
        return thing

    def done(self, thing: Thing) -> None:
        """A thing is done."""
        thing.future.set_result(None)
        self.deadlines.forget()

    @property
    def held(self) -> int:
        """How many things are kept, done or not."""
        return len(self.deadlines._heap)


@pytest.fixture
async def clock() -> FakeClock:
    """Time that a test lets pass."""
    return FakeClock()


@pytest.fixture
async def watch(clock: FakeClock) -> Watch:
    """Deadlines on the test's own clock."""
    return Watch(clock, asyncio.get_running_loop())


@pytest.fixture
async def real() -> Watch:
    """Deadlines on the clock of the loop, whose timer rings."""
    loop = asyncio.get_running_loop()
    return Watch(loop.time, loop)


# On a clock of the test's own.


async def test_what_is_due_is_said_once_and_in_order(watch: Watch, clock: FakeClock) -> None:
    late, early, middle = watch.add(3), watch.add(1), watch.add(2)
    watch.deadlines.pass_due()
    assert watch.told == []
    clock.advance(2)
    watch.deadlines.pass_due()
    assert watch.told == [early, middle]
    clock.advance(5)
    watch.deadlines.pass_due()
    watch.deadlines.pass_due()
    assert watch.told == [early, middle, late]


async def test_a_deadline_is_passed_when_it_is_reached(watch: Watch, clock: FakeClock) -> None:
    thing = watch.add(2)
    clock.advance(1.999)
    watch.deadlines.pass_due()
    assert watch.told == []
    clock.now = thing.at
    watch.deadlines.pass_due()
    assert watch.told == [thing]


async def test_things_with_one_deadline_are_all_told(watch: Watch, clock: FakeClock) -> None:
    things = [watch.add(1) for _ in range(5)]
    clock.advance(1)
    watch.deadlines.pass_due()
    assert watch.told == things


async def test_what_is_done_or_cancelled_is_not_told(watch: Watch, clock: FakeClock) -> None:
    done, cancelled, waits = watch.add(1), watch.add(1), watch.add(1)
    watch.done(done)
    cancelled.future.cancel()
    watch.deadlines.forget()
    clock.advance(9)
    watch.deadlines.pass_due()
    assert watch.told == [waits]


async def test_what_ends_by_being_told_of_another_is_not_told_itself(
    watch: Watch, clock: FakeClock
) -> None:
    first, second = watch.add(1), watch.add(1)
    tell = watch.passed

    def both(thing: Thing) -> None:
        tell(thing)
        if not second.future.done():
            watch.done(second)

    watch.deadlines._passed = both
    clock.advance(1)
    watch.deadlines.pass_due()
    assert watch.told == [first]


async def test_who_is_told_may_wait_anew(watch: Watch, clock: FakeClock) -> None:
    again: list[Thing] = []
    tell = watch.passed

    def retried(thing: Thing) -> None:
        tell(thing)
        if len(again) < 3:
            again.append(watch.add(-1.0 if len(again) < 2 else 5.0))

    watch.deadlines._passed = retried
    thing = watch.add(1)
    clock.advance(1)
    watch.deadlines.pass_due()
    assert watch.told == [thing, *again[:2]]
    clock.advance(5)
    watch.deadlines.pass_due()
    assert watch.told == [thing, *again]


async def test_a_heap_of_the_done_is_sifted(watch: Watch) -> None:
    """At most SPARE more than twice what waits is kept, however long the deadlines are."""
    waiting = [watch.add(1e6) for _ in range(10)]
    for _ in range(20 * SPARE):
        watch.done(watch.add(1e6))
        assert watch.held <= SPARE + 2 * len(waiting)
    kept = {id(thing) for _, _, thing in watch.deadlines._heap}
    assert {id(thing) for thing in waiting} <= kept


async def test_a_few_that_are_done_are_not_worth_sifting(watch: Watch) -> None:
    """What is done stays until it is due: a heap is not gone through for each call."""
    for _ in range(SPARE):
        watch.done(watch.add(1e6))
    assert watch.held == SPARE


async def test_what_is_done_is_let_go_of(watch: Watch) -> None:
    thing = watch.add(1e6)
    gone = weakref.ref(thing)
    watch.done(thing)
    del thing
    for _ in range(SPARE + 1):
        watch.done(watch.add(1e6))
    assert gone() is None


async def test_many_that_wait_are_kept_and_told(watch: Watch, clock: FakeClock) -> None:
    things = [watch.add(1 + n % 7) for n in range(4 * SPARE)]
    for thing in things[::2]:
        watch.done(thing)
    clock.advance(10)
    watch.deadlines.pass_due()
    assert {id(one) for one in watch.told} == {id(one) for one in things[1::2]}
    assert watch.held == 0


async def test_sifting_keeps_what_waits_in_order(watch: Watch, clock: FakeClock) -> None:
    waiting = [watch.add(100.0 - 7 * n % 50) for n in range(50)]
    watch.done(watch.add(1.0))
    while watch.held > len(waiting):
        watch.done(watch.add(1.0))
    clock.advance(100)
    watch.deadlines.pass_due()
    assert [one.at for one in watch.told] == sorted(one.at for one in waiting)


async def test_the_timer_passes_over_what_is_done(watch: Watch, clock: FakeClock) -> None:
    """It is set for what still waits, not for what was done meanwhile."""
    first, *done = (watch.add(1.0 + n) for n in range(5))
    last = watch.add(60.0)
    for thing in done:
        watch.done(thing)
    clock.advance(1)
    watch.deadlines._ring()
    assert watch.told == [first]
    assert watch.deadlines._armed_for == last.at
    assert watch.held == 1


class DeadlinesMachine(RuleBasedStateMachine):
    """Things that come, end and run out of time, in any order; told of by hand and by the timer."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.watch = self.loop.run_until_complete(self._made())
        self.things: list[Thing] = []

    async def _made(self) -> Watch:
        return Watch(self.clock, asyncio.get_running_loop())

    @property
    def waiting(self) -> list[Thing]:
        """What nobody has ended."""
        return [thing for thing in self.things if not thing.future.done()]

    # One deadline is passed already, one never will be; many are equal.
    @rule(
        after_s=st.sampled_from([-1.0, 0.0, 1.0, 1.0, 2.5, 100.0, float("inf")]),
        count=st.sampled_from([1, 1, 3, SPARE]),
    )
    def add(self, after_s: float, count: int) -> None:
        """Something waits."""
        self.things += [self.watch.add(after_s) for _ in range(count)]

    @rule(pick=st.randoms(use_true_random=False), share=st.sampled_from([0.0, 0.5, 1.0]))
    @precondition(lambda self: self.waiting)
    def end(self, pick: Any, share: float) -> None:
        """Some of them are done in time, or their callers left."""
        for thing in pick.sample(self.waiting, max(1, int(share * len(self.waiting)))):
            if pick.random() < 0.5:
                self.watch.done(thing)
            else:
                thing.future.cancel()
                self.watch.deadlines.forget()
            assert self.watch.held <= SPARE + 2 * len(self.waiting)

    @rule(seconds=st.sampled_from([0.0, 1.0, 2.0, 200.0]), rings=st.booleans())
    def pass_time(self, seconds: float, *, rings: bool) -> None:
        """Time passes, and the timer rings or somebody looks; exactly what is over is told."""
        self.clock.advance(seconds)
        due = [thing for thing in self.waiting if thing.at <= self.clock()]
        before = len(self.watch.told)
        if rings:
            self.watch.deadlines._ring()
        else:
            self.watch.deadlines.pass_due()
        told = self.watch.told[before:]
        assert {id(one) for one in told} == {id(one) for one in due}
        assert [one.at for one in told] == sorted(one.at for one in told)

    @invariant()
    def each_is_told_at_most_once(self) -> None:
        """Nothing is told twice, and what waits is kept."""
        assert all(thing.passed <= 1 for thing in self.things)
        kept = {id(thing) for _, _, thing in self.watch.deadlines._heap}
        assert {id(thing) for thing in self.waiting} <= kept

    @invariant()
    def the_timer_is_set_for_the_first(self) -> None:
        """As long as something may end, the timer rings no later than that does."""
        first = min((thing.at for thing in self.waiting), default=float("inf"))
        assert self.watch.deadlines._armed_for <= first
        timer = self.watch.deadlines._timer
        assert first == float("inf") or (timer is not None and not timer.cancelled())

    def teardown(self) -> None:
        """Nothing is left on the loop."""
        self.watch.deadlines.close()
        self.loop.close()


DeadlinesMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None
)
TestDeadlines = DeadlinesMachine.TestCase


# On a real loop, whose timer rings by itself.


async def test_the_timer_says_what_is_due(real: Watch) -> None:
    late, early = real.add(0.02), real.add(0.005)
    for thing in (early, late):
        await soon(thing.future)
    assert real.told == [early, late]


async def test_an_earlier_deadline_moves_the_timer(real: Watch) -> None:
    real.add(3600.0)
    thing = real.add(0.005)
    await soon(thing.future)
    assert real.told == [thing]
    await soon(real.add(0.001).future)


async def test_a_deadline_that_has_passed_is_told_in_the_next_turn(real: Watch) -> None:
    thing = real.add(-5.0)
    assert real.told == []
    await soon(thing.future)
    assert real.told == [thing]


async def test_what_is_done_first_only_moves_the_timer_on(real: Watch) -> None:
    first, second = real.add(0.002), real.add(0.01)
    real.done(first)
    await soon(second.future)
    assert real.told == [second]
    assert real.held == 0


async def test_one_timer_serves_all(real: Watch) -> None:
    """Whatever waits is one entry of the loop's own timers, whichever of it came first."""
    before = list(timers(real.loop))
    for n in range(500):
        real.add(1000.0 + n)
        real.add(1000.0 - n)
    assert len(list(timers(real.loop))) == len(before) + 1


async def test_close_leaves_no_timer(real: Watch) -> None:
    before = list(timers(real.loop))
    thing = real.add(0.001)
    real.deadlines.close()
    assert list(timers(real.loop)) == before
    after = real.loop.create_future()
    real.loop.call_later(0.01, after.set_result, None)
    await soon(after)
    assert not thing.future.done()
    assert real.told == []
    real.deadlines.close()


async def test_close_of_what_never_waited_is_nothing(real: Watch) -> None:
    real.deadlines.close()


def timers(loop: Any) -> Iterator[asyncio.TimerHandle]:
    """What the loop would call later."""
    return (handle for handle in loop._scheduled if not handle.cancelled())
