"""What a version has done, as this protocol counts it: sums since the version was loaded."""

from services.classifier.classifier import Classifier
from services.inference.loaded import Loaded
from services.inference.statistics import Spent
from services.oip.contract import pb

NS = 10**9
IN_ALL = (
    "success",
    "fail",
    "compute_input",
    "compute_infer",
    "compute_output",
    "cache_hit",
    "cache_miss",
)
BY_SIZE = ("compute_input", "compute_infer", "compute_output")


def statistics(loaded: Loaded[Classifier], runner: Classifier) -> pb.ModelStatistics:
    """The statistics of one version."""
    sums = runner.statistics
    found = pb.ModelStatistics(
        name=loaded.entry.model,
        version=str(loaded.entry.version),
        last_inference=sums.last_inference_ms,
        inference_count=sums.inference_count,
        execution_count=sums.execution_count,
        inference_stats=pb.InferStatistics(
            # In this protocol what the cache answered has been queued too, for no time.
            queue=_duration(Spent(sums.queue.count + sums.cache_hit.count, sums.queue.seconds)),
            **{name: _duration(getattr(sums, name)) for name in IN_ALL},
        ),
    )
    for size, spent in sorted(sums.batches.items()):
        found.batch_stats.add(
            batch_size=size, **{name: _duration(getattr(spent, name)) for name in BY_SIZE}
        )
    if declared := runner.manifest.memory_bytes:
        kind, _, index = runner.backend.device.partition(":")
        where = "CPU" if kind == "cpu" else "GPU"
        found.memory_usage.add(type=where, id=int(index or 0), byte_size=declared)
    return found


def _duration(spent: Spent) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=spent.count, ns=max(0, round(spent.seconds * NS)))
