"""Who computes a key: always somebody, never somebody that a more urgent one waits for."""

from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.inference.cache.flight import Flights, Order, Outcome, Stake
from services.inference.cache.values import Value
from services.inference.scoring import Outputs
from services.runtime.errors import (
    BackendFailed,
    DeadlineExpired,
    DeadlineTooShort,
    Draining,
    GristmillError,
    InvalidRequest,
    Overloaded,
    QuotaExceeded,
)

VALUE = Value.of(Outputs({"p": np.ones((1, 2), np.float32)}), 0)
ITS_OWN = [
    kind("given up")
    for kind in (Overloaded, QuotaExceeded, DeadlineTooShort, DeadlineExpired, Draining)
]
OF_THE_ITEM = [VALUE, InvalidRequest("bad"), BackendFailed("failed")]
A, B = b"a" * 32, b"b" * 32


@dataclass
class Ear:
    """What a party was told, in order."""

    told: list[Outcome | None] = field(default_factory=list)

    def hear(self, _: Stake, outcome: Outcome | None) -> None:
        self.told.append(outcome)


def joined(flights: Flights, *orders: Order, key: bytes = A) -> tuple[list[Stake], list[Ear]]:
    """Parties that join one after the other."""
    ears = [Ear() for _ in orders]
    return [flights.join(key, o, ear.hear) for o, ear in zip(orders, ears, strict=True)], ears


def test_equal_keys_are_computed_once_and_told_to_all() -> None:
    flights = Flights()
    stakes, ears = joined(flights, (5, 1.0), (5, 1.0), (5, 2.0))
    assert [stake.leads for stake in stakes] == [True, False, False]
    flights.publish(stakes[0], VALUE)
    assert [ear.told for ear in ears] == [[], [VALUE], [VALUE]]
    assert len(flights) == 0


def test_different_keys_have_nothing_to_do_with_each_other() -> None:
    flights = Flights()
    (one,), _ = joined(flights, (5, 1.0))
    (other,), (ear,) = joined(flights, (5, 1.0), key=B)
    assert other.leads
    flights.publish(one, VALUE)
    assert ear.told == []
    assert len(flights) == 1


@pytest.mark.parametrize("error", ITS_OWN, ids=repr)
def test_what_refuses_one_refuses_no_other(error: GristmillError) -> None:
    flights = Flights()
    stakes, ears = joined(flights, (5, 1.0), (5, 3.0), (5, 2.0))
    flights.publish(stakes[0], error)
    assert [ear.told for ear in ears] == [[], [], [None]], "the most urgent of them computes"
    assert stakes[2].leads
    flights.publish(stakes[2], VALUE)
    assert ears[1].told == [VALUE]
    assert len(flights) == 0


@pytest.mark.parametrize("outcome", OF_THE_ITEM, ids=repr)
def test_what_is_wrong_with_the_item_is_wrong_with_it_for_all(outcome: Outcome) -> None:
    flights = Flights()
    stakes, ears = joined(flights, (5, 1.0), (5, 2.0))
    flights.publish(stakes[0], outcome)
    assert ears[1].told == [outcome]


@pytest.mark.parametrize("order", [(4, 9.0), (5, 0.5)])
def test_who_is_more_urgent_than_those_who_compute_does_not_wait(order: Order) -> None:
    flights = Flights()
    stakes, ears = joined(flights, (5, 1.0), (5, 1.0), order, order)
    assert [stake.leads for stake in stakes] == [True, False, True, False]
    assert not flights.alone(stakes[0])
    assert not flights.alone(stakes[2])
    flights.publish(stakes[2], VALUE)
    assert [ear.told for ear in ears] == [[VALUE], [VALUE], [], [VALUE]]
    flights.publish(stakes[0], VALUE)
    assert len(flights) == 0


def test_who_waits_for_the_urgent_does_not_wait_for_the_rest_once_it_left() -> None:
    flights = Flights()
    stakes, ears = joined(flights, (5, 1.0), (3, 1.0), (4, 1.0), (6, 1.0))
    flights.leave(stakes[1])
    assert [ear.told for ear in ears] == [[], [], [None], []]
    assert [stake.leads for stake in stakes[2:]] == [True, False]


def test_who_leaves_while_it_waits_is_not_asked_to_compute() -> None:
    flights = Flights()
    stakes, ears = joined(flights, *[(5, float(n)) for n in range(5)])
    for stake in stakes[1:3]:
        flights.leave(stake)
    flights.leave(stakes[0])
    assert [ear.told for ear in ears] == [[], [], [], [None], []]


