"""Permits and quotas: what is held is counted, what is refused holds nothing, hints are true."""

import math
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from services.runtime import errors
from services.runtime.admission import MAX_BUCKETS, Admission, Cost, Limits, Permit, TokenBucket
from services.runtime.deadline import Deadline
from tests.harness import FakeClock

LIMITS = Limits(max_items=10, max_bytes=1000, quota_units_per_s=3.0, quota_burst_units=7.0)
REFUSALS = (
    errors.InvalidRequest,
    errors.Draining,
    errors.DeadlineExpired,
    errors.DeadlineTooShort,
    errors.Overloaded,
    errors.QuotaExceeded,
)
LATER = 3600.0


def admission(clock: FakeClock, **limits: float) -> Admission:
    """An admission with room for everything but what `limits` narrows."""
    given = {"max_items": 10**9, "max_bytes": 10**12, **limits}
    return Admission(Limits(**given), clock)  # type: ignore[arg-type]  # ints and floats by name


class AdmissionMachine(RuleBasedStateMachine):
    """Random work against the limits, beside a model that only adds up."""

    permits: Bundle[Permit] = Bundle("permits")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock(12345.678)
        self.admission = Admission(LIMITS, self.clock)
        self.held: dict[int, Permit] = {}
        self.granted: dict[str, float] = defaultdict(float)
        self.first_seen: dict[str, float] = {}
        self.largest: dict[str, float] = defaultdict(float)
        self.admitted = 0

    def _admit(self, who: str, cost: Cost, deadline: Deadline, wait_s: float) -> Permit:
        self.first_seen.setdefault(who, self.clock.now)
        permit = self.admission.admit(who, deadline, cost, wait_s)
        self.held[id(permit)] = permit
        self.granted[who] += cost.units
        self.largest[who] = max(self.largest[who], cost.units)
        self.admitted += cost.items
        return permit

    @rule(
        target=permits,
        who=st.sampled_from(["ann", "bob"]),
        items=st.integers(1, 12),
        size=st.integers(0, 1100),
        units=st.floats(0.1, 9.0),
        left_s=st.sampled_from([-1.0, 0.0, 0.5, 5.0]),
        wait_s=st.sampled_from([0.0, 0.1, 1.0]),
    )
    def admit(
        self, who: str, items: int, size: int, units: float, left_s: float, wait_s: float
    ) -> object:
        """Ask for a permit; a refusal changes nothing but its own count."""
        before = (self.admission.items, self.admission.bytes)
        refused = sum(self.admission.refused.values())
        deadline = Deadline(self.clock.now + left_s)
        try:
            return self._admit(who, Cost(items, size, units), deadline, wait_s)
        except REFUSALS:
            assert (self.admission.items, self.admission.bytes) == before
            assert sum(self.admission.refused.values()) == refused + 1
            return multiple()

    @rule(
        target=permits,
        who=st.sampled_from(["ann", "bob"]),
        units=st.floats(0.1, 9.0),
    )
    def ask_until_the_quota_refuses_then_obey(self, who: str, units: float) -> object:
        """Whoever waits as long as QuotaExceeded says is then admitted."""
        if self.admission.draining:
            return multiple()
        cost = Cost(0, 0, units)
        deadline = Deadline(self.clock.now + LATER)
        try:
            return self._admit(who, cost, deadline, 0.0)
        except errors.QuotaExceeded as error:
            assert error.retry_after_s is not None
            assert error.retry_after_s > 0
            self.clock.advance(error.retry_after_s)
            return self._admit(who, cost, deadline, 0.0)

    @rule(permit=permits)
    def release(self, permit: Permit) -> None:
        """Give a permit back; also one that was given back before."""
        permit.release()
        self.held.pop(id(permit), None)

    @rule(seconds=st.floats(0.0, 4.0))
    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.advance(seconds)

    @rule()
    def drain(self) -> None:
        """Begin the drain; what is held stays held."""
        self.admission.draining = True

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        """Never negative, never above the limit, never anything but the permits' sum."""
        assert self.admission.items == sum(p.cost.items for p in self.held.values())
        assert self.admission.bytes == sum(p.cost.bytes for p in self.held.values())
        assert 0 <= self.admission.items <= LIMITS.max_items
        assert 0 <= self.admission.bytes <= LIMITS.max_bytes
        assert self.admission.admitted == self.admitted

    @invariant()
    def nobody_goes_faster_than_the_quota(self) -> None:
        """A burst at once, then the rate; a single larger piece goes into debt."""
        for who, granted in self.granted.items():
            elapsed = self.clock.now - self.first_seen[who]
            at_once = max(LIMITS.quota_burst_units, self.largest[who])
            assert granted <= at_once + LIMITS.quota_units_per_s * elapsed + 1e-6


AdmissionMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestAdmissionMachine = AdmissionMachine.TestCase


@given(
    rate=st.floats(0.001, 1e5),
    burst=st.floats(0.001, 1e5),
    spent=st.floats(0.0, 1.0),
    wanted=st.floats(0.001, 2e5),
    now=st.floats(0.0, 1e7),
)
@settings(max_examples=300, deadline=None)
def test_the_wait_that_a_bucket_names_is_enough(
    rate: float, burst: float, spent: float, wanted: float, now: float
) -> None:
    clock = FakeClock(now)
    queue = admission(clock, quota_units_per_s=rate, quota_burst_units=burst)
    soon = Deadline(math.inf)
    if spent:
        queue.admit("ann", soon, Cost(1, units=burst * spent))
    try:
        queue.admit("ann", soon, Cost(1, units=wanted))
    except errors.QuotaExceeded as error:
        assert error.retry_after_s is not None
        clock.advance(error.retry_after_s)
        queue.admit("ann", soon, Cost(1, units=wanted))


def test_a_permit_gives_back_on_error_too() -> None:
    queue = admission(FakeClock())
    permit = queue.admit("ann", Deadline(LATER), Cost(3, 30))
    with pytest.raises(ZeroDivisionError), permit:
        assert (queue.items, queue.bytes) == (3, 30)
        _ = 1 / 0
    assert (queue.items, queue.bytes) == (0, 0)


def test_a_double_release_does_not_free_another_ones_place() -> None:
    queue = admission(FakeClock())
    first = queue.admit("ann", Deadline(LATER), Cost(3, 30))
    queue.admit("bob", Deadline(LATER), Cost(4, 40))
    with first:
        first.release()
    first.release()
    assert (queue.items, queue.bytes) == (4, 40)


def test_the_permit_carries_deadline_and_identity() -> None:
    permit = admission(FakeClock()).admit("ann", Deadline(LATER), Cost(1))
    assert (permit.identity, permit.deadline) == ("ann", Deadline(LATER))


def everything_wrong(clock: FakeClock) -> Admission:
    """Draining, full of items and bytes, and ann's quota used up."""
    queue = admission(clock, max_items=1, max_bytes=1, quota_units_per_s=1, quota_burst_units=1)
    queue.admit("ann", Deadline(LATER), Cost(1, 1, 1.0))
    queue.draining = True
    return queue


def test_refusals_come_in_the_order_in_which_waiting_does_not_help() -> None:
    clock = FakeClock(100.0)
    queue = everything_wrong(clock)
    expired, short, ample = Deadline(99.0), Deadline(101.0), Deadline(LATER)
    cost = Cost(1, 1, 1.0)
    with pytest.raises(errors.Draining):
        queue.admit("ann", expired, cost, wait_s=5.0)
    queue.draining = False
    with pytest.raises(errors.DeadlineExpired):
        queue.admit("ann", expired, cost, wait_s=5.0)
    with pytest.raises(errors.DeadlineTooShort) as too_short:
        queue.admit("ann", short, cost, wait_s=5.0)
    assert too_short.value.metadata["predicted_wait_ms"] == "5000"
    with pytest.raises(errors.Overloaded, match="items"):
        queue.admit("ann", ample, cost, wait_s=5.0)
    with pytest.raises(errors.Overloaded, match="bytes"):
        queue.admit("ann", ample, Cost(0, 1, 1.0), wait_s=5.0)
    with pytest.raises(errors.QuotaExceeded):
        queue.admit("ann", ample, Cost(0, 0, 1.0), wait_s=5.0)
    assert queue.refused == {
        errors.DRAINING: 1,
        errors.DEADLINE_EXPIRED: 1,
        errors.DEADLINE_TOO_SHORT: 1,
        errors.QUEUE_FULL: 2,
        errors.QUOTA_EXCEEDED: 1,
    }


