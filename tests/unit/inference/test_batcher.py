"""The batcher on a device that the test holds: who is answered, who is not, and with what."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from numpy.typing import NDArray

from services.inference.backends.fake import FakeBackend
from services.inference.batcher import Batcher, Outcome
from services.inference.cost import LEARNED_AFTER, CostModel
from services.inference.manifest import Batching
from services.inference.meter import Meter
from services.inference.outcomes import Scored
from services.runtime.admission import Cost, Limits, Permit
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    BackendFailed,
    DeadlineExpired,
    DeadlineTooShort,
    Draining,
    Overloaded,
)
from tests.harness import FakeClock, metric, soon
from tests.unit.inference.fakes import Device, echoes, encoded, rig


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run one example of a property on a loop of its own."""
    asyncio.run(test)


def known_cost(fixed: float = 0.1, per_token: float = 0.0) -> CostModel:
    """A cost that counts as learned."""
    return CostModel(fixed, per_token, seen=LEARNED_AFTER)


# Whose answer is whose.


async def test_one_item_alone_runs_at_once() -> None:
    async with rig() as r:
        (outcome,) = await soon(r.ask(7))
        assert echoes([outcome]) == [7]
        assert isinstance(outcome, Scored)
        assert outcome.timings.batch_size == 1
        assert min(outcome.timings.queue_s, outcome.timings.compute_s) >= 0
        assert outcome.outputs["probabilities"].tolist() == pytest.approx([0.93, 0.07])


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
    st.sampled_from([{}, {"max_batch_tokens": 12}, {"max_batch_size": 3}]),
)
@settings(max_examples=40, deadline=None)
def test_no_result_crosses_callers(
    messages: list[tuple[int, int, int, bool]], instances: int, batching: dict[str, int]
) -> None:
    async def example() -> None:
        async with rig(instances=instances, **batching) as r:
            sent, asked = [], []
            for index, (count, length, priority, pause) in enumerate(messages):
                sent.append([index * 100.0 + position for position in range(count)])
                ask = r.ask(*sent[-1], priority=priority, length=length)
                asked.append(asyncio.ensure_future(ask))
                if pause:
                    await asyncio.sleep(0)
            found = [echoes(outcomes) for outcomes in await soon(asyncio.gather(*asked))]
            assert found == sent
            everything = sorted(value for values in sent for value in values)
            assert sorted(r.device.computed) == everything, "an item was computed twice"

    run(example())


async def test_each_item_is_told_as_it_is_known() -> None:
    async with rig(held=True, max_batch_size=1) as r:
        told: list[tuple[int, float]] = []

        def on_item(index: int, outcome: Outcome) -> None:
            told.extend((index, value) for value in echoes([outcome]))

        task = await r.begin(10, 11, 12, on_item=on_item)
        for index in range(3):
            await r.device.entered()
            assert told == [(i, 10.0 + i) for i in range(index)]
            r.device.step()
        assert echoes(await soon(task)) == [10, 11, 12]
        assert told == [(0, 10), (1, 11), (2, 12)]


async def test_no_items_are_answered_with_none() -> None:
    async with rig() as r:
        assert await soon(r.ask()) == []
        assert r.counts_add_up()


async def test_who_cannot_take_an_outcome_harms_nobody_else() -> None:
    async with rig(held=True) as r:
        first = await r.begin(1)
        await r.device.entered()

        def on_item(_index: int, _outcome: Outcome) -> None:
            raise RuntimeError("the caller's own fault")

        bad = await r.begin(2, on_item=on_item)
        good = await r.begin(3)
        r.device.open()
        assert echoes(await soon(good)) == [3]
        assert echoes(await soon(bad)) == [2]
        assert echoes(await soon(first)) == [1]


# What fails, fails alone.


