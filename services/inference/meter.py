"""The batcher's side of the metrics: children of the labelled ones, looked up once."""

from services.inference.scheduler import Batch
from services.runtime import metrics

OUTCOMES = ("completed", "failed", "expired", "cancelled")


class Meter:
    """What one served version counts."""

    def __init__(self, model: str, version: int) -> None:
        self.model = model
        self._outcomes = {
            outcome: metrics.ITEMS.labels(model, str(version), outcome) for outcome in OUTCOMES
        }
        self._queue = metrics.QUEUE_SECONDS.labels(model)
        self._batch = metrics.BATCH_SECONDS.labels(model)
        self._compute = metrics.COMPUTE_SECONDS.labels(model)
        self._size = metrics.BATCH_SIZE.labels(model)
        self._padding = metrics.BATCH_PADDING.labels(model)
        self._busy = metrics.DEVICE_BUSY.labels(model)

    def outcome(self, name: str) -> None:
        """One item ended so."""
        self._outcomes[name].inc()

    def queued(self, seconds: float) -> None:
        """One item waited so long."""
        self._queue.observe(seconds)

    def batch(self, batch: Batch, batch_s: float, compute_s: float) -> None:
        """One batch ran."""
        self._batch.observe(batch_s)
        self._compute.observe(compute_s)
        self._busy.inc(compute_s)
        self._size.observe(len(batch.entries))
        self._padding.observe(1 - batch.tokens / max(1, batch.padded_tokens))
        metrics.BATCHES_RELEASED.labels(self.model, batch.released).inc()