def test_the_predicted_wait_may_use_up_the_deadline_but_not_exceed_it() -> None:
    queue = admission(FakeClock(100.0))
    queue.admit("ann", Deadline(105.0), Cost(1), wait_s=5.0)
    with pytest.raises(errors.DeadlineTooShort):
        queue.admit("ann", Deadline(105.0), Cost(1), wait_s=5.001)


def test_a_full_queue_says_when_it_will_have_room() -> None:
    queue = admission(FakeClock(), max_items=1)
    queue.admit("ann", Deadline(LATER), Cost(1))
    with pytest.raises(errors.Overloaded) as refused:
        queue.admit("bob", Deadline(LATER), Cost(1), drain_s=lambda: 2.5)
    assert refused.value.retry_after_s == 2.5


def test_work_refused_for_want_of_room_uses_no_quota() -> None:
    queue = admission(FakeClock(), max_items=1, quota_units_per_s=1, quota_burst_units=2)
    with queue.admit("ann", Deadline(LATER), Cost(1, units=1.0)):
        for _ in range(5):
            with pytest.raises(errors.Overloaded):
                queue.admit("ann", Deadline(LATER), Cost(1, units=1.0))
    queue.admit("ann", Deadline(LATER), Cost(1, units=1.0))


def test_one_identity_does_not_use_anothers_quota() -> None:
    queue = admission(FakeClock(), quota_units_per_s=1, quota_burst_units=1)
    queue.admit("ann", Deadline(LATER), Cost(1))
    queue.admit("bob", Deadline(LATER), Cost(1))
    with pytest.raises(errors.QuotaExceeded, match="ann"):
        queue.admit("ann", Deadline(LATER), Cost(1))


def test_a_burst_of_zero_is_one_seconds_worth() -> None:
    queue = admission(FakeClock(), quota_units_per_s=5)
    for _ in range(5):
        queue.admit("ann", Deadline(LATER), Cost(1, units=1.0))
    with pytest.raises(errors.QuotaExceeded) as refused:
        queue.admit("ann", Deadline(LATER), Cost(1, units=1.0))
    assert refused.value.retry_after_s == pytest.approx(0.2)


def test_a_piece_larger_than_the_burst_goes_through_and_is_paid_off() -> None:
    clock = FakeClock()
    queue = admission(clock, quota_units_per_s=1, quota_burst_units=2)
    queue.admit("ann", Deadline(LATER), Cost(1, units=10.0))
    with pytest.raises(errors.QuotaExceeded) as refused:
        queue.admit("ann", Deadline(LATER), Cost(1, units=1.0))
    assert refused.value.retry_after_s == pytest.approx(9.0)


def test_no_quota_means_no_quota() -> None:
    queue = admission(FakeClock())
    for _ in range(100):
        queue.admit("ann", Deadline(LATER), Cost(1, units=1e9))


def test_buckets_are_forgotten_oldest_first_and_never_grow_for_ever() -> None:
    clock = FakeClock()
    queue = admission(clock, quota_units_per_s=0.001, quota_burst_units=1)
    queue.admit("oldest", Deadline(LATER), Cost(1))
    queue.admit("kept", Deadline(LATER), Cost(1))
    for number in range(MAX_BUCKETS - 2):
        queue.admit(f"caller-{number}", Deadline(LATER), Cost(1))
    with pytest.raises(errors.QuotaExceeded):
        queue.admit("kept", Deadline(LATER), Cost(1))
    queue.admit("one more", Deadline(LATER), Cost(1))
    with pytest.raises(errors.QuotaExceeded):
        queue.admit("kept", Deadline(LATER), Cost(1))
    queue.admit("oldest", Deadline(LATER), Cost(1))


def test_a_bucket_does_not_fill_beyond_its_burst() -> None:
    bucket = TokenBucket(rate=2.0, burst=3.0, level=3.0, at=0.0)
    assert bucket.wait_s(3.0, now=1e6) == 0.0
    bucket.take(3.0)
    assert bucket.wait_s(1.0, now=1e6) == pytest.approx(0.5)


@pytest.mark.parametrize("cost", [Cost(11), Cost(1, 1001)])
def test_what_never_fits_is_the_caller_s_to_change(cost: Cost) -> None:
    """A hint to come back would not be true: an empty queue could not hold it either."""
    queue = Admission(Limits(10, 1000), FakeClock())
    with pytest.raises(errors.InvalidRequest) as refused:
        queue.admit("bob", Deadline(LATER), cost)
    assert refused.value.retry_after_s is None
    assert (queue.items, queue.bytes) == (0, 0)