async def test_one_bad_item_fails_alone_after_one_retry_item_by_item() -> None:
    async with rig(held=True) as r:
        r.device.bad = {3}
        blocker = await r.begin(0)
        await r.device.entered()
        tasks = [await r.begin(value) for value in (1, 2, 3, 4)]
        r.device.open()
        outcomes = [(await soon(task))[0] for task in tasks]
        assert isinstance(outcomes[2], BackendFailed)
        assert echoes([outcomes[0], outcomes[1], outcomes[3]]) == [1, 2, 4]
        assert r.device.batches == [[0], [1, 2, 3, 4], [1], [2], [3], [4]]
        assert echoes(await soon(blocker)) == [0]
        assert (r.batcher.counts.completed, r.batcher.counts.failed) == (4, 1)


async def test_an_item_that_fails_alone_is_not_tried_again() -> None:
    async with rig() as r:
        r.device.bad = {1}
        (outcome,) = await soon(r.ask(1))
        assert isinstance(outcome, BackendFailed)
        assert r.device.batches == [[1]]
        assert echoes(await soon(r.ask(2))) == [2]


async def test_a_backend_that_answers_for_too_few_fails_its_items() -> None:
    class Short:
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
            return {"echo": np.zeros(len(inputs["features"]) - 1)}

    batcher = Batcher([Short()], Batching(), {}, Meter("rig", 1))
    permit = Permit("me", Deadline.after(60.0), Cost(2), lambda _: None)
    try:
        outcomes = await soon(batcher.submit([encoded(1), encoded(2)], permit))
        assert [isinstance(outcome, BackendFailed) for outcome in outcomes] == [True, True]
    finally:
        await soon(batcher.close())


# Time: what has expired is never computed, and its caller hears at once.


async def test_what_expired_before_the_hand_over_is_never_computed() -> None:
    clock = FakeClock()
    async with rig(held=True, clock=clock, max_batch_size=2) as r:
        first = await r.begin(1)
        await r.device.entered()
        ahead = await r.begin(2, 3, within_s=5.0)  # full: formed ahead
        queued = await r.begin(4, within_s=5.0)
        fine = await r.begin(5, within_s=60.0)
        clock.advance(5.0)
        r.device.open()
        for task in (ahead, queued):
            with pytest.raises(DeadlineExpired):
                await soon(task)
        assert (echoes(await soon(first)), echoes(await soon(fine))) == ([1], [5])
        assert sorted(r.device.computed) == [1, 5]
        assert r.batcher.counts.expired == 3
        assert r.counts_add_up()


async def test_half_of_a_batch_formed_ahead_may_expire() -> None:
    clock = FakeClock()
    async with rig(held=True, clock=clock, max_batch_size=2) as r:
        await r.begin(1)
        await r.device.entered()
        short = await r.begin(2, within_s=5.0)
        long = await r.begin(3, within_s=60.0)
        clock.advance(10.0)
        r.device.open()
        assert echoes(await soon(long)) == [3]
        with pytest.raises(DeadlineExpired):
            await soon(short)
        assert r.device.batches == [[1], [3]]


async def test_a_caller_is_told_at_its_deadline_though_the_device_is_busy() -> None:
    async with rig(held=True) as r:
        first = await r.begin(1)
        await r.device.entered()
        with pytest.raises(DeadlineExpired):
            await soon(r.ask(2, within_s=0.02))
        assert r.admission.items == 1
        r.device.open()
        assert echoes(await soon(first)) == [1]
        assert r.device.computed == [1]


async def test_an_item_that_expires_while_it_runs_is_computed_for_nobody() -> None:
    async with rig(held=True, max_batch_size=1) as r:
        told: list[int] = []
        running = await r.begin(1, 2, within_s=0.02, on_item=lambda index, _: told.append(index))
        await r.device.entered()
        with pytest.raises(DeadlineExpired):
            await soon(running)
        r.device.open()
        assert echoes(await soon(r.ask(3))) == [3]
        assert told == []
        assert r.device.computed == [1, 3]
        assert (r.batcher.counts.expired, r.batcher.counts.completed) == (2, 1)


