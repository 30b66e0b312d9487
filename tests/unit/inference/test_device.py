"""How busy a device is: the time in which at least one batch ran, however many ran at once.

The clock of the machine is read inside and cannot be given, so that every time here is held between
two readings of the same clock, taken just outside and just inside of what is measured.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.inference.device import DeviceClock, clock
from services.inference.items import Encoded
from services.inference.scheduler import Batch, Entry
from services.inference.workers import Work, Worker
from tests.harness import SOON_S, metric

SPAN_S = 0.01
# Sums of floats: the counter has a longer way to the same number.
SLACK_S = 1e-6


def busy_s(device: str) -> float:
    """What the metric says of a device."""
    return metric("gristmill_device_busy_seconds_total", device=device)


def spend() -> None:
    """Use a little time, all of it here."""
    until = time.monotonic() + SPAN_S
    while time.monotonic() < until:
        pass


@contextmanager
def busy_between(device: str) -> Iterator[list[float]]:
    """Readings of the clock within: the device was busy from the first to the last of them."""
    before, began = busy_s(device), time.monotonic()
    inside: list[float] = []
    yield inside
    found, ended = busy_s(device) - before, time.monotonic()
    assert found <= ended - began + SLACK_S, "more than the time that passed"
    if inside:
        assert found >= inside[-1] - inside[0] - SLACK_S, "less than it ran"


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The name of a device that no other test has."""
    return f"test:{request.node.name}"


def test_a_device_is_busy_while_a_batch_runs(device: str) -> None:
    with busy_between(device) as inside:
        with clock(device):
            inside.append(time.monotonic())
            spend()
            inside.append(time.monotonic())
    assert inside[1] - inside[0] >= SPAN_S


def test_a_device_that_rests_is_not_busy(device: str) -> None:
    with clock(device):
        pass
    before = busy_s(device)
    spend()
    assert busy_s(device) == before
    with busy_between(device):
        with clock(device):
            pass


def test_batches_that_overlap_count_once(device: str) -> None:
    """Ten at once: their sum would be ten times the time that passes."""
    with busy_between(device) as inside, ExitStack() as stack:
        for _ in range(10):
            stack.enter_context(clock(device))
        inside.append(time.monotonic())
        spend()
        inside.append(time.monotonic())


def test_what_overlaps_in_part_counts_from_the_first_to_the_last(device: str) -> None:
    counted = clock(device)
    with busy_between(device) as inside:
        counted.__enter__()
        inside.append(time.monotonic())
        spend()
        counted.__enter__()
        spend()
        counted.__exit__(None, None, None)
        spend()
        inside.append(time.monotonic())
        counted.__exit__(None, None, None)
    before = busy_s(device)
    spend()
    assert busy_s(device) == before, "the last one out ends it"


def test_what_is_busy_still_counts_as_far_as_it_is_known(device: str) -> None:
    """Each batch that begins or ends brings the counter up to date."""
    with busy_between(device) as inside, clock(device):
        inside.append(time.monotonic())
        spend()
        inside.append(time.monotonic())
        with clock(device):
            assert busy_s(device) >= SPAN_S - SLACK_S


def test_a_batch_that_fails_was_busy_and_ends(device: str) -> None:
    with busy_between(device) as inside:
        with pytest.raises(RuntimeError), clock(device):
            inside.append(time.monotonic())
            spend()
            inside.append(time.monotonic())
            raise RuntimeError
    before = busy_s(device)
    spend()
    assert busy_s(device) == before


def test_one_clock_for_all_models_of_a_device_and_one_for_each_device(device: str) -> None:
    assert clock(device) is clock(device)
    other = f"{device}, the other"
    assert clock(other) is not clock(device)
    with busy_between(other), clock(device):
        spend()
    assert busy_s(other) == 0


def test_threads_count_once_together(device: str) -> None:
    """Eight threads, all busy for all of the time that the others are, over and over."""
    together = threading.Barrier(8, timeout=SOON_S)
    inside: list[tuple[float, float]] = []

    def work() -> None:
        for _ in range(20):
            together.wait()
            with clock(device):
                began = time.monotonic()
                together.wait()
                inside.append((began, time.monotonic()))
                together.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    with busy_between(device):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON_S)
    assert len(inside) == 160
    assert busy_s(device) >= _union(inside) - SLACK_S
    assert clock(device)._running == 0


def _union(spans: list[tuple[float, float]]) -> float:
    """The time in at least one of the spans."""
    total, until = 0.0, 0.0
    for began, ended in sorted(spans):
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


class _Spinning:
    """An instance that takes a little time, and then fails if it is told to."""

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        """One batch."""
        spend()
        if self._fails:
            raise ValueError
        return {"logits": np.zeros((len(inputs["x"]), 2))}


@pytest.mark.parametrize("fails", [False, True])
async def test_a_worker_keeps_its_device_busy_while_it_runs(device: str, *, fails: bool) -> None:
    """The first try and the items run alone are one time, by the metric and by what it ran."""
    items = [Encoded({"x": np.zeros(1)}, 1) for _ in range(2)]
    batch = Batch(tuple(Entry((5, 1e9, n), 1) for n in range(2)), "drained")
    worker = Worker(_Spinning(fails=fails), {}, lambda *_: None, device=device)
    try:
        with busy_between(device):
            ran = worker.run(Work(batch, items, {"x": np.zeros((2, 1))}, 0.0))
    finally:
        await worker.close()
    assert busy_s(device) >= (3 if fails else 1) * SPAN_S
    assert ran.compute_s >= busy_s(device) - SLACK_S


def test_a_clock_of_its_own_counts_for_the_same_metric(device: str) -> None:
    with busy_between(device) as inside, DeviceClock(device):
        inside.append(time.monotonic())
        spend()
        inside.append(time.monotonic())
