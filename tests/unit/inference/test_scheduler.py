"""The six laws of the scheduler, beside a model that keeps a plain list and knows no packing."""

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

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
GROUPS = st.sampled_from([None, None, None, "other", ("a", 1)])
LENGTHS = st.one_of(st.sampled_from([1, 10, 100]), st.integers(1, 200))


def entry(
    arrival: int,
    length: int = 1,
    priority: int = 5,
    deadline: float = NEVER,
    group: Hashable = None,
) -> Entry:
    """An item that came `arrival`-th."""
    return Entry((priority, deadline, arrival), length, group)


def filled(
    scheduler: Scheduler, lengths: Sequence[int], groups: Sequence[Hashable] = ()
) -> list[Entry]:
    """Items of these lengths, waiting in this order; of these groups, if any."""
    of = groups or [None] * len(lengths)
    entries = [
        entry(arrival, length, group=group)
        for arrival, (length, group) in enumerate(zip(lengths, of, strict=True))
    ]
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


def largest(preferred: Sequence[int], count: int) -> int:
    """The largest of the preferred sizes that so many fill; so many where they fill none."""
    return max((size for size in preferred if size <= count), default=count)


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
        preferred=st.sampled_from([(), (), (2,), (4, 1, 2), (3, 5), (64,)]),
    )
    def configure(
        self, size: int, tokens: int, overtakes: int, fixed: float, preferred: tuple[int, ...]
    ) -> None:
        """Choose the settings."""
        self.scheduler = Scheduler(size, tokens, overtakes, cost_of(fixed, 1e-4), preferred)

    @rule(
        priority=st.sampled_from([1, 5, 5, 5]),
        # One that is over already may come too: the batcher says so only when it next looks.
        left_s=st.sampled_from([-1.0, 0.0, 0.5, 2.0, 10.0, NEVER]),
        length=LENGTHS,
        group=GROUPS,
    )
    def push(self, priority: int, left_s: float, length: int, group: Hashable) -> None:
        """An item comes."""
        self.arrivals += 1
        one = entry(self.arrivals, length, priority, self.now + left_s, group)
        self.scheduler.push(one)
        self.waiting.append(Known(one))

    @rule(items=st.lists(st.tuples(LENGTHS, GROUPS), min_size=2, max_size=10))
    def push_many(self, items: list[tuple[int, Hashable]]) -> None:
        """A message of several items comes."""
        for length, group in items:
            self.push(5, NEVER, length, group)

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
        self.check_group(batch)
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

    def check_group(self, batch: Batch) -> None:
        """Law 6: one group only, and of a preferred size where one is filled."""
        assert len({one.group for one in batch.entries}) == 1
        count = len(batch.entries)
        assert count == largest(self.scheduler.preferred, count)
        assert batch.released != "preferred" or count in self.scheduler.preferred

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
        elif batch.released == "preferred":
            assert count < min(self.scheduler.max_batch_size, share)
        else:
            assert count < waited
            assert batch.released == "padding" or self.scheduler.max_batch_tokens

    def check_full(self, batch: Batch) -> None:
        """No later arrivals, not even the shortest, would have made a larger batch of it."""
        count, preferred = len(batch.entries), self.scheduler.preferred
        larger = count + 1
        if count in preferred:
            larger = min((size for size in preferred if size > count), default=10**6)
        assert larger > self.scheduler.max_batch_size or (
            0 < self.scheduler.max_batch_tokens < batch.longest * larger
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


# Law 6: groups and preferred sizes.


def test_groups_never_mix_and_each_keeps_its_order() -> None:
    scheduler = Scheduler(8)
    entries = filled(scheduler, [5] * 6, ["a", "b", "a", "b", None, "a"])
    taken = [batch.entries for _ in range(3) if (batch := scheduler.take())]
    assert taken == [
        (entries[0], entries[2], entries[5]),
        (entries[1], entries[3]),
        (entries[4],),
    ]


def test_equal_groups_need_not_be_the_same_object() -> None:
    scheduler = Scheduler(8)
    shapes = [(3, side, side) for side in (224, 224, 112)]
    filled(scheduler, [1, 1, 1], shapes)
    assert sizes(scheduler) == [2, 1]


def test_another_group_closes_a_batch_as_padding_does() -> None:
    scheduler = Scheduler(8)
    filled(scheduler, [1, 1, 1], ["a", "b", "a"])
    batch = scheduler.take()
    assert batch is not None
    assert (len(batch.entries), batch.released) == (2, "padding")


@pytest.mark.parametrize("most", [0, 1, 3])
def test_an_item_of_another_group_is_overtaken_so_often_and_no_more(most: int) -> None:
    scheduler = Scheduler(2, max_overtakes=most)
    ahead = [f"pair {n}" for n in range(5)]
    # Each of the first five finds its like only behind the odd one.
    entries = filled(scheduler, [1] * 11, [*ahead, "odd", *ahead])
    found = [batch.entries for _ in range(6) if (batch := scheduler.take())]
    pairs = [(entries[n], entries[n + 6]) for n in range(most)]
    singles = [(entries[n],) for n in range(most, 5)]
    assert found == [*pairs, *singles, (entries[5],)]


@given(
    st.lists(st.sampled_from("ab"), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(0, 3),
    st.lists(st.integers(1, 9), max_size=3),
)
@settings(deadline=None)
def test_whatever_the_groups_everything_comes_out_once(
    groups: list[str], size: int, overtakes: int, preferred: list[int]
) -> None:
    scheduler = Scheduler(size, max_overtakes=overtakes, preferred=preferred)
    entries = filled(scheduler, [1] * len(groups), groups)
    found: list[Entry] = []
    while batch := scheduler.take():
        assert len({one.group for one in batch.entries}) == 1
        found.extend(batch.entries)
    assert sorted(one.order for one in found) == [one.order for one in entries]


@pytest.mark.parametrize(
    ("waiting", "preferred", "expected"),
    [
        (7, (), [7]),
        (7, (4,), [4, 3]),
        (7, (4, 2), [4, 2, 1]),
        (7, (2, 4), [4, 2, 1]),
        (7, (7,), [7]),
        (7, (1,), [1] * 7),
        (7, (8, 16), [7]),
        (20, (4, 8), [8, 8, 4]),
    ],
)
def test_a_batch_is_cut_to_the_largest_preferred_size_that_it_fills(
    waiting: int, preferred: tuple[int, ...], expected: list[int]
) -> None:
    scheduler = Scheduler(10, preferred=preferred)
    filled(scheduler, [3] * waiting)
    assert sizes(scheduler) == expected


def test_a_batch_that_is_cut_says_so_and_one_that_is_not_says_why_it_ended() -> None:
    scheduler = Scheduler(8, preferred=(4,))
    filled(scheduler, [1] * 6)
    batches = [batch for _ in range(2) if (batch := scheduler.take())]
    assert [batch.released for batch in batches] == ["preferred", "drained"]


def test_what_is_cut_off_is_what_fits_least() -> None:
    scheduler = Scheduler(8, preferred=(3,), cost=cost_of(1.0, 0.001))
    filled(scheduler, [50, 90, 10, 49, 51])
    assert lengths(scheduler.take()) == [50, 49, 51]
    assert sorted(lengths(scheduler.take())) == [10, 90]


def test_what_is_cut_off_waits_in_its_old_place_and_was_overtaken_by_nobody_new() -> None:
    scheduler = Scheduler(8, max_overtakes=0, preferred=(2,), cost=cost_of(1.0, 0.001))
    entries = filled(scheduler, [10, 500, 10, 10])
    taken = [batch.entries for _ in range(2) if (batch := scheduler.take())]
    assert taken == [tuple(entries[:2]), tuple(entries[2:])]


@given(
    st.lists(LENGTHS, min_size=1, max_size=40),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(0, 2),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_cutting_leaves_nobody_overtaken_more_often(
    found: list[int], preferred: list[int], overtakes: int, free: int
) -> None:
    scheduler = Scheduler(12, 0, overtakes, cost_of(0.01, 0.001), preferred)
    overtaken = {id(one): 0 for one in filled(scheduler, found)}
    while batch := scheduler.take(free):
        last = max(one.order for one in batch.entries)
        for order, one in scheduler._waiting:
            if order < last:
                overtaken[id(one)] += 1
                assert overtaken[id(one)] <= overtakes


@pytest.mark.parametrize("waiting", [5, 6, 20])
def test_a_batch_cut_to_the_largest_preferred_size_cannot_become_fuller(waiting: int) -> None:
    """However many come, 4 is what a batch of at most 6 is cut to: nothing is waited for."""
    scheduler = Scheduler(6, preferred=(4,))
    filled(scheduler, [1] * waiting)
    batch = scheduler.take(full_only=True)
    assert batch is not None
    assert len(batch.entries) == 4


@pytest.mark.parametrize(
    ("waiting", "preferred", "budget", "expected"),
    [
        (6, (4, 8), 0, 0),  # two more, and it would be eight
        (8, (4, 8), 0, 8),
        (3, (4, 8), 0, 0),
        (5, (2, 4), 0, 4),
        (3, (2, 4), 0, 0),
        (4, (4,), 0, 4),  # a fifth would be cut off
        (4, (4, 64), 0, 4),  # nor does a batch ever hold 64
        (4, (4, 8), 60, 4),  # eight of ten tokens are beyond the budget
        (4, (4, 6), 60, 0),
        (2, (), 0, 0),
    ],
)
def test_a_batch_is_held_back_as_long_as_a_larger_preferred_size_may_be_filled(
    waiting: int, preferred: tuple[int, ...], budget: int, expected: int
) -> None:
    scheduler = Scheduler(8, budget, preferred=preferred)
    filled(scheduler, [10] * waiting)
    batch = scheduler.take(full_only=True)
    assert (len(batch.entries) if batch else 0) == expected
    assert len(scheduler) == waiting - expected


# What expires, although only a bound of the soonest deadline is kept.


class Expiring(RuleBasedStateMachine):
    """Deadlines that come and go in any order, beside a plain list that is looked through whole."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(3)
        self.waiting: list[Entry] = []
        self.away: list[Entry] = []
        self.now = 0.0
        self.arrivals = 0

    @rule(left_s=st.sampled_from([-2.0, 0.0, 1.0, 1.0, 2.0, 5.0, NEVER]))
    def push(self, left_s: float) -> None:
        """An item comes, perhaps one whose deadline has passed."""
        self.arrivals += 1
        one = entry(self.arrivals, deadline=self.now + left_s)
        self.scheduler.push(one)
        self.waiting.append(one)

    @rule(pick=st.randoms(use_true_random=False))
    @precondition(lambda self: self.waiting)
    def remove(self, pick: Any) -> None:
        """An item leaves, perhaps the one with the soonest deadline."""
        one = pick.choice(self.waiting)
        assert self.scheduler.remove(one)
        self.waiting.remove(one)

    @rule()
    @precondition(lambda self: self.waiting)
    def take(self) -> None:
        """Some go into a batch."""
        batch = self.scheduler.take()
        assert batch is not None
        self.away = list(batch.entries)
        self.waiting = [one for one in self.waiting if one not in self.away]

    @rule()
    @precondition(lambda self: self.away)
    def restore(self) -> None:
        """They come back, perhaps after their deadlines."""
        self.scheduler.restore(self.away)
        self.waiting += self.away
        self.away = []

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.0]))
    def expire(self, seconds: float) -> None:
        """Time passes; exactly what is over is given up, and once."""
        self.now += seconds
        dead = [one for one in self.waiting if one.deadline <= self.now]
        found = self.scheduler.expire(self.now)
        assert sorted(one.order for one in found) == sorted(one.order for one in dead)
        assert all(one in dead for one in found)
        assert self.scheduler.expire(self.now) == []
        self.waiting = [one for one in self.waiting if one not in dead]

    @invariant()
    def as_many_wait(self) -> None:
        """Nothing is lost or kept that should not be."""
        assert len(self.scheduler) == len(self.waiting)


Expiring.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestExpiring = Expiring.TestCase


def test_what_comes_back_after_its_deadline_expires() -> None:
    scheduler = Scheduler(2)
    first, second = entry(1, deadline=5.0), entry(2, deadline=9.0)
    for one in (first, second):
        scheduler.push(one)
    assert scheduler.take() is not None
    assert scheduler.expire(7.0) == []
    scheduler.restore([first, second])
    assert scheduler.expire(7.0) == [first]
    assert scheduler.expire(9.0) == [second]


def test_the_soonest_that_left_hides_no_other() -> None:
    scheduler = Scheduler(2)
    first, second, third = (entry(n, deadline=float(n)) for n in (1, 2, 3))
    for one in (third, first, second):
        scheduler.push(one)
    scheduler.remove(first)
    assert scheduler.expire(1.5) == []
    assert scheduler.expire(2.0) == [second]
    scheduler.push(fourth := entry(4, deadline=2.5))
    assert scheduler.expire(2.5) == [fourth]
    assert scheduler.expire(3.0) == [third]