async def test_a_deadline_that_has_passed_is_refused_at_once() -> None:
    async with rig() as r:
        permit = r.permit([encoded(1)], within_s=0.01)
        with permit:
            object.__setattr__(permit.deadline, "at", r.clock() - 1)
            with pytest.raises(DeadlineExpired):
                await soon(r.batcher.submit([encoded(1)], permit))
        assert r.device.batches == []


# Cancellation: the queue forgets at once.


async def test_a_cancelled_item_leaves_the_queue_at_once_and_returns_its_permit() -> None:
    async with rig(held=True, limits=Limits(max_items=3, max_bytes=1000)) as r:
        first = await r.begin(1)
        await r.device.entered()
        second = await r.begin(2, 3)
        with pytest.raises(Overloaded):
            await r.ask(4)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(second)
        assert (r.admission.items, r.batcher.counts.pending) == (1, 1)
        assert r.batcher.counts.cancelled == 2
        third = await r.begin(4, 5)
        r.device.open()
        assert echoes(await soon(third)) == [4, 5]
        assert echoes(await soon(first)) == [1]
        assert r.device.batches == [[1], [4, 5]]


async def test_a_cancelled_item_is_no_longer_waited_for() -> None:
    clock = FakeClock()
    how: dict[str, Any] = {"clock": clock, "cost": known_cost(1.0), "max_batch_size": 2}
    async with rig(held=True, **how) as r:
        await r.begin(0)
        await r.device.entered()
        tasks = [await r.begin(value) for value in range(1, 8)]
        assert r.wait_s(within_s=1e6) == pytest.approx(5.0)
        for task in tasks[2:]:
            task.cancel()
        await asyncio.wait(tasks[2:])
        assert r.wait_s(within_s=1e6) == pytest.approx(3.0)
        r.device.open()
        assert [echoes(await soon(task)) for task in tasks[:2]] == [[1], [2]]


async def test_a_cancelled_item_of_a_batch_formed_ahead_is_not_computed() -> None:
    async with rig(held=True, max_batch_size=2) as r:
        await r.begin(1)
        await r.device.entered()
        gone = await r.begin(2)
        stays = await r.begin(3)
        whole = await r.begin(4, 5)
        for task in (gone, whole):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(task)
        r.device.open()
        assert echoes(await soon(stays)) == [3]
        assert r.device.batches == [[1], [3]]


async def test_a_caller_that_leaves_while_its_item_runs_disturbs_nobody_in_the_batch() -> None:
    async with rig(held=True) as r:
        await r.begin(0)
        await r.device.entered()
        tasks = [await r.begin(value) for value in (1, 2, 3)]
        r.device.step()
        assert await r.device.entered() == [1, 2, 3]
        tasks[1].cancel()
        r.device.open()
        outcomes = await soon(asyncio.gather(*tasks, return_exceptions=True))
        assert isinstance(outcomes[1], asyncio.CancelledError)
        assert echoes([*outcomes[0], *outcomes[2]]) == [1, 3]  # type: ignore[misc]  # no errors
        assert (r.batcher.counts.completed, r.batcher.counts.cancelled) == (3, 1)


# Which batch, and when.


async def test_what_comes_while_the_device_is_busy_goes_together() -> None:
    async with rig(held=True, max_batch_size=4) as r:
        tasks = [await r.begin(0)]
        await r.device.entered()
        tasks += [await r.begin(value) for value in (1, 2, 3)]
        tasks.append(await r.begin(4))  # joins though the three waited long: they were not full
        tasks += [await r.begin(value) for value in (5, 6)]
        r.device.open()
        assert [echoes(await soon(task)) for task in tasks] == [[v] for v in range(7)]
        assert r.device.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_full_batch_formed_ahead_is_given_back_to_something_more_urgent() -> None:
    async with rig(held=True, max_batch_size=3) as r:
        tasks = [await r.begin(0)]
        await r.device.entered()
        tasks.append(await r.begin(1, 2, 3))
        tasks.append(await r.begin(4, priority=1))
        tasks.append(await r.begin(5, within_s=100.0))
        r.device.open()
        assert [echoes(await soon(task)) for task in tasks] == [[0], [1, 2, 3], [4], [5]]
        assert r.device.batches == [[0], [4, 1, 2], [5, 3]]


