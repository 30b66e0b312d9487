"""Batches that take less than a hand-over would run on the loop itself, without holding it up."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.backends.fake import FakeBackend
from services.inference.cost import CostModel
from services.inference.items import Encoded
from services.inference.outcomes import Scored
from services.runtime.errors import BackendFailed, DeadlineExpired, Draining
from tests.harness import FakeClock, soon
from tests.unit.inference.fakes import Device, Rig, echoes, encoded, rig

# So long that whatever a test runs is cheap, however slow the machine: only predictions decide.
INLINE_S = 60.0
CHEAP, DEAR = 1e-6, 1e6


@dataclass
class Seen:
    """What each instance ran, in order, and on which thread; it fails where it is told to."""

    bad: set[float] = field(default_factory=set)
    batches: list[list[float]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    then: Callable[[list[float]], None] = lambda values: None
    busy: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """One batch."""
        rows = next(iter(inputs.values()))
        values = rows.reshape(len(rows), -1)[:, 0].tolist()
        self.batches.append(values)
        self.threads.append(threading.get_ident())
        self.then(values)
        if self.bad & set(values):
            raise ValueError("a bad item is in the batch")


@asynccontextmanager
async def inline(
    seen: Seen,
    *,
    fixed: float = CHEAP,
    per_token: float = 0.0,
    instances: int = 1,
    inline_s: float = INLINE_S,
    **more: Any,
) -> AsyncIterator[Rig]:
    """A batcher that may use the loop, with a cost that is predicted."""
    backend = FakeBackend(seen)
    made = [backend.instance() for _ in range(instances)]
    cost = CostModel(fixed, per_token)
    async with rig(made=made, cost=cost, inline_s=inline_s, **more) as found:
        yield found


def here() -> int:
    """The thread of the loop."""
    return threading.get_ident()


# Where a batch runs.


async def test_a_cheap_batch_runs_on_the_loops_own_thread() -> None:
    seen = Seen()
    async with inline(seen) as r:
        assert echoes(await soon(r.ask(7, 8))) == [7, 8]
        assert (seen.batches, seen.threads) == ([[7, 8]], [here()])
        assert r.counts_add_up()
        assert r.batcher.counts.completed == 2


async def test_without_leave_none_does() -> None:
    seen = Seen()
    async with inline(seen, inline_s=0.0, fixed=0.0) as r:
        assert echoes(await soon(r.ask(7))) == [7]
        assert seen.threads != [here()]


async def test_a_batch_predicted_to_be_dear_goes_to_the_thread() -> None:
    seen = Seen()
    async with inline(seen, fixed=DEAR) as r:
        assert echoes(await soon(r.ask(7))) == [7]
        assert len(seen.threads) == 1
        assert seen.threads != [here()]


@pytest.mark.parametrize(("count", "on_loop"), [(6, True), (7, False)])
async def test_what_counts_is_the_padded_batch_as_a_whole(count: int, *, on_loop: bool) -> None:
    """The loop gives 80 s: six items padded to 10 tokens take 20 + 60, seven take 20 + 70."""
    seen = Seen()
    async with inline(seen, fixed=20.0, per_token=1.0, inline_s=80.0) as r:
        items = [encoded(n, 8 if n else 10) for n in range(count)]
        with r.permit(items, 1e6) as permit:
            await soon(r.batcher.submit(items, permit))
        assert [len(batch) for batch in seen.batches] == [count]
        assert (seen.threads == [here()]) == on_loop


async def test_a_model_that_turns_out_slow_moves_to_its_thread() -> None:
    def slow(_: list[float]) -> None:
        until = time.perf_counter() + 0.02
        while time.perf_counter() < until:
            pass

    seen = Seen(then=slow)
    async with inline(seen, inline_s=0.01) as r:
        await soon(r.ask(1))
        await soon(r.ask(2))
        assert [thread == here() for thread in seen.threads] == [True, False]


async def test_an_instance_never_runs_two_batches_at_once() -> None:
    """While its thread computes something dear, what is cheap waits: it is not run beside it."""
    device = Device(held=True)
    instance = FakeBackend(device).instance()
    cost = CostModel(0.0, 1.0)
    async with rig(made=[instance], cost=cost, inline_s=INLINE_S, max_batch_size=1) as r:
        dear = await r.begin(1, length=100)
        await device.entered()
        cheap = [await r.begin(value) for value in (2, 3)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert device.batches == [[1]]
        device.open()
        assert echoes(await soon(dear)) == [1]
        assert [echoes(await soon(task)) for task in cheap] == [[2], [3]]


async def test_a_cheap_batch_runs_beside_a_dear_one_of_another_instance() -> None:
    """The dear one is held: if the cheap one waited for it, this would never end."""
    seen = Seen()
    device = Device(held=True)
    made = [FakeBackend(device).instance(), FakeBackend(seen).instance()]
    async with rig(made=made, cost=CostModel(0.0, 1.0), inline_s=INLINE_S) as r:
        dear = await r.begin(1, length=100)
        await device.entered()
        assert echoes(await soon(r.ask(2))) == [2]
        assert (seen.batches, seen.threads) == ([[2]], [here()])
        device.open()
        assert echoes(await soon(dear)) == [1]


# What goes together.


async def test_what_arrives_in_one_turn_of_the_loop_is_one_batch() -> None:
    seen = Seen()
    async with inline(seen) as r:
        first = [asyncio.ensure_future(r.ask(value)) for value in range(5)]
        assert [echoes(outcomes) for outcomes in await soon(asyncio.gather(*first))] == [
            [value] for value in range(5)
        ]
        assert seen.batches == [[0, 1, 2, 3, 4]]
        await soon(asyncio.gather(*(r.ask(value) for value in (7, 8))))
        assert seen.batches == [[0, 1, 2, 3, 4], [7, 8]]


async def test_nothing_runs_before_the_turn_is_over() -> None:
    """A caller that submits is not held up by the batch: others of its turn come first."""
    seen = Seen()
    order: list[str] = []
    seen.then = lambda values: order.append(f"batch of {len(values)}")
    async with inline(seen) as r:
        asked = [asyncio.ensure_future(r.ask(value)) for value in (1, 2)]
        asyncio.get_running_loop().call_soon(order.append, "another callback")
        await soon(asyncio.gather(*asked))
        assert order == ["another callback", "batch of 2"]


async def test_idle_instances_share_a_turn_and_each_runs_its_part_here() -> None:
    seen = Seen()
    async with inline(seen, instances=3) as r:
        assert echoes(await soon(r.ask(*range(9)))) == list(range(9))
        assert [len(batch) for batch in seen.batches] == [3, 3, 3]
        assert set(seen.threads) == {here()}


async def test_limits_of_a_batch_hold_here_too() -> None:
    seen = Seen()
    async with inline(seen, max_batch_size=4, max_batch_tokens=6) as r:
        await soon(r.ask(*range(10), length=2))
        assert [len(batch) for batch in seen.batches] == [3, 3, 3, 1]


async def test_timings_say_how_it_ran() -> None:
    seen = Seen()
    clock = FakeClock()
    async with inline(seen, clock=clock, max_batch_size=2) as r:
        seen.then = lambda values: clock.advance(1.0)
        outcomes = await soon(r.ask(1, 2, 3))
        timings = [outcome.timings for outcome in outcomes if isinstance(outcome, Scored)]
        assert [(one.queue_s, one.batch_size) for one in timings] == [(0, 2), (0, 2), (1, 1)]


# Failures.


async def test_a_batch_that_fails_here_is_run_again_item_by_item() -> None:
    seen = Seen(bad={3})
    async with inline(seen) as r:
        asked = [asyncio.ensure_future(r.ask(value)) for value in (1, 2, 3, 4)]
        outcomes = [found for (found,) in await soon(asyncio.gather(*asked))]
        assert isinstance(outcomes[2], BackendFailed)
        assert echoes([outcomes[0], outcomes[1], outcomes[3]]) == [1, 2, 4]
        assert seen.batches == [[1, 2, 3, 4], [1], [2], [3], [4]]
        assert set(seen.threads) == {here()}
        assert (r.batcher.counts.completed, r.batcher.counts.failed) == (3, 1)
        assert echoes(await soon(r.ask(5))) == [5]


async def test_an_item_that_fails_alone_here_is_not_tried_again() -> None:
    seen = Seen(bad={1})
    async with inline(seen) as r:
        (outcome,) = await soon(r.ask(1))
        assert isinstance(outcome, BackendFailed)
        assert seen.batches == [[1]]


@pytest.mark.parametrize("inline_s", [INLINE_S, 0.0])
async def test_items_that_cannot_stand_together_are_run_alone(inline_s: float) -> None:
    """A row of two numbers and a table of two times two are no batch, but two items."""
    seen = Seen(bad={3})
    async with inline(seen, inline_s=inline_s) as r:
        shapes: list[tuple[float, tuple[int, ...]]] = [(1, (2,)), (2, (2, 2)), (3, (2,))]
        items = [
            Encoded({"features": np.full(shape, value, dtype=np.float32)}, 2)
            for value, shape in shapes
        ]
        with r.permit(items, 60.0) as permit:
            outcomes = await soon(r.batcher.submit(items, permit))
        assert isinstance(outcomes[2], BackendFailed)
        assert echoes(outcomes[:2]) == [1, 2]
        assert seen.batches == [[1], [2], [3]]
        assert r.counts_add_up()


class _Huge:
    """An output that there is no memory to make probabilities of."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return self._rows

    def __array__(self, *_: Any, **__: Any) -> NDArray[Any]:
        raise MemoryError


