"""One model instance and where it runs: padded batches in, outputs out. Knows no caller.

A batch runs on the instance's own thread, or, where it takes less than handing it over would, on
the event loop itself.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.inference.backend import Instance, Preparing
from services.inference.device import clock as device_clock
from services.inference.items import Array, Encoded, pad
from services.inference.scheduler import Batch
from services.inference.scoring import Outputs


@dataclass(slots=True, eq=False)
class Work:
    """A padded batch on its way to an instance."""

    batch: Batch
    items: Sequence[Encoded]
    inputs: Mapping[str, Array]
    batch_s: float


@dataclass(slots=True, eq=False)
class Ran:
    """What a batch gave: its outputs, or, where it failed, those of each item run alone."""

    together: Outputs | None
    alone: Sequence[Outputs | Exception]
    compute_s: float
    output_s: float
    """Reading the probabilities off the outputs."""


class Worker:
    """One instance with its thread and the batch it runs."""

    def __init__(
        self,
        instance: Instance,
        fill: Mapping[str, int],
        done: Callable[["Worker", Work, Ran], None],
        *,
        device: str = "cpu",
        scores: bool = True,
        multi_label: bool = False,
    ) -> None:
        self._instance = instance
        self._preparing = instance if isinstance(instance, Preparing) else None
        self._clock = device_clock(device)
        self._fill = fill
        self._done = done
        self._scores = scores
        self._multi_label = multi_label
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="instance", daemon=True)
        self.running: Work | None = None
        self.since = 0.0
        self._thread.start()

    def start(self, work: Work, now: float) -> None:
        """Run a batch on the thread; `done` is called on the loop when it has run."""
        self.running = work
        self.since = now
        self._inbox.put(work)

    def prepare(self, work: Work) -> None:
        """Have a batch that is formed ahead moved to the device while another is computed."""
        if self._preparing is None:
            return
        try:
            work.inputs = self._preparing.prepare(work.inputs)
        except Exception:
            # `run` would refuse it too, and is what tells whose fault it is.
            return

    def run(self, work: Work) -> Ran:
        """Run a batch here and now; one that fails is run again item by item, once."""
        started = time.perf_counter()
        alone: Sequence[Outputs | Exception] = ()
        together: Outputs | None = None
        with self._clock:
            try:
                together = self._outputs(work.inputs, len(work.items))
            except Exception as error:
                one = len(work.items) == 1
                alone = [error] if one else [self._alone(item) for item in work.items]
        ran = time.perf_counter()
        if self._scores:
            for outputs in alone if together is None else (together,):
                if isinstance(outputs, Outputs):
                    outputs.score()
        return Ran(together, alone, ran - started, time.perf_counter() - ran)

    async def close(self) -> None:
        """End the thread after the batch in hand."""
        self._inbox.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _serve(self) -> None:
        while (work := self._inbox.get()) is not None:
            ran = self.run(work)
            self._loop.call_soon_threadsafe(self._done, self, work, ran)

    def _alone(self, item: Encoded) -> Outputs | Exception:
        try:
            return self._outputs(pad([item], self._fill), 1)
        except Exception as error:
            return error

    def _outputs(self, inputs: Mapping[str, Array], count: int) -> Outputs:
        arrays = self._instance.run(inputs)
        for name, values in arrays.items():
            if len(values) != count:
                raise ValueError(f"output {name} has {len(values)} rows for {count} items")
        return Outputs(arrays, multi_label=self._multi_label)
