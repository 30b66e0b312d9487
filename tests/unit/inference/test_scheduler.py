"""The five laws of the scheduler, beside a model that keeps a plain list and knows no packing."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from services.inference.cost import CostModel
from services.inference.scheduler import Batch, Entry, Scheduler

NEVER = float("inf")
# Few different lengths, so that items find others of their kind behind those of another.
LENGTHS = st.one_of(st.sampled_from([1, 10, 100]), st.integers(1, 200))


def entry(arrival: int, length: int = 1, priority: int = 5, deadline: float = NEVER) -> Entry:
    """An item that came `arrival`-th."""
    return Entry((priority, deadline, arrival), length)


def filled(scheduler: Scheduler, lengths: Sequence[int]) -> list[Entry]:
    """Items of these lengths, waiting in this order."""
    entries = [entry(arrival, length) for arrival, length in enumerate(lengths)]
    for one in entries:
        scheduler.push(one)
    return entries


def sizes(scheduler: Scheduler) -> list[int]:
    """The sizes of all batches until nothing waits."""
    found = []
    while batch := scheduler.take():
        found.append(len(batch.entries))
    return found


def lengths(batch: Batch | None) -> list[int]:
    """The lengths of the items of a batch that must be there."""
    assert batch is not None
    return [one.length for one in batch.entries]


def cost_of(fixed: float, per_token: float) -> CostModel:
    """A cost that is known."""
    return CostModel(fixed, per_token)


@dataclass(eq=False)
class Known:
    """What the model remembers of an item: the batches that really went ahead of it."""

    entry: Entry
    overtaken: int = 0


class SchedulerMachine(RuleBasedStateMachine):
    """Random arrivals, departures, batches and second thoughts."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(1)
        self.waiting: list[Known] = []
        self.gone: list[Entry] = []
        self.now = 0.0
        self.arrivals = 0
        self.last: tuple[Batch, list[Known], list[Known]] | None = None

    @initialize(
        size=st.integers(1, 6),
        tokens=st.sampled_from([0, 0, 16, 64, 256]),
        overtakes=st.integers(0, 3),
        fixed=st.sampled_from([0.0, 1e-4, 1e-2]),
    )
    def configure(self, size: int, tokens: int, overtakes: int, fixed: float) -> None:
        """Choose the settings."""
        self.scheduler = Scheduler(size, tokens, overtakes, cost_of(fixed, 1e-4))

    @rule(
        priority=st.sampled_from([1, 5, 5, 5]),
        left_s=st.sampled_from([0.5, 2.0, 10.0, NEVER]),
        length=LENGTHS,
    )
    def push(self, priority: int, left_s: float, length: int) -> None:
        """An item comes."""
        self.arrivals += 1
        one = entry(self.arrivals, length, priority, self.now + left_s)
        self.scheduler.push(one)
        self.waiting.append(Known(one))

    @rule(lengths=st.lists(LENGTHS, min_size=2, max_size=10))
    def push_many(self, lengths: list[int]) -> None:
        """A message of several items comes."""
        for length in lengths:
            self.push(5, NEVER, length)

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.waiting)
    def remove(self, pick: object) -> None:
        """A caller gives up: its item leaves at once, and only once."""
        known = pick.choice(self.waiting)  # type: ignore[attr-defined]  # a random.Random
        assert self.scheduler.remove(known.entry)
        assert not self.scheduler.remove(known.entry)
        self.waiting.remove(known)
        self.gone.append(known.entry)

    @rule()
    @precondition(lambda self: self.gone)
    def remove_what_is_gone(self) -> None:
        """Removing what does not wait changes nothing."""
        assert not self.scheduler.remove(self.gone[-1])

    @rule(seconds=st.sampled_from([0.1, 0.5, 3.0]))
    def expire(self, seconds: float) -> None:
        """Time passes; exactly what is over is given up."""
        self.now += seconds
        dead = [known for known in self.waiting if known.entry.deadline <= self.now]
        found = self.scheduler.expire(self.now)
        assert sorted(id(one) for one in found) == sorted(id(known.entry) for known in dead)
        self.waiting = [known for known in self.waiting if known not in dead]
        self.gone.extend(found)

    @rule(free=st.integers(1, 3), full_only=st.booleans())
    def take(self, free: int, full_only: bool) -> None:
        """A batch, held against all laws."""
        batch = self.scheduler.take(free, full_only=full_only)
        if batch is None:
            assert full_only or not self.waiting, "something waits and nothing was taken"
            return
        taken = [known for known in self.waiting if known.entry in batch.entries]
        assert len(taken) == len(batch.entries) == len({id(one) for one in batch.entries})
        self.check_order(batch)
        self.check_budget(batch)
        self.check_reason(batch, len(self.waiting), free)
        if full_only:
            self.check_full(batch)
        self.waiting = [known for known in self.waiting if known not in taken]
        last = max(one.order for one in batch.entries)
        passed = [known for known in self.waiting if known.entry.order < last]
        for known in passed:
            known.overtaken += 1
            assert known.overtaken <= self.scheduler.max_overtakes
        self.last = (batch, taken, passed)
        self.gone.extend(batch.entries)

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.last)
    def restore(self, pick: object) -> None:
        """The last batch does not run after all; some of its items may have died meanwhile."""
        assert self.last is not None
        batch, taken, passed = self.last
        alive = [known for known in taken if pick.random() < 0.7]  # type: ignore[attr-defined]
        self.scheduler.restore(known.entry for known in alive)
        self.waiting.extend(alive)
        self.gone = [one for one in self.gone if all(one is not known.entry for known in alive)]
        for known in passed:
            known.overtaken -= 1
        self.last = None
        first = min((known.entry.order for known in self.waiting), default=None)
        precedes = first is not None and first < batch.entries[0].order
        assert self.scheduler.precedes(batch) == precedes

    def check_order(self, batch: Batch) -> None:
        """Law 2: the head is first by class, then deadline, then arrival."""
        assert batch.entries[0].order == min(known.entry.order for known in self.waiting)

    def check_budget(self, batch: Batch) -> None:
        """Law 3, and the arithmetic of a batch."""
        longest = max(one.length for one in batch.entries)
        padded = longest * len(batch.entries)
        assert (batch.longest, batch.padded_tokens) == (longest, padded)
        assert batch.tokens == sum(one.length for one in batch.entries)
        assert len(batch.entries) <= self.scheduler.max_batch_size
        budget = self.scheduler.max_batch_tokens
        assert not budget or padded <= budget or len(batch.entries) == 1
        cost = self.scheduler.cost
        alone = sum(cost.seconds(1, one.length) for one in batch.entries)
        assert cost.seconds(1, padded) <= alone + 1e-9, "padding costs more than going alone"

    def check_reason(self, batch: Batch, waited: int, free: int) -> None:
        """What closed a batch is true of it."""
        count = len(batch.entries)
        share = -(-waited // free)
        assert count <= share
        if batch.released == "size":
            assert count == self.scheduler.max_batch_size
        elif batch.released == "share":
            assert count == share < waited
        elif batch.released == "drained":
            assert count == waited
        else:
            assert count < waited
            assert batch.released == "padding" or self.scheduler.max_batch_tokens

    def check_full(self, batch: Batch) -> None:
        """No later arrival, not even the shortest, would have joined."""
        more = batch.longest * (len(batch.entries) + 1)
        assert len(batch.entries) == self.scheduler.max_batch_size or (
            0 < self.scheduler.max_batch_tokens < more
        )

    @invariant()
    def the_books_agree(self) -> None:
        """Law 5 and the sums: what waits is what came, less what left."""
        assert len(self.scheduler) == len(self.waiting)
        assert self.scheduler.tokens == sum(known.entry.length for known in self.waiting)

    @rule()
    @precondition(lambda self: len(self.waiting) > 5)
    def drain(self) -> None:
        """Whatever waits comes out, one batch after the other."""
        while self.waiting:
            self.take(free=1, full_only=False)
            self.the_books_agree()


SchedulerMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None
)
TestScheduler = SchedulerMachine.TestCase


