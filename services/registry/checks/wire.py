"""Protobuf's wire format, read field by field where it lies in a file. Knows no message."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from services.registry.checks.findings import RefusedError
from services.registry.checks.reading import Bytes

RULE = "header"
MAX_FIELDS = 2_000_000
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}


class Kind(NamedTuple):
    """How a field of a message is written."""

    name: str
    wires: tuple[int, ...]
    repeated: bool = False


def one(name: str, wire: int = LENGTH) -> Kind:
    """A field that is there once at most."""
    return Kind(name, (wire,))


def many(name: str) -> Kind:
    """A field of texts or messages that may be there again and again."""
    return Kind(name, (LENGTH,), repeated=True)


def numbers(name: str, wire: int = VARINT) -> Kind:
    """Numbers, packed or one by one."""
    return Kind(name, (wire, LENGTH), repeated=True)


Shape = Mapping[int, Kind]


class Field(NamedTuple):
    """One field: where its bytes lie, or its number."""

    name: str
    wire: int
    number: int
    begin: int
    end: int


class Wire:
    """Reads messages of one file, and so many fields altogether."""

    def __init__(self, data: Bytes, limit: int) -> None:
        self._data = data
        self._limit = limit
        self._fields = 0
        self._held = 0

    def whole(self) -> Field:
        """The message that the file is."""
        return Field("", LENGTH, 0, 0, self._data.size)

    def fields(self, message: Field, shape: Shape) -> Iterator[Field]:
        """Its fields. What the message's shape does not know is refused: others may know it."""
        seen: set[int] = set()
        position = message.begin
        while position < message.end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise RefusedError(RULE, f"has more than {MAX_FIELDS} fields")
            tag, position = self._varint(position, message.end)
            kind = shape.get(tag >> 3)
            if kind is None or tag & 7 not in kind.wires:
                raise RefusedError(RULE, "is no ONNX model, or of a version that is not known")
            if not kind.repeated and tag in seen:
                # Parsers merge such parts; checked one by one they would look harmless.
                raise RefusedError(RULE, f"{kind.name} is there twice")
            seen.add(tag)
            found = self._field(kind.name, tag & 7, position, message.end)
            position = found.end
            yield found

    def text(self, field: Field, most: int = 65_536) -> str:
        """A field's text."""
        length = field.end - field.begin
        if length > most:
            raise RefusedError(RULE, f"{field.name} has more than {most} bytes")
        self._hold(length)
        try:
            return self._data.at(field.begin, length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise RefusedError(RULE, f"{field.name} is not UTF-8") from error

    def integers(self, field: Field, most: int) -> list[int]:
        """Signed numbers, packed or one."""
        if field.wire == VARINT:
            return [signed(field.number)]
        found: list[int] = []
        position = field.begin
        while position < field.end:
            if len(found) >= most:
                raise RefusedError(RULE, f"{field.name} lists more than {most} numbers")
            number, position = self._varint(position, field.end)
            found.append(signed(number))
        return found

    def _field(self, name: str, wire: int, position: int, end: int) -> Field:
        if wire == LENGTH:
            length, position = self._varint(position, end)
        elif wire == VARINT:
            number, position = self._varint(position, end)
            return Field(name, wire, number, position, position)
        else:
            length = FIXED[wire]
        if length > end - position:
            raise RefusedError(RULE, f"{name} ends behind the end of what it is part of")
        return Field(name, wire, 0, position, position + length)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        if position < end and (number := self._data.byte(position)) < 0x80:
            return number, position + 1
        number = 0
        for index, byte in enumerate(self._data.at(position, min(10, end - position))):
            number |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                return number & 0xFFFF_FFFF_FFFF_FFFF, position + index + 1
        raise RefusedError(RULE, "ends inside a number")

    def _hold(self, count: int) -> None:
        """Names are kept; all of them together are bounded."""
        self._held += count
        if self._held > self._limit:
            raise RefusedError(RULE, "its header is too long")


def signed(number: int) -> int:
    """An int64 from its varint."""
    return number - (1 << 64) if number >= 1 << 63 else number
