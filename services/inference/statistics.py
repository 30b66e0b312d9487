"""What a served version has done since it was loaded, in sums; knows no metric and no wire."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Spent:
    """How often, and how long in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """So many more, which took so long together."""
        self.count += count
        self.seconds += seconds


@dataclass(slots=True)
class BatchSpent:
    """Batches of one size: padding, running, reading the outputs."""

    compute_input: Spent = field(default_factory=Spent)
    compute_infer: Spent = field(default_factory=Spent)
    compute_output: Spent = field(default_factory=Spent)


@dataclass(slots=True)
class Statistics:
    """Messages by how they ended, items and batches, and where the time went.

    A message counts once in `success` or `fail`, with its time from arrival to answer; `queue`,
    `compute_input`, `compute_infer` and `compute_output` are sums over its items that ran.
    """

    last_inference_ms: int = 0
    """Of the epoch; 0: none yet."""
    inference_count: int = 0
    """Items that the model answered."""
    execution_count: int = 0
    """Batches that ran."""
    success: Spent = field(default_factory=Spent)
    fail: Spent = field(default_factory=Spent)
    queue: Spent = field(default_factory=Spent)
    compute_input: Spent = field(default_factory=Spent)
    compute_infer: Spent = field(default_factory=Spent)
    compute_output: Spent = field(default_factory=Spent)
    cache_hit: Spent = field(default_factory=Spent)
    cache_miss: Spent = field(default_factory=Spent)
    batches: dict[int, BatchSpent] = field(default_factory=dict)
    """By size."""
