"""Ten times what a model can do, in a process of its own: what is done stays, the rest is refused.

The device takes a known time for a batch and leaves the processor alone, so that what is measured
is the server and not how many cores it shares with its callers. Calls come at a steady rate whether
or not earlier ones are answered; a third of them has 50 ms, a third 300.

The machine that runs this may be shared. So rates are medians over half seconds, and the short form
takes a fifth off the peak and refusals of a few more milliseconds; the long form, on a machine of
its own, holds the server to a tenth and to 20 ms.
"""

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.classifier.v1 import item_pb2

from tests.e2e.load import FIGURES
from tests.e2e.pair import Watched, until
from tests.e2e.processes import Service, free_ports
from tests.e2e.slow_classifier import COMPUTED
from tests.harness import reason

ITEMS = 8
"""In a call, and in a batch."""
BATCH_MS = 16.0
QUEUE_CALLS = 40
OVERLOAD = 10
PATIENCE_S = 10.0
TIMEOUTS_S = (0.05, 0.3, PATIENCE_S)
"""A third of the callers each. What has 300 ms is overtaken by what has 50, and must be dropped."""
WINDOW_S = 0.5
LEAST_OFFERED = 0.8
"""A generator that falls so far behind has not shown anything."""
REFUSALS = ("QUEUE_FULL", "DEADLINE_TOO_SHORT")
Code = grpc.StatusCode


@dataclass(frozen=True)
class Form:
    """How long, and how strictly."""

    moderate_s: float
    overload_s: float
    share_of_peak: float
    refused_p99_s: float
    growth_mib: float


SHORT = Form(2.5, 5.0, share_of_peak=0.8, refused_p99_s=0.1, growth_mib=15.0)
LONG = Form(10.0, 60.0, share_of_peak=0.9, refused_p99_s=0.02, growth_mib=15.0)


@dataclass
class Call:
    """One call: its numbers, how long it had, and how it ended."""

    first: int
    timeout_s: float
    began: float
    ended: float = 0.0
    how: str = ""
    """OK, the reason that the server gave, or CLIENT where the caller's own clock ended it."""


@dataclass
class Crowd:
    """Callers of one server."""

    stub: Any
    calls: list[Call] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def call(self, timeout_s: float) -> None:
        """One call with numbers that no other has."""
        one = Call(len(self.calls) * ITEMS, timeout_s, time.monotonic())
        self.calls.append(one)
        vectors = [item_pb2.FloatFeatures(values=[one.first + i]) for i in range(ITEMS)]
        request = pb.ClassifyRequest(items=[item_pb2.Item(float_features=v) for v in vectors])
        try:
            answer = await self.stub.Classify(request, timeout=timeout_s)
            one.how = "OK"
            assert all(r.WhichOneof("outcome") == "classification" for r in answer.results)
        except grpc.aio.AioRpcError as error:
            told = any(key == "grpc-status-details-bin" for key, _ in error.trailing_metadata())
            assert told or error.code() is Code.DEADLINE_EXCEEDED, error
            one.how = reason(error) if told else "CLIENT"
        one.ended = time.monotonic()

    async def moderate(self, seconds: float) -> list[Call]:
        """Just enough callers to keep the device busy, each waiting for its answer."""
        at, ends = len(self.calls), time.monotonic() + seconds

        async def call_on() -> None:
            while time.monotonic() < ends:
                await self.call(PATIENCE_S)

        await asyncio.gather(*(call_on() for _ in range(4)))
        return self.calls[at:]

    async def steady(self, rate: float, seconds: float) -> list[Call]:
        """So many calls a second, whatever becomes of them."""
        at, started = len(self.calls), time.monotonic()
        while (passed := time.monotonic() - started) < seconds:
            while len(self.calls) - at < rate * passed:
                timeout_s = TIMEOUTS_S[len(self.calls) % len(TIMEOUTS_S)]
                task = asyncio.ensure_future(self.call(timeout_s))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)
        return self.calls[at:]

    async def all_answered(self) -> None:
        """Wait for what is still under way."""
        await asyncio.gather(*self._tasks)


@contextmanager
def slow_classifier(folder: Path, transport: str) -> Iterator[Watched]:
    """The process."""
    ports = free_ports({"port": 0, "admin": 0})
    service = Service.start(
        "tests.e2e.slow_classifier",
        ports["port"],
        folder,
        *(f"--folder={folder}", f"--transport={transport}", f"--batch-ms={BATCH_MS}"),
        *(f"--max-batch-size={ITEMS}", f"--max-queue-items={QUEUE_CALLS * ITEMS}"),
        admin_port=ports["admin"],
        log_every=0,
    )
    try:
        yield Watched(service)
    finally:
        service.end()


@asynccontextmanager
async def crowd(server: Watched) -> AsyncIterator[Crowd]:
    """Callers on one connection."""
    await server.serves("")
    async with server.connect() as channel:
        yield Crowd(rpc.ClassifierServiceStub(channel))


