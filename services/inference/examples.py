"""A labelled set as JSON lines, read as it is used; knows no model.

A line is an object with an item, as in `json_items`, and what is true of it: "label", the name of a
label or its index, and for a multi-label model a list of those; or "probabilities", one for each
label, which a model may miss by "tolerance" at most; or both. Empty lines are skipped.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.inference.items import Item
from services.inference.json_items import item_in, object_in
from services.runtime.errors import InvalidRequest, shortened

MAX_LINES = 10_000_000
# Of an image, three quarters of that.
MAX_LINE_BYTES = 2**23
# Long lines in short chunks: what waits is bounded in bytes too.
MAX_CHUNK_BYTES = 2**20
CHUNK = 256
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Example:
    """An item, its labels by name or index, whether they were a list, and its line."""

    item: Item
    labels: tuple[str | int, ...]
    """Empty where only probabilities are given."""
    listed: bool
    line: int
    probabilities: tuple[float, ...] = ()
    tolerance: float = TOLERANCE


class Examples:
    """The examples of a file, one chunk after the other."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._bytes = max(1, path.stat().st_size)
        self._line = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    @property
    def fraction(self) -> float:
        """How much of the file is read."""
        return self._file.tell() / self._bytes

    def chunk(self, most: int = CHUNK) -> list[Example]:
        """The next examples, at most so many; none at the end of the file.

        Raises InvalidRequest, naming the line, for one that is no example.
        """
        found: list[Example] = []
        size = 0
        while len(found) < most and size < MAX_CHUNK_BYTES:
            raw = self._file.readline(MAX_LINE_BYTES + 1)
            if not raw:
                break
            self._line += 1
            size += len(raw)
            try:
                if example := self._example(raw):
                    found.append(example)
            except ValueError as error:
                raise InvalidRequest.field(f"line {self._line}", str(error)) from error
        return found

    def _example(self, raw: bytes) -> Example | None:
        if len(raw) > MAX_LINE_BYTES:
            raise ValueError(f"is longer than {MAX_LINE_BYTES} bytes")
        if self._line > MAX_LINES:
            raise ValueError(f"a set has at most {MAX_LINES} lines")
        if not raw.strip():
            return None
        value = object_in(raw)
        labels, listed = _labels(value)
        probabilities = _probabilities(value.get("probabilities"))
        if "label" not in value and not probabilities:
            raise ValueError('needs a "label" or "probabilities"')
        tolerance = TOLERANCE
        if probabilities and "tolerance" in value:
            tolerance = _share(value["tolerance"], "tolerance")
        return Example(item_in(value), labels, listed, self._line, probabilities, tolerance)


def read(path: Path) -> Iterator[Example]:
    """Every example of a file; raises InvalidRequest, naming the line, for what is none."""
    with Examples(path) as examples:
        while chunk := examples.chunk():
            yield from chunk


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a model: what an example's own mean to it."""

    names: Sequence[str]
    multi_label: bool
    _index: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        index = {name: i for i, name in enumerate(self.names)}
        object.__setattr__(self, "_index", index)

    def indices(self, example: Example, width: int) -> list[int]:
        """Which of `width` labels an example has; InvalidRequest names the line and the labels."""
        if not example.labels and not example.listed:
            raise InvalidRequest.field(f"line {example.line}", 'needs a "label"')
        if example.listed != self.multi_label:
            needs = "a list of labels" if self.multi_label else "one label"
            raise InvalidRequest.field(f"line {example.line}", f"this model needs {needs}")
        return [self._one(label, example.line, width) for label in example.labels]

    def _one(self, label: str | int, line: int, width: int) -> int:
        index = self._index.get(label, -1) if isinstance(label, str) else label
        if 0 <= index < width:
            return index
        known = ", ".join(self.names) or f"0 to {width - 1}"
        said = f"label {shortened(repr(label), 80)} is none of the labels: {known}"
        raise InvalidRequest.field(f"line {line}", said)


def _labels(value: Mapping[str, Any]) -> tuple[tuple[str | int, ...], bool]:
    """The labels of a line, and whether they were a list."""
    if "label" not in value:
        return (), False
    given = value["label"]
    labels = given if isinstance(given, list) else [given]
    for label in labels:
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise ValueError("a label is a name or an index")  # noqa: TRY004  # as above
    return tuple(labels), isinstance(given, list)


def _probabilities(given: Any) -> tuple[float, ...]:
    if given is None:
        return ()
    if not isinstance(given, list) or not given:
        raise ValueError("probabilities must be a list, one for each label")
    return tuple(_share(one, "a probability") for one in given)


def _share(given: Any, what: str) -> float:
    if type(given) not in (int, float) or not 0 <= given <= 1:
        raise ValueError(f"{what} must be a number from 0 to 1")
    return float(given)
