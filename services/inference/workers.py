"""The thread of one model instance: padded batches in, rows of outputs out. Knows no caller."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.inference.backend import Instance
from services.inference.items import Array, Encoded, pad
from services.inference.scheduler import Batch

Row = Mapping[str, Array] | Exception
"""The outputs of one item, or what its run raised."""


@dataclass(frozen=True, slots=True)
class Work:
    """A padded batch on its way to an instance."""

    batch: Batch
    items: Sequence[Encoded]
    inputs: Mapping[str, Array]
    batch_s: float


class Worker:
    """One instance with its thread and the batch it runs."""

    def __init__(
        self,
        instance: Instance,
        fill: Mapping[str, int],
        done: Callable[["Worker", Work, list[Row], float], None],
    ) -> None:
        self._instance = instance
        self._fill = fill
        self._done = done
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="instance", daemon=True)
        self.running: Work | None = None
        self.since = 0.0
        self._thread.start()

    def start(self, work: Work, now: float) -> None:
        """Run a batch; `done` is called on the loop when it has run."""
        self.running = work
        self.since = now
        self._inbox.put(work)

    async def close(self) -> None:
        """End the thread after the batch in hand."""
        self._inbox.put(None)
        await self._loop.run_in_executor(None, self._thread.join)

    def _serve(self) -> None:
        while (work := self._inbox.get()) is not None:
            started = time.perf_counter()
            rows = self._run(work)
            seconds = time.perf_counter() - started
            self._loop.call_soon_threadsafe(self._done, self, work, rows, seconds)

    def _run(self, work: Work) -> list[Row]:
        """A row for each item; a batch that fails is run again item by item, once."""
        try:
            return _rows(self._instance.run(work.inputs), len(work.items))
        except Exception as error:
            if len(work.items) == 1:
                return [error]
        return [self._alone(item) for item in work.items]

    def _alone(self, item: Encoded) -> Row:
        try:
            return _rows(self._instance.run(pad([item], self._fill)), 1)[0]
        except Exception as error:
            return error


def _rows(outputs: Mapping[str, Array], count: int) -> list[Row]:
    for name, values in outputs.items():
        if len(values) != count:
            raise ValueError(f"output {name} has {len(values)} rows for {count} items")
    return [{name: values[i] for name, values in outputs.items()} for i in range(count)]
