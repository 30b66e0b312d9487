"""Reads the metadata at the head of a GGUF file; knows nothing of its tensors or of any model."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

Scalar = int | float | bool | str

_FORMATS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
LONGEST_STRING_BYTES = 1 << 24


class NotGgufError(ValueError):
    """The file does not start as a GGUF file of version 2 or 3 does."""


def read_metadata(path: Path) -> dict[str, Scalar]:
    """Every scalar entry; arrays (the vocabulary) are read past."""
    with path.open("rb") as stream:
        magic, version = stream.read(4), struct.unpack("<I", _exactly(stream, 4))[0]
        if magic != b"GGUF" or version not in (2, 3):
            raise NotGgufError(f"{path.name}: magic {magic!r}, version {version}")
        _tensors, entries = struct.unpack("<QQ", _exactly(stream, 16))
        found = {}
        for _ in range(entries):
            key = _text(stream)
            value = _value(stream, _number(stream, "<I"))
            if value is not None:
                found[key] = value
        return found


def _value(stream: BinaryIO, kind: int) -> Scalar | None:
    if kind == _STRING:
        return _text(stream)
    if kind == _ARRAY:
        element, count = _number(stream, "<I"), _number(stream, "<Q")
        for _ in range(count):
            _value(stream, element)
        return None
    if kind not in _FORMATS:
        raise NotGgufError(f"unknown metadata type {kind}")
    (scalar,) = struct.unpack(_FORMATS[kind], _exactly(stream, struct.calcsize(_FORMATS[kind])))
    return bool(scalar) if kind == 7 else scalar if isinstance(scalar, int | float) else None


def _text(stream: BinaryIO) -> str:
    return _exactly(stream, _number(stream, "<Q")).decode("utf-8", errors="replace")


def _number(stream: BinaryIO, layout: str) -> int:
    return int(struct.unpack(layout, _exactly(stream, struct.calcsize(layout)))[0])


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(min(count, LONGEST_STRING_BYTES))
    if len(content) != count:
        raise NotGgufError("the file ends inside its header")
    return content