def done_a_second(calls: list[Call], since: float, until_: float) -> float:
    """Answered calls a second: the median over windows of half a second."""
    windows = Counter(int((one.ended - since) / WINDOW_S) for one in calls if one.how == "OK")
    whole = range(int((until_ - since) / WINDOW_S))
    return statistics.median(windows[at] for at in whole) / WINDOW_S


def percentile(values: list[float], share: float) -> float:
    """The value that so large a share is not above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def test_ten_times_overload_in_short(tmp_path: Path) -> None:
    await overload(tmp_path, "auto", SHORT)


@pytest.mark.soak
@pytest.mark.timeout(200)
async def test_ten_times_overload_for_a_minute(transport: str, tmp_path: Path) -> None:
    await overload(tmp_path, transport, LONG)


async def overload(folder: Path, transport: str, form: Form) -> None:
    """Measure the peak, then offer ten times as much, then hold every number against the others."""
    with slow_classifier(folder, transport) as server:
        async with crowd(server) as callers:
            await callers.moderate(0.5)
            before = time.monotonic()
            calm = await callers.moderate(form.moderate_s)
            peak = done_a_second(calm, before, before + form.moderate_s)
            assert {one.how for one in callers.calls} == {"OK"}
            resident = server.resident_mib

            began = time.monotonic()
            storm = await callers.steady(OVERLOAD * peak, form.overload_s)
            ended = time.monotonic()
            await callers.all_answered()
            offered = len(storm) / (ended - began)
            done = done_a_second(storm, began, ended)
            grown = server.resident_mib - resident
            await until(lambda: _quiet(server))
            samples = await server.metrics()

        endings = Counter(one.how for one in storm)
        refused = [one.ended - one.began for one in storm if one.how in REFUSALS]
        p50, p99 = (percentile(refused, share) for share in (0.5, 0.99))
        FIGURES.append(
            f"overload ({transport}, {form.overload_s:.0f} s): peak {peak * ITEMS:.0f} items/s, "
            f"offered {offered * ITEMS:.0f}, completed {done * ITEMS:.0f} "
            f"({done / peak:.0%} of peak); {len(refused)} refusals in p50 {p50 * 1000:.1f} ms, "
            f"p99 {p99 * 1000:.1f} ms; memory {grown:+.1f} MiB; {dict(endings)}"
        )
        assert offered >= LEAST_OFFERED * OVERLOAD * peak
        assert set(endings) <= {"OK", "CLIENT", "DEADLINE_EXPIRED", *REFUSALS}
        assert len(refused) > len(storm) / 2
        assert done >= form.share_of_peak * peak
        assert p50 < 0.02
        assert p99 < form.refused_p99_s
        assert grown < form.growth_mib
        _books_balance(callers.calls, samples, folder, max(refused))


async def _quiet(server: Watched) -> bool:
    """Whether nothing waits or runs any more."""
    queued = await server.metric("gristmill_queue_items", model="slow")
    return queued == await server.metric("gristmill_calls_in_flight") == 0


def _books_balance(calls: list[Call], samples: Any, folder: Path, slack_s: float) -> None:
    """What ran was asked for, once, in time; what was answered ran.

    A deadline is sent as what is left of it and counts from its arrival, so that it passes at the
    server later than at the caller by the time on the way: at most what the slowest refusal took.
    """

    def total(name: str, **labels: str) -> int:
        return int(
            sum(
                value
                for (one, has), value in samples.items()
                if one == name and labels.items() <= dict(has).items()
            )
        )

    ends = {name: total("gristmill_items_total", outcome=name) for name in OUTCOMES}
    ran = total("gristmill_batch_size_sum", model="slow")
    lines = (folder / COMPUTED).read_text(encoding="utf-8").splitlines()
    begun = {int(number): float(at) for number, at in (line.split() for line in lines)}
    assert len(begun) == len(lines) == ran, "each ran once"
    answered = {call.first + i for call in calls if call.how == "OK" for i in range(ITEMS)}
    assert answered <= set(begun)
    assert len(answered) <= ends["completed"]
    assert ends["failed"] == 0
    # What ran and was not completed had its deadline pass, or its caller leave, while it ran.
    assert ends["completed"] <= ran <= ends["completed"] + ends["expired"] + ends["cancelled"]
    late = [
        at - (call.began + call.timeout_s)
        for call in calls
        for i in range(ITEMS)
        if (at := begun.get(call.first + i)) and at > call.began + call.timeout_s + slack_s
    ]
    assert late == [], "begun after the deadline had passed"
    refused = Counter(call.how for call in calls if call.how in REFUSALS)
    for why, count in refused.items():
        # A caller whose own clock was faster did not hear of its refusal.
        assert count <= total("gristmill_rejected_total", reason=why)


OUTCOMES = ("completed", "failed", "expired", "cancelled")