def test_nothing_waits_nothing_is_taken() -> None:
    scheduler = Scheduler(4)
    assert scheduler.take() is None
    assert scheduler.take(3, full_only=True) is None
    assert not scheduler.precedes(Batch((entry(1),), "size"))


def test_order_is_class_then_deadline_then_arrival() -> None:
    scheduler = Scheduler(1)
    late, soon = entry(1, deadline=9.0), entry(2, deadline=3.0)
    urgent, twin = entry(3, priority=1, deadline=99.0), entry(4, deadline=3.0)
    for one in (late, soon, urgent, twin):
        scheduler.push(one)
    taken = [batch.entries[0] for _ in range(4) if (batch := scheduler.take())]
    assert taken == [urgent, soon, twin, late]


def test_a_deadline_that_is_now_is_over() -> None:
    scheduler = Scheduler(4)
    now, later = entry(1, deadline=5.0), entry(2, deadline=5.1)
    scheduler.push(now)
    scheduler.push(later)
    assert scheduler.expire(4.9) == []
    assert scheduler.expire(5.0) == [now]
    batch = scheduler.take()
    assert batch is not None
    assert batch.entries == (later,)


def test_an_item_longer_than_the_budget_goes_alone() -> None:
    scheduler = Scheduler(8, max_batch_tokens=100)
    filled(scheduler, [500, 10, 10])
    assert lengths(scheduler.take()) == [500]
    assert lengths(scheduler.take()) == [10, 10]


