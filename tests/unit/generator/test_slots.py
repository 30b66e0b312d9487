"""The engine's places: never too many, none lost whoever leaves when, given in fair order."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.generator.fairness import Entry
from services.generator.slots import Slots
from tests.harness import FakeClock, soon

ENOUGH = 10
"""Turns of the loop in which everything that can happen has happened."""


async def turns(count: int = ENOUGH) -> None:
    """Let others run so many times."""
    for _ in range(count):
        await asyncio.sleep(0)


class Caller:
    """Somebody who wants a place, and leaves it when told."""

    def __init__(self, slots: Slots, entry: Entry, order: list["Caller"] | None = None) -> None:
        self.entry = entry
        self.holds = False
        self.leave = asyncio.Event()
        self._slots, self._order = slots, order
        self.task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        async with self._slots.one(self.entry):
            self.holds = True
            if self._order is not None:
                self._order.append(self)
            try:
                await self.leave.wait()
            finally:
                self.holds = False


@asynccontextmanager
async def party(slots: Slots, *entries: Entry) -> AsyncIterator[list[Caller]]:
    """Callers that have come in this order; whoever is left at the end is cancelled."""
    callers = [Caller(slots, entry) for entry in entries]
    try:
        await turns()
        yield callers
    finally:
        for caller in reversed(callers):
            caller.task.cancel()
        await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)


async def order_of(entries: Sequence[Entry]) -> list[Entry]:
    """How entries that all wait are given one place after another."""
    slots, order = Slots(1, FakeClock()), []
    async with slots.one(Entry("first", 1, 1.0)):
        callers = [Caller(slots, entry, order) for entry in entries]
        for caller in callers:
            caller.leave.set()
        await turns()
        assert (slots.waiting, slots.running) == (len(entries), 1)
    await soon(asyncio.gather(*(caller.task for caller in callers)))
    return [caller.entry for caller in order]


async def assert_all_free(slots: Slots) -> None:
    """Exactly as many as there are places get one, and nobody waits."""
    assert (slots.running, slots.waiting) == (0, 0)
    async with party(slots, *(Entry("new", 5, 1.0) for _ in range(slots.count + 1))) as callers:
        assert [caller.holds for caller in callers] == [True] * slots.count + [False]


Action = tuple[Literal["come", "leave", "cancel", "turns"], int]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["come", "come", "leave", "cancel", "turns"]), st.integers(0, 9)),
    max_size=40,
)


class TestPlaces:
    @given(st.integers(1, 3), ACTIONS)
    @settings(deadline=None)
    @example(1, [("come", 0), ("come", 1), ("turns", 1), ("leave", 0)])
    async def test_whoever_comes_leaves_or_is_cancelled_no_place_is_lost_or_given_twice(
        self, count: int, actions: list[Action]
    ) -> None:
        slots, callers = Slots(count, FakeClock()), []

        def held() -> int:
            found = sum(caller.holds for caller in callers)
            assert found <= slots.running <= count
            return found

        for action, number in actions:
            if action == "come":
                entry = Entry("abc"[number % 3], 1 + number % 2 * 4, 1.0 + number)
                callers.append(Caller(slots, entry))
            elif action == "turns":
                for _ in range(number):
                    await turns(1)
                    held()
            elif callers and action == "leave":
                callers[number % len(callers)].leave.set()
            elif callers:
                callers[number % len(callers)].task.cancel()
            held()
        await turns(ENOUGH * (1 + len(callers)))
        gone = [caller.task for caller in callers if caller.task.done()]
        assert all(task.cancelled() or task.exception() is None for task in gone)
        alive = [caller for caller in callers if not caller.task.done()]
        assert held() == slots.running == min(count, len(alive))
        assert slots.waiting == len(alive) - slots.running
        for caller in alive:
            caller.leave.set()
        await soon(asyncio.gather(*(caller.task for caller in alive)))
        await assert_all_free(slots)

    async def test_one_that_is_cancelled_before_its_turn_gives_the_next_its_place(self) -> None:
        slots = Slots(1, FakeClock())
        async with party(slots, *(Entry(name, 5, 1.0) for name in "abc")) as (first, second, third):
            second.task.cancel()
            await turns()
            assert (slots.running, slots.waiting) == (1, 1)
            first.leave.set()
            await turns()
            assert (third.holds, slots.running, slots.waiting) == (True, 1, 0)

    @pytest.mark.parametrize("cancelled", ["before", "after"])
    async def test_one_that_is_cancelled_as_its_turn_comes_gives_the_next_its_place(
        self, cancelled: str
    ) -> None:
        slots = Slots(1, FakeClock())
        async with slots.one(Entry("a", 5, 1.0)):
            second, third = (Caller(slots, Entry(name, 5, 1.0)) for name in "bc")
            await turns()
            if cancelled == "before":
                second.task.cancel()
        # The place has been given back, and nobody has run since.
        second.task.cancel()
        await turns()
        assert second.task.cancelled()
        assert (third.holds, slots.running, slots.waiting) == (True, 1, 0)
        third.leave.set()
        await soon(third.task)
        await assert_all_free(slots)

    @pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
    async def test_one_that_fails_while_it_holds_a_place_gives_it_back(
        self, error: type[BaseException]
    ) -> None:
        slots = Slots(2, FakeClock())
        with pytest.raises(error):
            async with slots.one(Entry("a", 5, 1.0)):
                raise error
        await assert_all_free(slots)


class TestOrder:
    async def test_the_most_urgent_is_next_and_of_those_the_first_that_came(self) -> None:
        entries = [Entry("a", priority, 1.0) for priority in (5, 9, 1, 5, 1)]
        assert await order_of(entries) == [entries[i] for i in (2, 4, 0, 3, 1)]

    async def test_one_with_many_waiting_does_not_keep_the_others_out(self) -> None:
        entries = [Entry("many", 5, 10.0) for _ in range(4)]
        entries += [Entry("few", 5, 10.0), Entry("few", 5, 10.0)]
        order = await order_of(entries)
        assert [entry.identity for entry in order] == ["many", "few"] * 2 + ["many"] * 2

    async def test_shares_are_of_work_and_not_of_prompts(self) -> None:
        entries = [Entry("long", 5, 30.0) for _ in range(2)]
        entries += [Entry("short", 5, 10.0) for _ in range(4)]
        order = await order_of(entries)
        assert [e.identity for e in order] == ["long", *["short"] * 3, "long", "short"]


async def learned(count: int, clock: FakeClock) -> Slots:
    """Places of which is known that a prompt of 10 holds one for 2 s."""
    slots = Slots(count, clock)
    async with slots.one(Entry("x", 5, 10.0)):
        clock.advance(2.0)
    return slots


class TestPrediction:
    @pytest.mark.parametrize("count", [1, 2])
    async def test_it_grows_with_what_is_ahead(self, count: int) -> None:
        waits = []
        for waiting in range(4):
            slots = await learned(count, FakeClock())
            async with party(slots, *(Entry("x", 5, 10.0) for _ in range(count + waiting))):
                waits.append(slots.predicted_wait_s(Entry("x", 5, 10.0)))
        assert waits == pytest.approx([n * 2.0 / count for n in range(1, 5)])

    async def test_what_goes_later_does_not_count(self) -> None:
        slots = await learned(1, FakeClock())
        async with party(slots, *(Entry("x", 5, 10.0) for _ in range(4))):
            later, same, fresh, urgent = (
                slots.predicted_wait_s(Entry(name, priority, 10.0))
                for name, priority in (("y", 9), ("x", 5), ("y", 5), ("x", 1))
            )
        assert later == same > fresh == urgent > 0

    async def test_it_is_nothing_with_a_place_free_or_nothing_known(self) -> None:
        slots = await learned(2, FakeClock())
        async with party(slots, Entry("x", 5, 10.0)):
            assert slots.predicted_wait_s(Entry("x", 5, 10.0)) == 0.0
        new = Slots(1, FakeClock())
        async with party(new, Entry("x", 5, 10.0), Entry("x", 5, 10.0)):
            assert new.predicted_wait_s(Entry("x", 5, 10.0)) == 0.0

    def test_the_first_token_is_predicted_from_the_length_once_enough_were_seen(self) -> None:
        slots = Slots(1, FakeClock())
        assert slots.predicted_first_s(1000) == 0.0
        for tokens in [100, 200, 300, 400] * 5:
            slots.first_token(tokens, 0.5 + tokens * 0.001)
        assert slots.predicted_first_s(1000) == pytest.approx(1.5)
