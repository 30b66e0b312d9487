"""What a caller asks of a classifier and what it is told of each item. Knows no wire."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.inference.items import Array, Item
from services.inference.outcomes import Scored, Timings
from services.inference.scoring import Choice, Floats, Label
from services.runtime.deadline import Deadline
from services.runtime.errors import GristmillError


@dataclass(slots=True)
class Asked:
    """What a caller wants done with a message of items."""

    identity: str
    deadline: Deadline
    priority: int
    choice: Choice
    return_probabilities: bool = False
    refuse_longer: bool = False
    no_cache: bool = False
    raw: bool = False
    """Only the model's outputs are wanted: no labels are made of them."""


@dataclass(slots=True, eq=False)
class Answer:
    """What became of one item."""

    labels: Sequence[Label] = ()
    probabilities: Floats | None = None
    truncated: bool = False
    tokens: int = 0
    error: GristmillError | None = None
    preprocess_s: float = 0.0
    timings: Timings | None = None
    scored: Scored | None = None
    """What the model gave; None where it failed."""
    cached: bool = False
    names: Sequence[str] = ()
    """The model's labels, by index."""

    @property
    def outputs(self) -> Mapping[str, Array]:
        """The model's own outputs for this item, without batch dimension."""
        return self.scored.outputs if self.scored else {}


OnAnswer = Callable[[int, Answer], None]
Given = Sequence[Item | GristmillError]