@pytest.mark.parametrize("inline_s", [INLINE_S, 0.0])
async def test_whatever_goes_wrong_with_probabilities_ends_no_instance(inline_s: float) -> None:
    class Once:
        def __init__(self) -> None:
            self.runs = 0

        def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, Any]:
            self.runs += 1
            rows = len(inputs["features"])
            return {"logits": _Huge(rows) if self.runs == 1 else np.zeros((rows, 2))}

    async with rig(made=[Once()], cost=CostModel(CHEAP, 0.0), inline_s=inline_s) as r:
        first, second = (asyncio.ensure_future(r.ask(value, within_s=1.0)) for value in (1, 2))
        await asyncio.wait([first, second])
        for task in (first, second):
            (outcome,) = task.result()
            with pytest.raises(BackendFailed):
                if not isinstance(outcome, Scored):
                    raise outcome
                _ = outcome.batch.scores
        (after,) = await r.ask(3, within_s=1.0)
        assert isinstance(after, Scored)
        assert after.batch.scores.row(0).tolist() == [0.5, 0.5]


async def test_who_cannot_take_an_outcome_harms_nobody_else_here() -> None:
    seen = Seen()

    def on_item(_index: int, _outcome: Any) -> None:
        raise RuntimeError("the caller's own fault")

    async with inline(seen) as r:
        bad = asyncio.ensure_future(r.ask(1, on_item=on_item))
        good = asyncio.ensure_future(r.ask(2))
        assert [echoes(await soon(task)) for task in (bad, good)] == [[1], [2]]
        assert seen.batches == [[1, 2]]