@pytest.mark.parametrize("first", [0, 1])
async def test_a_batch_formed_ahead_goes_to_whichever_instance_is_free_first(first: int) -> None:
    devices = [Device(held=True), Device(held=True)]
    instances = [FakeBackend(device).instance() for device in devices]
    async with rig(made=instances, max_batch_size=2) as r:
        tasks = [await r.begin(1), await r.begin(2)]
        assert [await device.entered() for device in devices] == [[1], [2]]
        tasks.append(await r.begin(3, 4))  # full: formed ahead
        devices[first].step()
        assert await devices[first].entered() == [3, 4]
        for device in devices:
            device.open()
        await soon(asyncio.gather(*tasks))


async def test_idle_instances_share_what_a_message_brings() -> None:
    async with rig(held=True, instances=2, max_batch_size=8) as r:
        task = await r.begin(*range(6))
        batches = [await r.device.entered(), await r.device.entered()]
        assert sorted(batches) == [[0, 1, 2], [3, 4, 5]]
        r.device.open()
        assert echoes(await soon(task)) == list(range(6))


async def test_the_device_sees_no_more_padded_tokens_than_the_budget() -> None:
    async with rig(held=True, max_batch_size=8, max_batch_tokens=12, max_overtakes=0) as r:
        tasks = [await r.begin(0)]
        await r.device.entered()
        for value, length in ((1, 4), (2, 4), (3, 4), (4, 2), (5, 40), (6, 12)):
            tasks.append(await r.begin(value, length=length))
        r.device.open()
        assert [echoes(await soon(task)) for task in tasks] == [[v] for v in range(7)]
        assert r.device.batches == [[0], [1, 2, 3], [4], [5], [6]]


async def test_a_model_may_have_idle_instances_wait_for_a_fuller_batch() -> None:
    how = {"max_batch_size": 2, "max_queue_delay_ms": 10_000}
    async with asyncio.timeout(5), rig(held=True, **how) as r:
        first = await r.begin(1)
        assert r.device.batches == []
        second = await r.begin(2)
        assert await r.device.entered() == [1, 2]
        ahead = await r.begin(3, 4)
        more = await r.begin(5)
        r.device.step()
        # A batch formed ahead is full: it does not wait for the sake of what comes after it.
        assert await r.device.entered() == [3, 4]
        r.device.open()
        for task in (first, second, ahead):
            await soon(task)
        more.cancel()


async def test_the_wait_for_a_fuller_batch_ends() -> None:
    async with rig(max_batch_size=8, max_queue_delay_ms=5) as r:
        tasks = [await r.begin(1), await r.begin(2)]
        await soon(asyncio.gather(*tasks))
        assert r.device.batches == [[1, 2]]


async def test_a_batch_that_its_budget_fills_does_not_wait() -> None:
    how = {"max_batch_size": 8, "max_batch_tokens": 10, "max_queue_delay_ms": 10_000}
    async with asyncio.timeout(5), rig(**how) as r:
        assert echoes(await soon(r.ask(1, 2, length=5))) == [1, 2]


# Refusals.


async def test_a_full_queue_refuses_with_the_time_until_it_drains() -> None:
    clock = FakeClock()
    limits = Limits(max_items=5, max_bytes=10**6)
    async with rig(held=True, clock=clock, cost=known_cost(2.0), limits=limits) as r:
        tasks = [await r.begin(1)]
        await r.device.entered()
        tasks.append(await r.begin(2, 3, 4, 5))
        with pytest.raises(Overloaded) as raised:
            await r.ask(6)
        # What runs has 2 s to go, and one batch holds all that waits.
        assert raised.value.retry_after_s == pytest.approx(4.0)
        clock.advance(1.5)
        with pytest.raises(Overloaded) as raised:
            await r.ask(6)
        assert raised.value.retry_after_s == pytest.approx(2.5)
        r.device.open()
        await soon(asyncio.gather(*tasks))
        assert r.device.computed == [1, 2, 3, 4, 5]


