"""Messages to JSON trees and back on the short way, for what nearly every message is made of.

json_format takes every form that proto3 JSON allows and walks the descriptors anew each time. Here
each type has a plan that is made once: reading takes plain forms only and gives up on any other,
for the long way to find what is wrong, or that nothing is; writing hands what has rules of its
own, such as Any and Duration, to json_format. Knows no HTTP.
"""

import base64
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.internal.type_checkers import ToShortestFloat
from google.protobuf.message import Message

from gateway import descriptors

_F = FieldDescriptor
_INTEGERS = (_F.CPPTYPE_INT32, _F.CPPTYPE_INT64, _F.CPPTYPE_UINT32, _F.CPPTYPE_UINT64)
_WIDE = (_F.CPPTYPE_INT64, _F.CPPTYPE_UINT64)
_LARGEST = {_F.CPPTYPE_FLOAT: 3.4028234663852886e38, _F.CPPTYPE_DOUBLE: 1.7976931348623157e308}
Write = Callable[[Any], Any]
Read = Callable[[Any], Any]


class _NotPlainError(Exception):
    """A form that the long way has to look at."""


def read(message: Message, tree: Any) -> bool:
    """Fill an empty message; False where the tree is not plain, and the message stays empty."""
    try:
        _fill(message, tree)
    except (_NotPlainError, TypeError, ValueError, OverflowError):
        message.Clear()
        return False
    return True


def _fill(message: Any, tree: Any) -> None:
    if type(tree) is not dict:
        raise _NotPlainError
    plan = _readers(message.DESCRIPTOR)
    slots = set()
    for key, value in tree.items():
        name, slot, repeated, check = plan[key] if key in plan else _unknown()
        if slot in slots or value is None:
            raise _NotPlainError
        slots.add(slot)
        if repeated:
            if type(value) is not list:
                raise _NotPlainError
            target = getattr(message, name)
            if check is None:
                for one in value:
                    _fill(target.add(), one)
            else:
                target.extend([check(one) for one in value])
        elif check is None:
            target = getattr(message, name)
            target.SetInParent()
            _fill(target, value)
        else:
            setattr(message, name, check(value))


def _unknown() -> Any:
    raise _NotPlainError


@lru_cache(maxsize=1024)
def _readers(descriptor: Descriptor) -> dict[str, tuple[str, str, bool, Read | None]]:
    """By either name of a field: its name, what it excludes others from, and how it is read."""
    if descriptor.full_name.startswith("google.protobuf."):
        return {}
    found = {}
    for field in descriptor.fields:
        if descriptors.is_map(field):
            continue
        oneof = field.containing_oneof
        slot = oneof.name if oneof is not None else field.name
        check = None if field.type == _F.TYPE_MESSAGE else _reader(field)
        if check is _refused or (check is None and not _is_own(field)):
            continue
        found[field.name] = found[field.json_name] = (field.name, slot, field.is_repeated, check)
    return found


def _is_own(field: FieldDescriptor) -> bool:
    return not descriptors.message_of(field).full_name.startswith("google.protobuf.")


def _reader(field: FieldDescriptor) -> Read:
    """What lets a plain value of a scalar through."""
    kind = field.cpp_type
    if field.type == _F.TYPE_BYTES:
        return _refused
    if kind in _INTEGERS:
        return _integer
    if kind in _LARGEST:
        largest = _LARGEST[kind]
        return lambda value: _number(value, largest)
    if kind == _F.CPPTYPE_BOOL:
        return _boolean
    if kind == _F.CPPTYPE_ENUM:
        numbers = {one.name: one.number for one in descriptors.enum_of(field).values}
        return lambda value: numbers[value] if value in numbers else _unknown()
    return _text


def _refused(value: Any) -> Any:
    raise _NotPlainError


def _integer(value: Any) -> int:
    return value if type(value) is int else _unknown()


def _number(value: Any, largest: float) -> float:
    if type(value) not in (int, float) or not -largest <= value <= largest:
        raise _NotPlainError
    return value  # type: ignore[no-any-return]  # as just seen


def _boolean(value: Any) -> bool:
    return value if type(value) is bool else _unknown()


def _text(value: Any) -> str:
    return value if type(value) is str else _unknown()


def tree_of(message: Message) -> Any:
    """The tree of a message: what has no presence is there, also where it is 0 or empty."""
    return _writer(descriptors.of(message))(message)


@lru_cache(maxsize=1024)
def _writer(descriptor: Descriptor) -> Write:
    """How a message of a type is written."""
    if descriptor.full_name.startswith("google."):
        return _by_json_format
    plan = [_part(field) for field in descriptor.fields]

    def write(message: Any) -> dict[str, Any]:
        tree = {}
        for name, json_name, has_presence, one in plan:
            if has_presence and not message.HasField(name):
                continue
            tree[json_name] = one(getattr(message, name))
        return tree

    return write


def _part(field: FieldDescriptor) -> tuple[str, str, bool, Write]:
    one = _one(field)
    whole = one
    if descriptors.is_map(field):
        key, value = (_one(part) for part in descriptors.map_parts(field))
        texts = descriptors.map_parts(field)[0].cpp_type == _F.CPPTYPE_STRING

        def whole(values: Any) -> Any:
            return {k if texts else _key(key(k)): value(values[k]) for k in values}

    elif field.is_repeated:

        def whole(values: Any) -> Any:
            return [one(item) for item in values]

    return field.name, field.json_name, field.has_presence, whole


def _key(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _one(field: FieldDescriptor) -> Write:
    """How one value is written."""
    kind = field.cpp_type
    if field.type == _F.TYPE_MESSAGE:
        descriptor = descriptors.message_of(field)
        # Found when it is needed: a type may hold itself.
        return lambda message: _writer(descriptor)(message)
    if kind == _F.CPPTYPE_ENUM:
        names = {one.number: one.name for one in descriptors.enum_of(field).values}
        return lambda number: names.get(number, number)
    if field.type == _F.TYPE_BYTES:
        return _base64
    if kind in _WIDE:
        return str
    if kind == _F.CPPTYPE_FLOAT:
        return lambda value: ToShortestFloat(value) if math.isfinite(value) else _word(value)
    if kind == _F.CPPTYPE_DOUBLE:
        return lambda value: value if math.isfinite(value) else _word(value)
    return _same


def _same(value: Any) -> Any:
    return value


def _word(value: float) -> str:
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _by_json_format(message: Message) -> Any:
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
