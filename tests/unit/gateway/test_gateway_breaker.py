"""When an address is left alone, and how many retries there are: any order of what may happen."""

from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.breaker import FAILURES, FIRST_PAUSE_S, LONGEST_PAUSE_S, Breaker, RetryBudget
from tests.harness import FakeClock

SLACK_S = 1e-6
Outcome = Literal["succeeded", "failed"]
OUTCOMES = st.lists(st.sampled_from(["succeeded", "failed"]), max_size=400)


class BreakerMachine(RuleBasedStateMachine):
    """Calls that overlap as they like, beside a model that only counts."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.breaker = Breaker()
        self.in_flight = 0
        self.in_a_row = 0
        self.quiet_since = self.clock.now
        """When it last let a call through, or heard of a failure, while open."""
        self.pauses_begun = 0

    @property
    def is_open(self) -> bool:
        """What the model says."""
        return self.in_a_row >= FAILURES

    @rule(seconds=st.floats(0.0, 2 * LONGEST_PAUSE_S))
    def time_passes(self, seconds: float) -> None:
        """Nothing else happens."""
        self.clock.advance(seconds)

    @rule()
    def ask(self) -> None:
        """A call wants to go: it goes where it is let."""
        now = self.clock.now
        let = self.breaker.lets_through(now)
        assert let == self.breaker.lets_through(now), "asking changes nothing"
        if not self.is_open:
            assert let, "closed, and it stops a call"
        else:
            waited = now - self.quiet_since
            if waited < FIRST_PAUSE_S - SLACK_S:
                assert not let, "open, and it lets a call through before its pause is over"
            if waited > LONGEST_PAUSE_S + SLACK_S:
                assert let, "open for longer than its longest pause"
        if not let:
            return
        self.breaker.begin(now)
        self.in_flight += 1
        if self.is_open:
            self.quiet_since = now
            assert not self.breaker.lets_through(now), "open, and it lets two through at once"

    @precondition(lambda self: self.in_flight)
    @rule()
    def answered(self) -> None:
        """A call reaches its service, however long ago it began."""
        self.in_flight -= 1
        self.breaker.succeeded()
        self.in_a_row = 0

    @precondition(lambda self: self.in_flight)
    @rule()
    def lost(self) -> None:
        """A call reaches nothing."""
        self.in_flight -= 1
        self.breaker.failed(self.clock.now)
        self.in_a_row += 1
        if self.is_open:
            self.quiet_since = self.clock.now

    @precondition(lambda self: self.in_flight)
    @rule()
    def given_up(self) -> None:
        """A caller leaves: nothing is learned, and nothing is blocked by it."""
        self.in_flight -= 1

    @invariant()
    def it_is_never_open_for_good(self) -> None:
        """Whatever has happened, the longest pause later a call goes through."""
        assert self.breaker.lets_through(self.clock.now + LONGEST_PAUSE_S + SLACK_S)


BreakerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase


def open_breaker(now: float) -> Breaker:
    """One that has just opened."""
    breaker = Breaker()
    for _ in range(FAILURES):
        breaker.begin(now)
        breaker.failed(now)
    return breaker


class TestBreaker:
    @given(outcomes=OUTCOMES)
    def test_opens_with_so_many_failures_in_a_row_and_never_before(
        self, outcomes: list[Outcome]
    ) -> None:
        breaker, in_a_row = Breaker(), 0
        for outcome in outcomes:
            if outcome == "failed":
                breaker.failed(0.0)
                in_a_row += 1
            else:
                breaker.succeeded()
                in_a_row = 0
            assert breaker.lets_through(0.0) == (in_a_row < FAILURES)

    def test_pauses_grow_and_are_bounded(self) -> None:
        now, pauses = 1000.0, []
        breaker = open_breaker(now)
        for _ in range(20):
            pause = breaker.open_until - now
            assert not breaker.lets_through(now + pause - SLACK_S)
            now += pause
            assert breaker.lets_through(now)
            breaker.begin(now)
            breaker.failed(now)
            pauses.append(pause)
        assert pauses == sorted(pauses)
        assert pauses[0] == pytest.approx(FIRST_PAUSE_S)
        assert pauses[1] > pauses[0]
        assert pauses[-1] == pytest.approx(LONGEST_PAUSE_S)

    @given(failures=st.integers(FAILURES, 50), waits=st.lists(st.floats(0.0, 20.0), max_size=5))
    def test_any_success_closes_it_and_forgets_its_pauses(
        self, failures: int, waits: list[float]
    ) -> None:
        breaker, now = Breaker(), 0.0
        for index in range(failures):
            now += waits[index % len(waits)] if waits else 0.0
            breaker.failed(now)
        breaker.succeeded()
        assert breaker.lets_through(now)
        for _ in range(FAILURES - 1):
            breaker.failed(now)
            assert breaker.lets_through(now)
        breaker.failed(now)
        assert not breaker.lets_through(now + FIRST_PAUSE_S - SLACK_S)
        assert breaker.lets_through(now + FIRST_PAUSE_S + SLACK_S)

    @given(asked=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=300))
    def test_lets_one_through_for_each_pause(self, asked: list[float]) -> None:
        now = 1000.0
        breaker, let = open_breaker(now), []
        for wait in asked:
            now += wait
            if breaker.lets_through(now):
                breaker.begin(now)
                let.append(now)
        gaps = [later - earlier for earlier, later in pairwise(let)]
        assert all(gap >= FIRST_PAUSE_S - SLACK_S for gap in gaps), gaps
        assert len(let) >= int(sum(asked) / (FIRST_PAUSE_S + 1.0 + SLACK_S))


class TestRetryBudget:
    @given(outcomes=OUTCOMES)
    def test_holds_what_was_earned_and_allows_nothing_at_half_or_below(
        self, outcomes: list[Outcome]
    ) -> None:
        budget, expected = RetryBudget(), 10.0
        assert budget.allows()
        for outcome in outcomes:
            if outcome == "failed":
                budget.failed()
                expected = max(0.0, expected - 1.0)
            else:
                budget.succeeded()
                expected = min(10.0, expected + 0.1)
            assert 0.0 <= budget.level <= budget.most
            assert budget.level == pytest.approx(expected, abs=1e-6)
            if expected > 5.0 + SLACK_S:
                assert budget.allows()
            if expected <= 5.0 - SLACK_S:
                assert not budget.allows()

    def test_failures_alone_allow_fewer_retries_than_half_of_it(self) -> None:
        budget, retries = RetryBudget(), 0
        for _ in range(1000):
            budget.failed()
            retries += budget.allows()
        assert retries == 4

    @given(calls=st.integers(100, 2000), retries_fail=st.booleans())
    @settings(max_examples=30)
    def test_retries_never_come_to_more_than_a_tenth_of_what_gets_through(
        self, calls: int, retries_fail: bool
    ) -> None:
        budget, retries, through = RetryBudget(), 0, 0
        for index in range(calls):
            # The worst pattern: a failure whenever there is a retry to be had for it.
            if budget.allows():
                budget.failed()
                retries += budget.allows()
                if retries_fail:
                    continue
            budget.succeeded()
            through += 1
            assert retries <= budget.most / 2 + through * budget.earned + 1, index
