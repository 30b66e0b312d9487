"""Checks messages against the bounds written in the contract. Knows no service.

A checker is compiled once for each message type from its descriptor; a type whose fields have no
bounds, at any depth, costs nothing.
"""

import math
import re
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf import duration_pb2, message
from google.protobuf.descriptor import FieldDescriptor
from gristmill.bounds.v1 import bounds_pb2

from services.runtime.errors import InvalidRequest, Violation

Path = tuple["Path | None", str]
"""The name of a field behind the path of what holds it: put into words only for a violation."""
Check = Callable[[Any, "Path | None", list[Violation]], None]
_MESSAGE = FieldDescriptor.TYPE_MESSAGE
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_FLOAT,
    FieldDescriptor.CPPTYPE_DOUBLE,
    FieldDescriptor.CPPTYPE_ENUM,
}
# A message with thousands of bad items is refused all the same; nobody reads more than this.
MAX_VIOLATIONS = 32
# A caller's own keys are not sent back, nor logged, at any length.
MAX_KEY_CHARS = 64


class Bounds:
    """Compiled checkers by message type."""

    def __init__(self) -> None:
        self._checks: dict[str, list[Check]] = {}
        self._compiling: set[str] = set()

    def check(self, request: message.Message) -> None:
        """Raise InvalidRequest with every violation found, at most 32."""
        checks = self._compiled(request.DESCRIPTOR)
        if not checks:
            return
        found: list[Violation] = []
        for one in checks:
            one(request, None, found)
        if found:
            raise InvalidRequest(
                "; ".join(f"{v.field}: {v.description}" for v in found[:3]),
                violations=found[:MAX_VIOLATIONS],
            )

    def _compiled(self, descriptor: Any) -> list[Check]:
        name = descriptor.full_name
        if name not in self._checks:
            # A type inside itself refers to this list, which is filled by the time it is read.
            checks = self._checks[name] = []
            self._compiling.add(name)
            alone = [field for field in descriptor.fields if not _in_a_oneof(field)]
            checks += [check for field in alone for check in self._field(field)]
            checks += [check for oneof in descriptor.oneofs for check in self._oneof(oneof)]
            self._compiling.remove(name)
        return self._checks[name]

    def _field(self, field: Any) -> list[Check]:
        bounds = _bounds_of(field)
        found: list[Check] = []
        if bounds.required:
            found.append(_required(field))
        if field.is_repeated and (bounds.HasField("min_items") or bounds.HasField("max_items")):
            found.append(_count(field.name, bounds))
        value = field.message_type.fields_by_name["value"] if _is_map(field) else field
        check = _value_check(value, bounds) or self._nested(value)
        if check:
            found.append(_apply(field, check) if value is field else _each_entry(field, check))
        return found

    def _oneof(self, oneof: Any) -> list[Check]:
        """One look at which member is there, instead of one for each."""
        members = [field for field in oneof.fields if _in_a_oneof(field)]
        by_name = {
            field.name: check
            for field in members
            if (check := _value_check(field, _bounds_of(field)) or self._nested(field))
        }
        required = [_required(field) for field in members if _bounds_of(field).required]
        return [*required, _chosen(oneof.name, by_name)] if by_name else required

    def _nested(self, field: Any) -> Check | None:
        if field.type != _MESSAGE or _leaf(field.message_type):
            return None
        nested = self._compiled(field.message_type)
        open_still = field.message_type.full_name in self._compiling
        return _all_of(nested) if nested or open_still else None


def _bounds_of(field: Any) -> bounds_pb2.Bounds:
    found: bounds_pb2.Bounds = field.GetOptions().Extensions[bounds_pb2.field]
    return found


def _in_a_oneof(field: Any) -> bool:
    """Whether it is one of several; an optional field is alone in a oneof of its own."""
    oneof = field.containing_oneof
    return oneof is not None and not (len(oneof.fields) == 1 and oneof.name.startswith("_"))


def _chosen(oneof: str, by_name: dict[str, Check]) -> Check:
    def run(owner: Any, path: Path | None, found: list[Violation]) -> None:
        name = owner.WhichOneof(oneof)
        check = by_name.get(name)
        if check is not None:
            check(getattr(owner, name), (path, name), found)

    return run


def _words(path: Path | None) -> str:
    """The path as a caller reads it: a.b[3].c."""
    words: list[str] = []
    while path is not None:
        path, word = path
        words.append(word)
    return ".".join(reversed(words))


def _leaf(descriptor: Any) -> bool:
    return bool(descriptor.full_name.startswith("google."))


def _is_map(field: Any) -> bool:
    return field.type == _MESSAGE and bool(field.message_type.GetOptions().map_entry)


