"""A deadline is a moment: it does not move when it is looked at."""

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.deadline import Deadline
from tests.harness import FakeClock

seconds = st.floats(min_value=0, max_value=1e6, allow_nan=False)


def test_after_takes_the_clock_it_is_given() -> None:
    clock = FakeClock(50.0)
    deadline = Deadline.after(2.5, clock)
    clock.advance(10.0)
    assert deadline.at == 52.5


@given(at=seconds, now=seconds)
def test_it_has_expired_exactly_when_nothing_remains(at: float, now: float) -> None:
    deadline = Deadline(at)
    assert deadline.expired(now) == (deadline.remaining(now) <= 0)


def test_at_the_very_moment_nobody_waits_any_more() -> None:
    deadline = Deadline(10.0)
    assert not deadline.expired(9.999)
    assert deadline.expired(10.0)
    assert deadline.remaining(12.0) == -2.0


@given(first=seconds, second=seconds)
def test_the_earlier_deadline_sorts_first(first: float, second: float) -> None:
    assert (Deadline(first) < Deadline(second)) == (first < second)
    assert min(Deadline(first), Deadline(second)).at == min(first, second)
