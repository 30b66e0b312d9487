"""Who may queue how much work: permits, quotas, and the refusal that says why and until when.

Decisions are synchronous and take the time as an argument. Nothing reaches a batcher or an
engine without a `Permit`, and leaving the permit's `with` returns what it holds, on success,
error and cancellation alike. Knows no message and no model.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from services.runtime import metrics
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    DeadlineExpired,
    DeadlineTooShort,
    Draining,
    GristmillError,
    InvalidRequest,
    Overloaded,
    QuotaExceeded,
)
from services.runtime.summed import Summed

# Identities beyond this are forgotten, least recently seen first: buckets must not grow for ever.
MAX_BUCKETS = 10_000
# Whoever waits as long as it was told must not be refused for the last bit of a float.
CLOCK_SLACK_S = 1e-6


Seconds = Callable[[], float]


def one_s() -> float:
    """The hint where nothing better is known."""
    return 1.0


@dataclass(slots=True)
class Cost:
    """What a piece of work takes up while it waits and runs."""

    items: int
    bytes: int = 0
    units: float = 1.0
    """What the quota counts: items for a classifier, tokens for a generator."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be admitted at once, and how fast one identity may go."""

    max_items: int
    max_bytes: int
    quota_units_per_s: float = 0.0
    """0: no quota."""
    quota_burst_units: float = 0.0
    """How much may be used at once; 0: one second's worth."""


@dataclass(slots=True)
class TokenBucket:
    """Refills at `rate` units a second up to `burst`."""

    rate: float
    burst: float
    level: float
    at: float

    def wait_s(self, units: float, now: float) -> float:
        """Seconds until `units` are there; 0 when they are there now."""
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        # More than a whole burst can never be there: let it through on a full bucket, in debt.
        wait_s = (min(units, self.burst) - self.level) / self.rate
        return wait_s if wait_s > CLOCK_SLACK_S else 0.0

    def take(self, units: float) -> None:
        """Use `units`, going into debt where they exceed the burst."""
        self.level -= units


@dataclass(slots=True)
class Permit:
    """The right to queue one piece of work until its deadline."""

    identity: str
    deadline: Deadline
    cost: Cost
    _release: Callable[[Cost], None] = field(repr=False)
    _held: bool = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Give back what it holds; more than once is no harm."""
        if self._held:
            self._held = False
            self._release(self.cost)


class Admission:
    """Grants permits within the limits of one queue."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._clock = clock
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self.items = 0
        self.bytes = 0
        self.draining = False
        self.admitted = 0
        self.refused: dict[str, int] = {}

    def admit(
        self,
        identity: str,
        deadline: Deadline,
        cost: Cost,
        wait_s: float = 0.0,
        drain_s: Seconds = one_s,
    ) -> Permit:
        """Grant a permit, or raise what refuses it.

        `wait_s` is the predicted time until the work could be done, `drain_s` tells the time
        until the queue has room again: the hint to a caller that finds it full.
        """
        now = self._clock()
        try:
            self._check(identity, deadline, cost, wait_s, drain_s, now)
        except GristmillError as error:
            self.refused[error.reason_given] = self.refused.get(error.reason_given, 0) + 1
            raise
        self.items += cost.items
        self.bytes += cost.bytes
        self.admitted += cost.items
        return Permit(identity, deadline, cost, self._release)

    def _check(
        self,
        identity: str,
        deadline: Deadline,
        cost: Cost,
        wait_s: float,
        drain_s: Seconds,
        now: float,
    ) -> None:
        if self.draining:
            raise Draining("this server is shutting down")
        self._refuse_what_never_fits(cost)
        if deadline.expired(now):
            raise DeadlineExpired("the deadline had passed when the call was read")
        if wait_s > deadline.remaining(now):
            raise DeadlineTooShort(
                f"the answer would take about {wait_s:.3f} s; "
                f"the deadline leaves {deadline.remaining(now):.3f} s",
                metadata={"predicted_wait_ms": str(round(wait_s * 1000))},
            )
        if self.items + cost.items > self.limits.max_items:
            raise Overloaded(
                f"the queue is full: {self.items} of {self.limits.max_items} items",
                retry_after_s=drain_s(),
            )
        if self.bytes + cost.bytes > self.limits.max_bytes:
            raise Overloaded(
                f"the queue is full: {self.bytes} of {self.limits.max_bytes} bytes",
                retry_after_s=drain_s(),
            )
        self._charge(identity, cost.units, now)

    def _refuse_what_never_fits(self, cost: Cost) -> None:
        """An empty queue could not hold it either, so no retry hint would be true."""
        limits = self.limits
        if cost.items > limits.max_items:
            said = f"{cost.items} at once, at most {limits.max_items} fit this model's queue"
            raise InvalidRequest.field("request", said)
        if cost.bytes > limits.max_bytes:
            said = f"{cost.bytes} bytes at once, at most {limits.max_bytes} fit this model's queue"
            raise InvalidRequest.field("request", said)

    def _charge(self, identity: str, units: float, now: float) -> None:
        rate = self.limits.quota_units_per_s
        if rate <= 0:
            return
        burst = self.limits.quota_burst_units or rate
        bucket = self._buckets.get(identity)
        if bucket is None:
            bucket = self._buckets[identity] = TokenBucket(rate, burst, burst, now)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(identity)
        wait_s = bucket.wait_s(units, now)
        if wait_s > 0:
            raise QuotaExceeded(f"{identity} may use {rate:g} units a second", retry_after_s=wait_s)
        bucket.take(units)

    def _release(self, cost: Cost) -> None:
        self.items -= cost.items
        self.bytes -= cost.bytes


QUEUED: Summed[Admission] = Summed(metrics.QUEUE_ITEMS, lambda queue: queue.items)
QUEUE_LIMITS: Summed[Admission] = Summed(metrics.QUEUE_LIMIT, lambda queue: queue.limits.max_items)


def show(model: str, queue: Admission) -> None:
    """Show the queue of one version of a model in the metrics, beside those of its others."""
    QUEUED.add(model, queue)
    QUEUE_LIMITS.add(model, queue)


def hide(model: str, queue: Admission) -> None:
    """No longer."""
    QUEUED.remove(model, queue)
    QUEUE_LIMITS.remove(model, queue)