# The loop is not held up, and time passes.


@pytest.mark.parametrize("instances", [1, 2])
async def test_a_long_queue_lets_others_have_the_loop_between_batches(instances: int) -> None:
    seen = Seen()
    order: list[str] = []
    seen.then = lambda values: order.append("batch")
    loop = asyncio.get_running_loop()
    async with inline(seen, instances=instances, max_batch_size=1) as r:
        task = asyncio.ensure_future(r.ask(*range(20)))

        def tick() -> None:
            order.append("tick")
            if not task.done():
                loop.call_soon(tick)

        loop.call_soon(tick)
        assert echoes(await soon(task)) == list(range(20))
    turns = " ".join(order).split("tick")
    assert max(turn.count("batch") for turn in turns) == instances
    assert " ".join(order).count("batch") == 20


async def test_something_urgent_that_comes_meanwhile_goes_next() -> None:
    seen = Seen()
    async with inline(seen, max_batch_size=1) as r:
        urgent: list[asyncio.Task[Any]] = []

        def comes(values: list[float]) -> None:
            if values == [0]:
                urgent.append(asyncio.ensure_future(r.ask(99, priority=1)))

        seen.then = comes
        await soon(r.ask(*range(10)))
        assert echoes(await soon(urgent[0])) == [99]
        assert seen.batches.index([99]) <= 2


async def test_what_expires_while_others_run_is_never_computed() -> None:
    clock = FakeClock()
    seen = Seen(then=lambda values: clock.advance(1.0))
    async with inline(seen, clock=clock, max_batch_size=1) as r:
        asked = [asyncio.ensure_future(r.ask(n, within_s=3.0)) for n in range(5)]
        found = await soon(asyncio.gather(*asked, return_exceptions=True))
        assert seen.batches == [[0], [1], [2]]
        assert [isinstance(one, DeadlineExpired) for one in found] == [False] * 3 + [True] * 2
        assert (r.batcher.counts.completed, r.batcher.counts.expired) == (3, 2)
        assert r.counts_add_up()


async def test_what_expired_takes_no_place_in_a_batch() -> None:
    clock = FakeClock()
    seen = Seen(then=lambda values: clock.advance(5.0))
    async with inline(seen, clock=clock, max_batch_size=2) as r:
        short = [asyncio.ensure_future(r.ask(value, within_s=3.0)) for value in (0, 1, 2)]
        long = [asyncio.ensure_future(r.ask(value)) for value in (3, 4)]
        await soon(asyncio.gather(*short, *long, return_exceptions=True))
        assert seen.batches == [[0, 1], [3, 4]]
        assert isinstance(short[2].exception(), DeadlineExpired)


async def test_who_leaves_while_others_run_is_not_computed() -> None:
    seen = Seen()
    async with inline(seen, max_batch_size=1) as r:
        tasks = [asyncio.ensure_future(r.ask(value)) for value in range(4)]
        seen.then = lambda values: tasks[1].cancel() if values == [0] else None
        found = await soon(asyncio.gather(*tasks, return_exceptions=True))
        assert isinstance(found[1], asyncio.CancelledError)
        assert seen.batches == [[0], [2], [3]]
        assert (r.batcher.counts.completed, r.batcher.counts.cancelled) == (3, 1)
        assert r.admission.items == 0


async def test_close_finishes_a_long_queue() -> None:
    seen = Seen()
    async with inline(seen, max_batch_size=1) as r:
        task = await r.begin(*range(10))
        closing = asyncio.ensure_future(r.batcher.close())
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await r.ask(4)
        await soon(closing)
        assert echoes(await soon(task)) == list(range(10))


async def test_a_model_that_waits_for_fuller_batches_does_so_here_too() -> None:
    seen = Seen()
    async with inline(seen, max_batch_size=2, max_queue_delay_ms=10_000) as r:
        first = await r.begin(1)
        for _ in range(5):
            await asyncio.sleep(0)
        assert seen.batches == []
        await soon(r.ask(2))
        assert echoes(await soon(first)) == [1]
        assert seen.batches == [[1, 2]]
