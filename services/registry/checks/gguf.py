"""The header of a GGUF file, every claim held against the file's length. Reads no tensor."""

import struct
from dataclasses import dataclass, field

from services.registry.checks.files import Files
from services.registry.checks.findings import RefusedError, quoted
from services.registry.checks.gguf_types import ARRAY, BLOCKS, BOOL, SCALARS, STRING
from services.registry.checks.reading import Reader

RULE = "header"
MAX_ENTRIES, MAX_TENSORS, MAX_DIMENSIONS = 65_536, 65_536, 4
MAX_ELEMENTS = 4_000_000
MAX_KEY_BYTES, MAX_NAME_BYTES, MAX_NESTING = 65_535, 256, 3
# What is kept of a text; longer ones (a long chat template) are kept as too long.
MAX_KEPT_BYTES = 1 << 17
MAX_ALIGNMENT = 1 << 16
_U32, _U64, _COUNTS = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<IQQ")

Scalar = int | float | bool | str


@dataclass(slots=True)
class Header:
    """What a GGUF file says of itself; arrays are left out."""

    metadata: dict[str, Scalar] = field(default_factory=dict)
    tensors: int = 0

    def text(self, key: str) -> str:
        """The text of this key; empty where there is none."""
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        """The whole number of this key; 0 where there is none."""
        value = self.metadata.get(key, 0)
        return value if type(value) is int else 0


def check(files: Files, path: str, max_header_bytes: int) -> Header:
    """The header of a file that is in order."""
    size = files.size(path)
    with files.open(path) as stream:
        return _Parser(Reader(stream, size, max_header_bytes)).header()


class _Parser:
    """One pass over one header."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._elements = 0

    def header(self) -> Header:
        if self._reader.exactly(min(4, self._reader.size)) != b"GGUF":
            raise RefusedError(RULE, "does not begin as a GGUF file does")
        version, tensors, entries = (int(n) for n in self._reader.unpack(_COUNTS))
        if version not in (2, 3):
            raise RefusedError(
                RULE, f"has GGUF version {version}; 2 and 3 (little-endian) are known"
            )
        if tensors > MAX_TENSORS or entries > MAX_ENTRIES:
            raise RefusedError(RULE, f"claims {tensors} tensors and {entries} entries: too many")
        header = Header(tensors=tensors)
        seen: set[str] = set()
        for _ in range(entries):
            key = self._name(MAX_KEY_BYTES, seen)
            value = self._value(self._u32(), 0)
            if value is not None:
                header.metadata[key] = value
        self._tensors(tensors, _alignment(header))
        return header

    def _tensors(self, count: int, alignment: int) -> None:
        names: set[str] = set()
        extents = [self._tensor(names, alignment) for _ in range(count)]
        start = -(-self._reader.position // alignment) * alignment
        position = 0
        for offset, length, name in sorted(extents):
            if offset < position:
                raise RefusedError(RULE, f"tensor {quoted(name)} overlaps the one before it")
            position = offset + length
            if position > self._reader.size - start:
                raise RefusedError(RULE, f"tensor {quoted(name)} ends behind the end of the file")

    def _tensor(self, names: set[str], alignment: int) -> tuple[int, int, str]:
        name = self._name(MAX_NAME_BYTES, names)
        dimensions = self._u32()
        if dimensions > MAX_DIMENSIONS:
            raise RefusedError(
                RULE, f"tensor {quoted(name)} has {dimensions} dimensions, 4 at most"
            )
        shape = [self._u64() for _ in range(dimensions)] or [1]
        kind, offset = self._u32(), self._u64()
        if kind not in BLOCKS:
            raise RefusedError(RULE, f"tensor {quoted(name)}: ggml type {kind} is not known")
        if offset % alignment:
            raise RefusedError(RULE, f"tensor {quoted(name)}: its offset is not aligned")
        return offset, _bytes_of(name, shape, kind), name

    def _name(self, most: int, seen: set[str]) -> str:
        length = self._u64()
        if length > most:
            raise RefusedError(RULE, f"a name has {length} bytes, {most} at most")
        name = self._reader.exactly(length).decode("utf-8", errors="replace")
        if name in seen:
            raise RefusedError(RULE, f"{quoted(name)} is there twice")
        seen.add(name)
        return name

    def _value(self, kind: int, depth: int) -> Scalar | None:
        if kind == STRING:
            return self._text()
        if kind == ARRAY:
            self._array(depth)
            return None
        if kind not in SCALARS:
            raise RefusedError(RULE, f"value type {kind} is not known")
        (value,) = self._reader.unpack(SCALARS[kind])
        return bool(value) if kind == BOOL else value

    def _text(self) -> str:
        length = self._u64()
        kept = self._reader.exactly(min(length, MAX_KEPT_BYTES))
        self._reader.skip(length - len(kept))
        return kept.decode("utf-8", errors="replace")

    def _array(self, depth: int) -> None:
        kind, count = self._u32(), self._u64()
        if depth >= MAX_NESTING:
            raise RefusedError(RULE, f"arrays are nested more than {MAX_NESTING} deep")
        if kind in SCALARS:
            self._reader.skip(count * SCALARS[kind].size)
            return
        self._elements += count
        if self._elements > MAX_ELEMENTS:
            raise RefusedError(RULE, f"its arrays have more than {MAX_ELEMENTS} texts")
        for _ in range(count):
            if kind == STRING:
                self._reader.skip(self._u64())
            else:
                self._value(kind, depth + 1)

    def _u32(self) -> int:
        return int(self._reader.unpack(_U32)[0])

    def _u64(self) -> int:
        return int(self._reader.unpack(_U64)[0])


def _alignment(header: Header) -> int:
    if "general.alignment" not in header.metadata:
        return 32
    given = header.number("general.alignment")
    if not 8 <= given <= MAX_ALIGNMENT or given & (given - 1):
        raise RefusedError(RULE, "general.alignment must be a power of two from 8 to 65536")
    return given


def _bytes_of(name: str, shape: list[int], kind: int) -> int:
    _, values, size = BLOCKS[kind]
    if not shape[0] or shape[0] % values:
        raise RefusedError(RULE, f"tensor {quoted(name)}: its rows are no whole number of blocks")
    count = 1
    for length in shape:
        count *= length
        if not 1 <= count < 1 << 60:
            raise RefusedError(RULE, f"tensor {quoted(name)}: its shape is empty or too large")
    return count // values * size