async def test_bytes_are_bounded_too() -> None:
    async with rig(held=True, limits=Limits(max_items=100, max_bytes=400)) as r:
        await r.begin(1, length=60)  # 240 bytes
        with pytest.raises(Overloaded, match="bytes"):
            await r.ask(2, length=60)
        await r.begin(3, length=40)


async def test_a_wait_predicted_to_be_too_long_is_refused_before_it_queues() -> None:
    clock = FakeClock()
    how: dict[str, Any] = {"clock": clock, "cost": known_cost(1.0), "max_batch_size": 2}
    async with rig(held=True, **how) as r:
        tasks = [await r.begin(1)]
        await r.device.entered()
        tasks.append(await r.begin(2, 3))
        with pytest.raises(DeadlineTooShort):
            await r.ask(4, within_s=1.9, priority=9)
        assert r.batcher.counts.submitted == 3
        tasks.append(await r.begin(4, within_s=3.1, priority=9))
        assert r.admission.refused == {"DEADLINE_TOO_SHORT": 1}
        r.device.open()
        await soon(asyncio.gather(*tasks))


async def test_what_an_item_would_overtake_is_not_part_of_its_wait() -> None:
    clock = FakeClock()
    how: dict[str, Any] = {"clock": clock, "cost": known_cost(1.0), "max_batch_size": 2}
    async with rig(held=True, **how) as r:
        await r.begin(0)
        await r.device.entered()
        for value in range(1, 11):
            await r.begin(value, within_s=100.0)
        soon_due, urgent = (r.wait_s(within_s=3.0), r.wait_s(within_s=500.0, priority=1))
        assert soon_due == urgent == pytest.approx(2.0)
        assert r.wait_s(within_s=500.0) == pytest.approx(1.0 + 6.0)
        clock.advance(0.5)
        assert r.wait_s(within_s=3.0) == pytest.approx(1.5)
        tasks = [await r.begin(99, within_s=3.0)]
        r.device.step()
        assert (await r.device.entered())[0] == 99
        r.device.open()
        await soon(tasks[0])


async def test_nothing_is_refused_for_a_prediction_before_the_cost_is_learned() -> None:
    async with rig(held=True, cost=CostModel(1000.0, 1000.0)) as r:
        await r.begin(1)
        await r.device.entered()
        assert r.wait_s(within_s=0.1) == 0
        await r.begin(2, within_s=20.0)


async def test_the_cost_is_learned_from_what_runs() -> None:
    cost = CostModel()
    async with rig(cost=cost) as r:
        for value in range(LEARNED_AFTER):
            await soon(r.ask(value))
        assert cost.learned
        assert cost.seconds(1, 1) < 0.5


# The books, and the end.


