"""Two hundred callers at once, some in a hurry and a third that leave: the books must balance.

Every item has a number that its answer repeats, so a result that crossed callers is seen; the
device writes down what it computed, so an item that was lost or computed twice is seen too.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from gristmill.classifier.v1 import options_pb2
from numpy.typing import NDArray

from services.runtime.admission import Limits
from tests.harness import SOON_S, Served, classifier, metric, metric_sum, pb, serve
from tests.unit.classifier.models import FIRST_TOKEN, NUMBERS, World, message, number_in

CALLS = 200
Code = grpc.StatusCode
ENDINGS = {Code.OK, Code.CANCELLED, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}


class SlowDevice:
    """Computes as long as the padded tokens of a batch say, and fails where an item is bad."""

    def __init__(self, bad: set[int]) -> None:
        self._bad = bad
        self.computed: Counter[int] = Counter()
        """How often each number was in a batch that was answered."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """One batch, on the instance's thread."""
        ids = inputs["input_ids"]
        time.sleep(0.004 + 0.00002 * ids.size)
        numbers = [int(row[0]) - FIRST_TOKEN for row in ids]
        if self._bad.intersection(numbers):
            raise ValueError("a bad item is in the batch")
        self.computed.update(numbers)


@dataclass
class Caller:
    """One call: what it sends, how long it has, whether it leaves, and how it ended."""

    numbers: list[int]
    words: list[int]
    timeout_s: float
    leaves: bool
    priority: int
    code: Any = None
    answers: list[Any] = field(default_factory=list)

    async def run(self, served: Served, rng: random.Random) -> None:
        """Call; the third that leaves does so somewhere between at once and too late."""
        await asyncio.sleep(rng.random() * 0.1)
        request = pb.ClassifyRequest(
            items=[message(n, w) for n, w in zip(self.numbers, self.words, strict=True)],
            options=options_pb2.ClassifyOptions(return_probabilities=True),
            priority=self.priority,
        )
        call = served.stub.Classify(request, timeout=self.timeout_s)
        if self.leaves:
            asyncio.get_running_loop().call_later(rng.random() * 0.6, call.cancel)
        try:
            self.answers = list((await call).results)
        except asyncio.CancelledError:
            assert self.leaves
        except grpc.RpcError:
            pass
        self.code = await call.code()


def callers(rng: random.Random) -> list[Caller]:
    """All of them, with numbers that no two share; every third leaves."""
    numbers = iter(rng.sample(range(NUMBERS), NUMBERS))
    found = []
    for index in range(CALLS):
        count = rng.randint(1, 8)
        found.append(
            Caller(
                [next(numbers) for _ in range(count)],
                [rng.choice([1, 2, 5, 20, 60]) for _ in range(count)],
                rng.choice([0.05, 0.3, 0.6, 60.0, 60.0]),
                index % 3 == 0,
                rng.choice([0, 1, 5, 9]),
            )
        )
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_crossed_or_left_behind(
    transport: str, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    everyone = callers(rng)
    sent = {number for caller in everyone for number in caller.numbers}
    device = SlowDevice(bad=set(rng.sample(sorted(sent), len(sent) // 20)))
    world = World(tmp_path, device, instances=2, limits=Limits(600, 10**6))
    batching = {"max_batch_size": 16, "max_batch_tokens": 256, "max_overtakes": 3}
    await world.add(batching=batching)
    runner = world.runner()
    outcomes = ("completed", "failed", "expired", "cancelled")
    before = {name: counted(name) for name in outcomes}
    rejected = metric_sum("gristmill_rejected_total", model="m")
    servicer = world.servicer
    service = classifier(servicer, on_close=[world.close])
    async with serve(service, transport) as served:
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*(caller.run(served, rng) for caller in everyone))
        await served.idle()
        counts, admission = runner.batcher.counts, runner.admission

        # No call is lost, and each has its own results.
        endings = Counter(caller.code for caller in everyone)
        assert set(endings) <= ENDINGS, endings
        assert endings[Code.OK] > CALLS / 10, endings
        assert counts.expired + counts.cancelled > 0
        answered = failed = 0
        for caller in everyone:
            if caller.code is not Code.OK:
                continue
            for number, result in zip(caller.numbers, caller.answers, strict=True):
                if number in device._bad:
                    assert result.WhichOneof("outcome") == "error"
                    failed += 1
                else:
                    assert number_in(result) == number
                    answered += 1

        # The queue is empty, and everything that was held is given back.
        assert counts.pending == 0
        assert len(runner.batcher._scheduler) == runner.batcher._scheduler.tokens == 0
        assert (admission.items, admission.bytes) == (0, 0)
        assert metric("gristmill_queue_items", model="m") == 0

        # The counters add up, exactly: in the batcher, at admission and in the metrics.
        assert counts.submitted == admission.admitted
        assert counts.submitted == sum(getattr(counts, name) for name in outcomes)
        assert {n: counted(n) - before[n] for n in outcomes} == {
            name: getattr(counts, name) for name in outcomes
        }
        refused = metric_sum("gristmill_rejected_total", model="m") - rejected
        assert sum(admission.refused.values()) == refused
        assert counts.completed >= answered
        assert counts.failed >= failed

        # What was computed was asked for, once; what was answered was computed.
        assert set(device.computed) <= sent - device._bad
        assert set(device.computed.values()) <= {1}
        assert counts.completed <= device.computed.total() <= counts.submitted


def counted(outcome: str) -> float:
    """The metric of the items that ended so."""
    return metric("gristmill_items_total", model="m", version="1", outcome=outcome)
