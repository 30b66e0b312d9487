"""Holds a JSON tree against a message type and names every field that does not fit, by its path.

`json_format` does the conversion; it stops at the first fault, names some by words instead of a
path and lets some through (a list where an object belongs), so it is asked only after this.
"""

import base64
import binascii
import re
import sys
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from gateway import descriptors
from services.runtime.bounds import MAX_VIOLATIONS
from services.runtime.errors import InvalidRequest, Violation

_F = FieldDescriptor
_RANGES = {
    _F.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _F.CPPTYPE_UINT32: (0, 2**32 - 1),
    _F.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _F.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_LARGEST = {_F.CPPTYPE_FLOAT: 3.4028234663852886e38, _F.CPPTYPE_DOUBLE: sys.float_info.max}
_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER = re.compile(r"-?[0-9]{1,20}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]*={0,2}")


def fill(message: Message, tree: Any, at: str = "") -> None:
    """Merge a JSON tree into a message; InvalidRequest names each field that does not fit."""
    found: list[Violation] = []
    for violation in faults(descriptors.of(message), tree, at):
        found.append(violation)
        if len(found) == MAX_VIOLATIONS:
            break
    if found:
        text = "; ".join(f"{v.field}: {v.description}" for v in found[:3])
        raise InvalidRequest(text, violations=found)
    try:
        json_format.ParseDict(tree, message)
    except (json_format.ParseError, ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest.field(at or "body", _plain(str(error))) from None


def faults(descriptor: Descriptor, tree: Any, at: str) -> Iterator[Violation]:
    """What does not fit, in the order of the document."""
    if descriptor.full_name.startswith("google.protobuf."):
        yield from _well_known(descriptor, tree, at)
        return
    if not isinstance(tree, dict):
        yield Violation(at or "body", "must be an object")
        return
    taken: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{at}.{key}" if at else key
        field = descriptors.named(descriptor, key)
        if field is None:
            yield Violation(path, f"{descriptor.name} has no such field")
            continue
        path = f"{at}.{field.name}" if at else field.name
        slot = field.name
        if field.containing_oneof is not None and value is not None:
            slot = field.containing_oneof.name
        if slot in taken:
            yield Violation(path, f"excludes {taken[slot]}; give one of them")
            continue
        taken[slot] = key
        if value is not None:
            yield from _field(field, value, path)


def _field(field: FieldDescriptor, value: Any, at: str) -> Iterator[Violation]:
    if descriptors.is_map(field):
        yield from _map(field, value, at)
    elif field.is_repeated:
        if not isinstance(value, list):
            yield Violation(at, "must be an array")
            return
        for index, item in enumerate(value):
            yield from _value(field, item, f"{at}[{index}]")
    else:
        yield from _value(field, value, at)


def _map(field: FieldDescriptor, value: Any, at: str) -> Iterator[Violation]:
    if not isinstance(value, dict):
        yield Violation(at, "must be an object")
        return
    key_field, value_field = descriptors.map_parts(field)
    for key, item in value.items():
        path = f"{at}[{key}]"
        yield from _value(key_field, key, path)
        yield from _value(value_field, item, path)


def _value(field: FieldDescriptor, value: Any, at: str) -> Iterator[Violation]:
    if value is None:
        yield Violation(at, "must not be null")
    elif field.type == _F.TYPE_MESSAGE:
        yield from faults(descriptors.message_of(field), value, at)
    else:
        fault = scalar_fault(field, value)
        if fault:
            yield Violation(at, fault)


def scalar_fault(field: FieldDescriptor, value: Any) -> str:
    """What is wrong with a scalar, or ""."""
    kind = field.cpp_type
    if kind in _RANGES:
        return _integer(value, *_RANGES[kind])
    if kind in _LARGEST:
        return _number(value, _LARGEST[kind])
    if kind == _F.CPPTYPE_BOOL:
        return "" if isinstance(value, bool) else "must be true or false"
    if kind == _F.CPPTYPE_ENUM:
        return _enum(field, value)
    if not isinstance(value, str):
        return "must be a string"
    if field.type == _F.TYPE_BYTES:
        return _bytes(value)
    return "has an unpaired surrogate" if _SURROGATE.search(value) else ""


def _integer(value: Any, low: int, high: int) -> str:
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            return "must be an integer"
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int:
        return "must be an integer"
    return "" if low <= value <= high else f"must be from {low} to {high}"


def _number(value: Any, largest: float) -> str:
    if isinstance(value, str):
        return "" if _NUMBER.fullmatch(value) else "must be a number"
    if type(value) not in (int, float):
        return "must be a number"
    return "" if -largest <= value <= largest else f"must be from -{largest:g} to {largest:g}"


def _enum(field: FieldDescriptor, value: Any) -> str:
    names = [one.name for one in descriptors.enum_of(field).values]
    if isinstance(value, str):
        return "" if value in names else f"must be one of {', '.join(names)}"
    return "must be a name of the enum" if type(value) is not int else _integer(value, 0, 2**31 - 1)


def _bytes(value: str) -> str:
    padded = value + "=" * (-len(value) % 4)
    if not _BASE64.fullmatch(value):
        return "must be base64"
    try:
        base64.urlsafe_b64decode(padded.replace("+", "-").replace("/", "_"))
    except (binascii.Error, ValueError):
        return "must be base64"
    return ""


def _well_known(descriptor: Descriptor, tree: Any, at: str) -> Iterator[Violation]:
    """Duration, Timestamp, FieldMask, wrappers and the like: tried for themselves."""
    try:
        json_format.ParseDict(tree, message_factory.GetMessageClass(descriptor)())
    except (json_format.ParseError, ValueError, TypeError, AttributeError) as error:
        yield Violation(at, _plain(str(error)))


def _plain(text: str) -> str:
    """What json_format says, without the chain of its own words and without its path."""
    text = re.sub(r"Failed to parse \w+ field: ", "", text)
    return re.sub(r" at [\w.\[\]]+$", "", text.rstrip(".").splitlines()[0] if text else "invalid")