async def test_close_finishes_what_waits_and_refuses_what_comes() -> None:
    how = {"max_batch_size": 2, "max_queue_delay_ms": 10_000}
    async with asyncio.timeout(5), rig(held=True, **how) as r:
        tasks = [await r.begin(1, 2)]
        await r.device.entered()
        tasks.append(await r.begin(3))
        closing = asyncio.ensure_future(r.batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await r.ask(4)
        assert not closing.done()
        r.device.open()
        assert [echoes(await soon(task)) for task in tasks] == [[1, 2], [3]]
        await soon(closing)
        assert r.counts_add_up()


async def test_close_waits_for_no_caller_that_left() -> None:
    async with rig(held=True) as r:
        task = await r.begin(1)
        await r.device.entered()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        r.device.open()
        await soon(r.batcher.close())
        assert r.counts_add_up()


async def test_the_metrics_count_what_the_batcher_counts() -> None:
    before = {
        name: metric("gristmill_items_total", model="rig", version="1", outcome=name)
        for name in ("completed", "failed", "expired", "cancelled")
    }
    async with rig(held=True) as r:
        r.device.bad = {3}
        await r.begin(1)
        await r.device.entered()
        task = await r.begin(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        with pytest.raises(DeadlineExpired):
            await soon(r.ask(9, within_s=0.01))
        task = await r.begin(3, 4)
        r.device.open()
        await soon(task)
        for name, was in before.items():
            now = metric("gristmill_items_total", model="rig", version="1", outcome=name)
            assert now - was == getattr(r.batcher.counts, name)


def _ended(task: "asyncio.Task[list[Outcome]]") -> list[Outcome] | BaseException:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()


class BatcherMachine(RuleBasedStateMachine):
    """Random callers that come, leave and run out of time, on a device let go now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = FakeClock()
        self.tasks: dict[int, tuple[asyncio.Task[list[Outcome]], list[float]]] = {}
        self.left: set[float] = set()
        self.sent = 0
        self.number = 0
        self._context = rig(
            held=True, instances=2, clock=self.clock, max_batch_size=3, max_batch_tokens=24
        )
        self.rig = self._do(self._context.__aenter__())
        self.rig.device.bad = set(range(0, 10_000, 13))

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(soon(work))

    @rule(
        count=st.integers(1, 4),
        length=st.integers(1, 9),
        priority=st.integers(1, 3),
        within_s=st.sampled_from([1.0, 10.0, 1000.0]),
    )
    def ask(self, count: int, length: int, priority: int, within_s: float) -> None:
        """A message comes."""
        values = [float(self.sent + i) for i in range(count)]
        self.sent += count
        how = {"length": length, "priority": priority, "within_s": within_s}
        self.number += 1
        self.tasks[self.number] = (self._do(self.rig.begin(*values, **how)), values)

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.tasks)
    def leave(self, pick: Any) -> None:
        """A caller gives up."""
        task, _ = self.tasks[pick.choice(sorted(self.tasks))]
        task.cancel()
        self._do(asyncio.sleep(0))

    @rule(seconds=st.sampled_from([0.5, 2.0, 20.0]))
    def wait(self, seconds: float) -> None:
        """Time passes; what was never begun by now must not begin if it is over."""
        self.clock.advance(seconds)

    @rule(batches=st.integers(1, 3))
    def compute(self, batches: int) -> None:
        """The device may finish some batches."""
        self.rig.device.step(batches)

    @rule()
    def look(self) -> None:
        """At every moment each item is in one place."""
        self._do(asyncio.sleep(0))
        assert self.rig.counts_add_up()
        assert self.rig.batcher.counts.submitted == self.sent
        assert self.rig.admission.items <= self.sent

    def teardown(self) -> None:
        """Let everything finish: each caller has its own answer or a reason, none is lost."""
        self.rig.device.open()
        tasks = [task for task, _ in self.tasks.values()]
        if tasks:
            self._do(asyncio.wait(tasks))
        outcomes = [_ended(task) for task in tasks]
        completed = failed = 0
        for (_, values), found in zip(self.tasks.values(), outcomes, strict=True):
            if isinstance(found, BaseException):
                assert isinstance(found, asyncio.CancelledError | DeadlineExpired), found
                continue
            for value, outcome in zip(values, found, strict=True):
                if value in self.rig.device.bad:
                    assert isinstance(outcome, BackendFailed)
                    failed += 1
                else:
                    assert echoes([outcome]) == [value]
                    completed += 1
        counts = self.rig.batcher.counts
        assert counts.pending == 0
        assert self.rig.counts_add_up()
        assert counts.completed >= completed
        assert counts.failed >= failed
        assert (self.rig.admission.items, self.rig.admission.bytes) == (0, 0)
        self._do(self._context.__aexit__(None, None, None))
        self.loop.close()


BatcherMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestBatcher = BatcherMachine.TestCase
