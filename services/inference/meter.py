"""The batcher's side of metrics and statistics: children of the labelled ones, looked up once."""

import time

from services.inference.scheduler import Batch
from services.inference.statistics import BatchSpent, Statistics
from services.inference.workers import Ran
from services.runtime import metrics

OUTCOMES = ("completed", "failed", "expired", "cancelled")


class Meter:
    """What one served version counts."""

    def __init__(self, model: str, version: int) -> None:
        self.model = model
        self.statistics = Statistics()
        self._outcomes = {
            outcome: metrics.ITEMS.labels(model, str(version), outcome) for outcome in OUTCOMES
        }
        self._queue = metrics.QUEUE_SECONDS.labels(model)
        self._batch = metrics.BATCH_SECONDS.labels(model)
        self._compute = metrics.COMPUTE_SECONDS.labels(model)
        self._size = metrics.BATCH_SIZE.labels(model)
        self._padding = metrics.BATCH_PADDING.labels(model)
        self._released = {
            reason: metrics.BATCHES_RELEASED.labels(model, reason) for reason in metrics.RELEASES
        }

    def outcome(self, name: str, count: int = 1) -> None:
        """So many items ended so."""
        self._outcomes[name].inc(count)

    def queued(self, seconds: float) -> None:
        """One item waited so long."""
        self._queue.observe(seconds)
        self.statistics.queue.add(seconds)

    def batch(self, batch: Batch, batch_s: float, ran: Ran) -> None:
        """One batch ran."""
        size = len(batch.entries)
        self._batch.observe(batch_s)
        self._compute.observe(ran.compute_s)
        self._size.observe(size)
        self._padding.observe(1 - batch.tokens / max(1, batch.padded_tokens))
        self._released[batch.released].inc()
        sums = self.statistics
        sums.execution_count += 1
        failed = [one for one in ran.alone if isinstance(one, Exception)]
        sums.inference_count += size - len(failed)
        sums.last_inference_ms = time.time_ns() // 1_000_000
        spent = sums.batches.get(size)
        if spent is None:
            spent = sums.batches[size] = BatchSpent()
        spent.compute_input.add(batch_s)
        spent.compute_infer.add(ran.compute_s)
        spent.compute_output.add(ran.output_s)
        sums.compute_input.add(batch_s * size, size)
        sums.compute_infer.add(ran.compute_s * size, size)
        sums.compute_output.add(ran.output_s * size, size)
