"""A labelled set as JSON lines, read as it is used; knows no model.

A line is an object with "text", or "text" and "pair", or "features" (numbers), and "label": the
name of a label or its index, and for a multi-label model a list of those. Empty lines are skipped.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from services.inference.items import FeaturesItem, Item, TextItem, TextPairItem
from services.runtime.errors import InvalidRequest, shortened

MAX_LINES = 10_000_000
MAX_LINE_BYTES = 2**20
# Long lines in short chunks: what waits is bounded in bytes too.
MAX_CHUNK_BYTES = 2**20
CHUNK = 256


@dataclass(frozen=True, slots=True)
class Example:
    """An item, its labels by name or index, whether they were a list, and its line."""

    item: Item
    labels: tuple[str | int, ...]
    listed: bool
    line: int


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
        if "label" not in value:
            raise ValueError('needs a "label"')
        given = value["label"]
        labels = given if isinstance(given, list) else [given]
        for label in labels:
            if not isinstance(label, str | int) or isinstance(label, bool):
                raise ValueError("a label is a name or an index")  # noqa: TRY004  # as below
        return Example(item_in(value), tuple(labels), isinstance(given, list), self._line)


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


def object_in(raw: bytes) -> dict[str, Any]:
    """The JSON object of a line; ValueError where it is none."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError("is no JSON") from error
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")  # noqa: TRY004  # of the line, not of the caller
    return value


def item_in(value: dict[str, Any]) -> Item:
    """The item of a line; ValueError says what is wrong with it."""
    match value:
        case {"text": str(text), "pair": str(pair)}:
            return TextPairItem(text, pair)
        case {"text": str(text)} if "pair" not in value:
            return TextItem(text)
        case {"features": list(numbers)}:
            return FeaturesItem(_vector(numbers))
    raise ValueError('needs "text", "text" and "pair", or "features"')


def _vector(numbers: list[Any]) -> NDArray[np.float32]:
    if not all(isinstance(number, int | float) for number in numbers):
        raise ValueError("features must be numbers")
    try:
        # What is too large becomes infinite, which is the item's own error.
        with np.errstate(over="ignore"):
            return np.array(numbers, dtype=np.float64).astype(np.float32)
    except OverflowError as error:
        raise ValueError("has a number without bounds") from error