def _all_of(checks: list[Check]) -> Check:
    def run(value: Any, path: Path | None, found: list[Violation]) -> None:
        for check in checks:
            check(value, path, found)

    return run


def _required(field: FieldDescriptor) -> Check:
    name = field.name
    presence = field.has_presence

    def run(owner: Any, path: Path | None, found: list[Violation]) -> None:
        absent = not owner.HasField(name) if presence else not getattr(owner, name)
        if absent:
            found.append(Violation(_words((path, name)), "is required"))

    return run


def _count(name: str, bounds: bounds_pb2.Bounds) -> Check:
    low = bounds.min_items
    high = bounds.max_items if bounds.HasField("max_items") else math.inf

    def run(owner: Any, path: Path | None, found: list[Violation]) -> None:
        count = len(getattr(owner, name))
        if count < low:
            found.append(Violation(_words((path, name)), f"needs at least {low} elements"))
        elif count > high:
            said = f"has {count} elements, at most {high} are taken"
            found.append(Violation(_words((path, name)), said))

    return run


def _apply(field: FieldDescriptor, check: Check) -> Check:
    """Run a value check where the field is present: on each element of a repeated one."""
    name = field.name
    if field.is_repeated:

        def each(owner: Any, path: Path | None, found: list[Violation]) -> None:
            for index, value in enumerate(getattr(owner, name)):
                if len(found) >= MAX_VIOLATIONS:
                    return
                check(value, (path, f"{name}[{index}]"), found)

        return each
    presence = field.has_presence

    def one(owner: Any, path: Path | None, found: list[Violation]) -> None:
        if owner.HasField(name) if presence else getattr(owner, name):
            check(getattr(owner, name), (path, name), found)

    return one


def _each_entry(field: FieldDescriptor, check: Check) -> Check:
    """Run a value check on each value of a map."""
    name = field.name

    def run(owner: Any, path: Path | None, found: list[Violation]) -> None:
        entries = getattr(owner, name)
        for key in entries:
            if len(found) >= MAX_VIOLATIONS:
                return
            check(entries[key], (path, f"{name}[{str(key)[:MAX_KEY_CHARS]}]"), found)

    return run


def _value_check(field: Any, bounds: bounds_pb2.Bounds) -> Check | None:
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        return _text_check(bounds)
    if field.cpp_type in _NUMBERS or (
        field.type == _MESSAGE
        and field.message_type.full_name == duration_pb2.Duration.DESCRIPTOR.full_name
    ):
        return _number_check(field, bounds)
    return None


def _text_check(bounds: bounds_pb2.Bounds) -> Check | None:
    low = bounds.min_len
    high = bounds.max_len if bounds.HasField("max_len") else math.inf
    pattern = re.compile(bounds.pattern, re.ASCII) if bounds.HasField("pattern") else None
    if not low and high == math.inf and pattern is None:
        return None

    def run(value: Any, path: Path | None, found: list[Violation]) -> None:
        size = len(value)
        if size > high:
            found.append(Violation(_words(path), f"is {size} long, at most {high} is taken"))
        elif size < low:
            found.append(Violation(_words(path), f"is {size} long, at least {low} is needed"))
        elif pattern is not None and not pattern.fullmatch(value):
            found.append(Violation(_words(path), f"must match {pattern.pattern}"))

    return run


def _number_check(field: FieldDescriptor, bounds: bounds_pb2.Bounds) -> Check | None:
    exact = _single if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else float
    low = exact(bounds.min) if bounds.HasField("min") else -math.inf
    high = exact(bounds.max) if bounds.HasField("max") else math.inf
    above = exact(bounds.greater_than) if bounds.HasField("greater_than") else None
    if (low, high, above) == (-math.inf, math.inf, None):
        return None
    is_duration = field.type == _MESSAGE

    def run(value: Any, path: Path | None, found: list[Violation]) -> None:
        number = value.seconds + value.nanos / 1e9 if is_duration else value
        # A NaN compares false with everything, so the test is for what is allowed.
        if not (low <= number <= high and (above is None or number > above)):
            found.append(Violation(_words(path), f"is {number:g}; {_span(low, high, above)}"))

    return run


def _single(number: float) -> float:
    """The number as a float field holds it: 0.1 in a message is a little more than 0.1."""
    (rounded,) = struct.unpack("f", struct.pack("f", number))
    return float(rounded)


def _span(low: float, high: float, above: float | None) -> str:
    parts = []
    if low > -math.inf:
        parts.append(f"at least {low:g}")
    if above is not None:
        parts.append(f"more than {above:g}")
    if high < math.inf:
        parts.append(f"at most {high:g}")
    return "it must be " + " and ".join(parts)
