"""What goes into a classification and what comes out, as plain values; knows no wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict

from gristmill.classifier.v1.item_pb2 import Item as ItemMessage

from gristmill_client.errors import GristmillError
from gristmill_client.tensor import Array, Tensor

Item: TypeAlias = (
    str
    | bytes
    | tuple[str, str]
    | Sequence[float]
    | Mapping[str, Array | Tensor | Sequence[str | bytes]]
    | Array
    | Tensor
    | ItemMessage
)
"""A text; an encoded image as bytes; a text pair; a vector of features; tensors by the names of the
model's inputs, each an array of numpy or alike, a Tensor or a list of texts; the tensor for its
only input, a Tensor or an array of two dimensions or more; or the message itself. The shape of a
tensor has no batch dimension."""

Items: TypeAlias = Item | Iterable[Item]
"""One item or many. A flat list of numbers is one item, a list of lists of numbers is many; an
array of two dimensions or more is one item for each of its rows."""


class ClassifyOptions(TypedDict, total=False):
    """The keyword arguments of `classify` and of the streams, all optional.

    `version` or `alias` choose among the model's versions; neither: its traffic policy, else
    "live". `top_k`: how many labels, best first (1). `probabilities`: also the probability of every
    label. `threshold`: of a multi-label model, the labels at or above this probability (0 to 1)
    instead of the top. `truncation`: "end" cuts an input that is too long and says so, "refuse"
    fails the item. `no_cache`: keep out of the response cache. `priority`: 1 (most urgent) to 9,
    0 is the server's default.
    """

    version: int | None
    alias: str | None
    top_k: int | None
    probabilities: bool
    threshold: float | None
    truncation: Literal["end", "refuse"] | None
    no_cache: bool
    priority: int


@dataclass(frozen=True, slots=True)
class LabelScore:
    """A label, its index in the model's order of labels, and its probability from 0 to 1."""

    label: str
    index: int
    score: float


@dataclass(frozen=True, slots=True)
class ClassifyTimings:
    """Where the time of one item went, in microseconds, and the size of the batch it ran in.

    `batch_size` 0: the answer came from the cache.
    """

    preprocess_us: int
    queue_us: int
    batch_us: int
    compute_us: int
    batch_size: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What became of one item.

    `labels` holds the labels asked for, best first; `label` and `score` are the first of them, or
    "" and 0.0 where there is none (a multi-label model under its threshold). `probabilities` has
    one number for each label of the model, in its order, where they were asked for, else it is
    empty. `truncated`: the input was longer than the model takes and was cut. `tokens`: tokens that
    the model read, 0 for other models. `timings` is None where the item was never queued. An item
    that failed alone has its `error` (not raised), no labels, and left its neighbours untouched.
    """

    label: str
    score: float
    labels: tuple[LabelScore, ...]
    probabilities: tuple[float, ...]
    truncated: bool
    tokens: int
    cached: bool
    model: str
    version: int
    timings: ClassifyTimings | None = None
    error: GristmillError | None = None

    def raise_for_error(self) -> Prediction:
        """Raises the item's own error where it has one; else gives the prediction back."""
        if self.error is not None:
            raise self.error
        return self
