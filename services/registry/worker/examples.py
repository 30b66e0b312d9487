"""A labelled set as JSON lines, read as it is used; knows no model but its labels.

A line is an object with "text", or "text" and "pair", or "features" (numbers), and "label": the
name of a label or its index, and for a multi-label model a list of those. Empty lines are skipped.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Example:
    """An item, the indices of its labels, and the line that it stands in."""

    item: Item
    labels: tuple[int, ...]
    line: int


class Examples:
    """The examples of a file, one chunk after the other."""

    def __init__(self, path: Path, labels: Sequence[str], *, multi_label: bool) -> None:
        self._file = path.open("rb")
        self._bytes = max(1, path.stat().st_size)
        self._names = list(labels)
        self._index = {name: i for i, name in enumerate(labels)}
        self._multi_label = multi_label
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

    def chunk(self, most: int) -> list[Example]:
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
            if len(raw) > MAX_LINE_BYTES:
                raise self._wrong(f"is longer than {MAX_LINE_BYTES} bytes")
            if self._line > MAX_LINES:
                raise self._wrong(f"a set has at most {MAX_LINES} lines")
            size += len(raw)
            if raw.strip():
                found.append(self._example(raw))
        return found

    def _example(self, raw: bytes) -> Example:
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise self._wrong("is no JSON") from error
        if not isinstance(value, dict) or "label" not in value:
            raise self._wrong('needs an object with a "label"')
        return Example(self._item(value), self._labels(value["label"]), self._line)

    def _item(self, value: dict[str, Any]) -> Item:
        match value:
            case {"text": str(text), "pair": str(pair)}:
                return TextPairItem(text, pair)
            case {"text": str(text)} if "pair" not in value:
                return TextItem(text)
            case {"features": list(numbers)}:
                return FeaturesItem(self._vector(numbers))
        raise self._wrong('needs "text", "text" and "pair", or "features"')

    def _vector(self, numbers: list[Any]) -> NDArray[np.float32]:
        if not all(isinstance(number, int | float) for number in numbers):
            raise self._wrong("features must be numbers")
        try:
            # What is too large becomes infinite, which is the item's own error.
            with np.errstate(over="ignore"):
                return np.array(numbers, dtype=np.float64).astype(np.float32)
        except OverflowError as error:
            raise self._wrong("has a number without bounds") from error

    def _labels(self, value: Any) -> tuple[int, ...]:
        if self._multi_label:
            if not isinstance(value, list):
                raise self._wrong("a multi-label model needs a list of labels")
            return tuple(sorted({self._label(one) for one in value}))
        return (self._label(value),)

    def _label(self, value: Any) -> int:
        if isinstance(value, str) and value in self._index:
            return self._index[value]
        is_index = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if is_index and (value < len(self._names) or not self._names):
            return int(value)
        raise self.unknown(value, self._line)

    def unknown(self, value: Any, line: int) -> InvalidRequest:
        """The error for a label that the model does not have."""
        known = ", ".join(self._names) or "unnamed: give an index"
        said = f"label {shortened(repr(value), 80)} is none of the labels: {known}"
        return InvalidRequest.field(f"line {line}", said)

    def _wrong(self, what: str) -> InvalidRequest:
        return InvalidRequest.field(f"line {self._line}", what)
