"""What becomes of an item: the model's outputs for it, or an error that is its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.inference.items import Array
from services.inference.scoring import Outputs
from services.runtime.errors import GristmillError


@dataclass(slots=True, eq=False)
class Timings:
    """Where the time of one item went, in seconds."""

    queue_s: float
    batch_s: float
    compute_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class Scored:
    """One item among the outputs of the batch that it ran in."""

    batch: Outputs
    index: int
    timings: Timings

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The model's outputs for the item, without batch dimension."""
        return self.batch.row(self.index)


Outcome = Scored | GristmillError
OnItem = Callable[[int, Outcome], None]