def test_padding_is_worth_it_where_a_batch_of_its_own_costs_more() -> None:
    dear, cheap = Scheduler(8, cost=cost_of(1.0, 0.001)), Scheduler(8, cost=cost_of(0.0, 0.001))
    for scheduler in (dear, cheap):
        filled(scheduler, [10, 200, 10, 200])
    assert sorted(lengths(dear.take())) == [10, 10, 200, 200]
    batch = cheap.take()
    assert lengths(batch) == [10, 10]
    assert batch is not None
    assert batch.released == "padding"


def test_the_nearest_in_length_join_first() -> None:
    scheduler = Scheduler(3, cost=cost_of(1.0, 0.001))
    filled(scheduler, [50, 10, 90, 49, 51])
    assert lengths(scheduler.take()) == [50, 49, 51]


@pytest.mark.parametrize("most", [0, 1, 3])
def test_an_item_is_overtaken_so_often_and_no_more(most: int) -> None:
    scheduler = Scheduler(2, max_overtakes=most, cost=cost_of(0.0, 0.001))
    ahead = [10, 30, 50, 70, 90]
    # Each of the first five finds its like only behind the odd one.
    filled(scheduler, [*ahead, 500, *ahead])
    found = [lengths(scheduler.take()) for _ in range(6)]
    pairs, singles = ahead[:most], ahead[most:]
    assert found == [[one, one] for one in pairs] + [[one] for one in singles] + [[500]]


@pytest.mark.parametrize("most", [0, 1, 4])
def test_a_limit_on_overtaking_leaves_batches_full(most: int) -> None:
    scheduler = Scheduler(4, max_overtakes=most)
    filled(scheduler, [7] * 10)
    assert sizes(scheduler) == [4, 4, 2]


def test_without_overtaking_a_batch_is_the_front_of_the_queue() -> None:
    scheduler = Scheduler(4, max_overtakes=0, cost=cost_of(0.0, 0.001))
    filled(scheduler, [10, 10, 200, 10, 10])
    assert [lengths(scheduler.take()) for _ in range(3)] == [[10, 10], [200], [10, 10]]


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 16))
@settings(deadline=None)
def test_free_instances_share_what_waits(count: int, free: int, most: int) -> None:
    scheduler = Scheduler(most)
    filled(scheduler, [3] * count)
    batches = [batch for left in range(free, 0, -1) if (batch := scheduler.take(left))]
    found = [len(batch.entries) for batch in batches]
    assert len(found) == min(count, free), "an instance idles while something waits"
    assert sum(found) == min(count, free * most)
    assert max(found) - min(found) <= 1


@given(st.lists(LENGTHS, max_size=12), st.sampled_from([0, 40, 400]), st.floats(0, 0.1))
@settings(deadline=None)
def test_full_only_holds_back_exactly_what_could_become_fuller(
    found: list[int], budget: int, fixed: float
) -> None:
    scheduler = Scheduler(4, budget, cost=cost_of(fixed, 0.001))
    filled(scheduler, found)
    like = copy.deepcopy(scheduler).take()
    held = copy.deepcopy(scheduler)
    batch = scheduler.take(full_only=True)
    assert (len(held), held.tokens) == (len(found), sum(found))
    if like is None:
        assert batch is None
        return
    # One more as long as the longest adds no padding: it joins if anything does.
    held.push(entry(1000, like.longest))
    fuller = held.take()
    assert fuller is not None
    could_grow = len(fuller.entries) > len(like.entries)
    assert (batch is None) == could_grow
    if batch is None:
        assert (len(scheduler), scheduler.tokens) == (len(found), sum(found))
        assert all(one.overtaken == 0 for _, one in scheduler._waiting)


def test_what_waits_precedes_a_batch_only_if_it_should_have_been_its_head() -> None:
    scheduler = Scheduler(2)
    filled(scheduler, [1, 1])
    batch = scheduler.take()
    assert batch is not None
    scheduler.push(entry(2))
    assert not scheduler.precedes(batch)
    scheduler.push(entry(3, priority=1))
    assert scheduler.precedes(batch)


def test_restored_items_take_their_old_place() -> None:
    scheduler = Scheduler(2)
    entries = filled(scheduler, [5, 5, 5])
    batch = scheduler.take()
    assert batch is not None
    scheduler.restore(batch.entries[1:])
    assert (len(scheduler), scheduler.tokens) == (2, 10)
    again = scheduler.take()
    assert again is not None
    assert again.entries == (entries[1], entries[2])
