"""A device that a test holds and lets go, and a batcher around it. Knows no wire."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.backend import Instance
from services.inference.backends.fake import FakeBackend
from services.inference.batcher import Batcher
from services.inference.cost import CostModel
from services.inference.items import Encoded
from services.inference.manifest import Batching
from services.inference.meter import Meter
from services.inference.outcomes import OnItem, Outcome, Scored
from services.runtime.admission import Admission, Cost, Limits, Permit
from services.runtime.deadline import Deadline
from tests.harness import SOON_S, FakeClock, soon

LONG_S = 3600.0


@dataclass
class Device:
    """What every instance does before it computes: remember, wait to be let go, fail where told."""

    held: bool = False
    bad: set[float] = field(default_factory=set)
    batches: list[list[float]] = field(default_factory=list)
    _gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    _entered: "asyncio.Queue[list[float]]" = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """One batch, on the instance's thread."""
        values = next(iter(inputs.values()))[:, 0].tolist()
        self.batches.append(values)
        self._loop.call_soon_threadsafe(self._entered.put_nowait, values)
        if self.held and not self._gate.acquire(timeout=SOON_S):
            raise TimeoutError("the test never let the device go")
        if self.bad & set(values):
            raise ValueError("a bad item is in the batch")

    async def entered(self) -> list[float]:
        """The values of the next batch that the device has begun."""
        return await soon(self._entered.get())

    def step(self, batches: int = 1) -> None:
        """Let so many held batches go."""
        self._gate.release(batches)

    def open(self) -> None:
        """Hold nothing from now on."""
        self.held = False
        self._gate.release(1000)

    @property
    def computed(self) -> list[float]:
        """Every value that any batch held."""
        return [value for batch in self.batches for value in batch]


def encoded(value: float, length: int = 1) -> Encoded:
    """An item that the fake backend answers with `value`."""
    return Encoded({"features": np.full(length, value, dtype=np.float32)}, length)


@dataclass
class Rig:
    """A batcher on a device, behind an admission as in the classifier."""

    device: Device
    batcher: Batcher
    admission: Admission
    clock: Callable[[], float]

    async def ask(
        self,
        *values: float,
        within_s: float = LONG_S,
        priority: int = 5,
        length: int = 1,
        on_item: OnItem | None = None,
    ) -> list[Outcome]:
        """Admit and submit one message."""
        items = [encoded(value, length) for value in values]
        with self.permit(items, within_s, priority) as permit:
            return await self.batcher.submit(items, permit, priority, on_item)

    def permit(self, items: Sequence[Encoded], within_s: float, priority: int = 5) -> Permit:
        """A permit, or the refusal."""
        deadline = Deadline(self.clock() + within_s)
        wait_s = self.batcher.predicted_wait_s(items, deadline, priority)
        cost = Cost(len(items), sum(item.nbytes for item in items))
        return self.admission.admit("me", deadline, cost, wait_s, self.batcher.drain_s)

    def wait_s(self, within_s: float, priority: int = 5) -> float:
        """The predicted wait of one item."""
        deadline = Deadline(self.clock() + within_s)
        return self.batcher.predicted_wait_s([encoded(0)], deadline, priority)

    def counts_add_up(self) -> bool:
        """Whether every item submitted is in exactly one place."""
        counts = asdict(self.batcher.counts)
        return bool(counts.pop("submitted") == sum(counts.values()))

    async def begin(self, *values: float, **how: Any) -> "asyncio.Task[list[Outcome]]":
        """Submit in a task of its own; returns once the items are the batcher's."""
        before = self.batcher.counts.submitted
        task = asyncio.ensure_future(self.ask(*values, **how))
        async with asyncio.timeout(SOON_S):
            while self.batcher.counts.submitted == before and not task.done():
                await asyncio.sleep(0)
        return task


@asynccontextmanager
async def rig(
    *,
    held: bool = False,
    instances: int = 1,
    clock: FakeClock | None = None,
    cost: CostModel | None = None,
    limits: Limits | None = None,
    made: Sequence[Instance] = (),
    inline_s: float = 0.0,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """A batcher on a device, or on instances `made` before; closed whatever the test left."""
    device = Device(held)
    backend = FakeBackend(device)
    made = made or [backend.instance() for _ in range(instances)]
    loop = asyncio.get_running_loop()
    now = clock or loop.time
    batching = Batching.model_validate(settings)
    meter, model = Meter("rig", 1), cost or CostModel()
    batcher = Batcher(made, batching, {}, meter, model, now, inline_s=inline_s)
    admission = Admission(limits or Limits(10**6, 2**40), now)
    try:
        yield Rig(device, batcher, admission, now)
    finally:
        device.open()
        await soon(batcher.close())


def echoes(outcomes: Sequence[Outcome]) -> list[float]:
    """What the device answered; every item must have succeeded."""
    found = []
    for outcome in outcomes:
        assert isinstance(outcome, Scored), outcome
        found.append(float(outcome.outputs["echo"]))
    return found