def test_leaving_twice_or_after_the_outcome_is_no_harm() -> None:
    flights = Flights()
    stakes, ears = joined(flights, (5, 1.0), (5, 2.0), (5, 3.0))
    for _ in range(2):
        flights.leave(stakes[0])
        flights.publish(stakes[0], VALUE)
    assert [ear.told for ear in ears] == [[], [None], []]
    flights.publish(stakes[1], VALUE)
    for stake in stakes:
        flights.leave(stake)
        flights.publish(stake, VALUE)
    assert [ear.told for ear in ears] == [[], [None], [VALUE]]
    assert len(flights) == 0


def test_thousands_who_come_and_go_leave_nothing_behind() -> None:
    flights = Flights()
    (leader,), _ = joined(flights, (5, 0.0))
    for number in range(10_000):
        (stake,), _ = joined(flights, (5, float(number % 7)))
        flights.leave(stake)
        assert leader.flight is not None
        assert len(leader.flight.waiting) <= 2


@pytest.mark.parametrize("seed", range(50))
def test_those_who_wait_follow_each_other_by_urgency(seed: int) -> None:
    draw = Random(seed)
    flights = Flights()
    (leader,), _ = joined(flights, (5, -1.0))
    stakes, _ = joined(flights, *[(5, float(draw.randrange(20))) for _ in range(40)])
    draw.shuffle(stakes)
    for stake in stakes[:25]:
        flights.leave(stake)
    left = stakes[25:]
    while left:
        flights.leave(leader)
        (leader,) = [stake for stake in left if stake.leads]
        left.remove(leader)
        assert all(stake.order >= leader.order for stake in left)
    flights.leave(leader)
    assert len(flights) == 0


@settings(max_examples=80, stateful_step_count=40, deadline=None)
class Table(RuleBasedStateMachine):
    """Parties come, leave, and have outcomes, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.flights = Flights()
        self.live: list[tuple[bytes, Order, Stake, Ear]] = []

    def of(self, key: bytes) -> list[tuple[bytes, Order, Stake, Ear]]:
        return [one for one in self.live if one[0] == key]

    @rule(key=st.sampled_from([A, B]), order=st.tuples(st.integers(1, 3), st.integers(0, 3)))
    def join(self, key: bytes, order: Order) -> None:
        computing = [o for _, o, stake, _ in self.of(key) if stake.leads]
        ear = Ear()
        stake = self.flights.join(key, order, ear.hear)
        assert stake.leads == (not computing or order < min(computing))
        assert ear.told == []
        self.live.append((key, order, stake, ear))

    @precondition(lambda self: self.live)
    @rule(draw=st.data())
    def leave(self, draw: st.DataObject) -> None:
        at = draw.draw(st.integers(0, len(self.live) - 1))
        key, _, stake, _ = self.live.pop(at)
        before = {id(other): len(other.told) for *_, other in self.live}
        self.flights.leave(stake)
        for other_key, _, other, heard in self.live:
            new = heard.told[before[id(heard)] :]
            assert new in ([], [None])
            assert not new or (other.leads and other_key == key and stake.leads)

    @precondition(lambda self: any(stake.leads for _, _, stake, _ in self.live))
    @rule(draw=st.data(), outcome=st.sampled_from([*ITS_OWN, *OF_THE_ITEM]))
    def end(self, draw: st.DataObject, outcome: Outcome) -> None:
        leading = [at for at, one in enumerate(self.live) if one[2].leads]
        key, _, stake, _ = self.live.pop(draw.draw(st.sampled_from(leading)))
        others = self.of(key)
        self.flights.publish(stake, outcome)
        told = [ear for *_, ear in others if ear.told[-1:] == [outcome]]
        if outcome in OF_THE_ITEM:
            assert len(told) == len(others)
            self.live = [one for one in self.live if one[0] != key]
            # Whoever computed as well has an outcome that nobody waits for.
            for _, _, other, ear in others:
                heard = len(ear.told)
                self.flights.publish(other, outcome)
                assert len(ear.told) == heard
        else:
            assert not told

    @invariant()
    def somebody_computes_for_whom_each_may_wait(self) -> None:
        for key in (A, B):
            computing = [order for _, order, stake, _ in self.of(key) if stake.leads]
            waiting = [order for _, order, stake, _ in self.of(key) if not stake.leads]
            assert bool(computing) == bool(self.of(key))
            assert all(order >= min(computing) for order in waiting)
            assert len(set(computing)) == len(computing), "as urgent a one could have waited"

    @invariant()
    def nothing_is_kept_of_those_who_are_gone(self) -> None:
        assert len(self.flights) == len({key for key, *_ in self.live})

    @invariant()
    def nobody_was_told_twice(self) -> None:
        for _, _, stake, ear in self.live:
            assert ear.told in ([], [None])
            assert not ear.told or stake.leads

    def teardown(self) -> None:
        for _, _, stake, _ in self.live:
            self.flights.leave(stake)
        assert len(self.flights) == 0


TestTable = Table.TestCase
