"""Query parameters to a JSON tree, read by the message type they fill. Knows no HTTP.

page_size=5&filter=...          fields, by either of their names
model.model=a&model.version=2   fields of messages
names=a&names=b                 repeated fields
"""

from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qsl

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.descriptors import is_map, named
from services.runtime.errors import InvalidRequest

MAX_PARAMETERS = 1000
# Messages that JSON writes as one value; all others are reached through their fields.
LEAVES = {
    "google.protobuf.Duration": FieldDescriptor.CPPTYPE_STRING,
    "google.protobuf.Timestamp": FieldDescriptor.CPPTYPE_STRING,
    "google.protobuf.FieldMask": FieldDescriptor.CPPTYPE_STRING,
    "google.protobuf.BoolValue": FieldDescriptor.CPPTYPE_BOOL,
    **{
        f"google.protobuf.{name}Value": FieldDescriptor.CPPTYPE_STRING
        for name in ("String", "Bytes", "Int32", "Int64", "UInt32", "UInt64", "Float", "Double")
    },
}


def tree_of(descriptor: Descriptor, query: bytes, bound: Iterable[str]) -> dict[str, Any]:
    """The tree for a query string; `bound` are the field paths that the path or body gives."""
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError:
        raise InvalidRequest("the query string is malformed") from None
    tree: dict[str, Any] = {}
    taken = tuple(bound)
    for key, value in pairs:
        fields = _walk(descriptor, key)
        path = ".".join(field.name for field in fields)
        if any(path == one or path.startswith(one + ".") for one in taken):
            raise InvalidRequest.field(path, "is given by the path or the body")
        _set(tree, fields, value, path)
    return tree


def _walk(descriptor: Descriptor, key: str) -> list[FieldDescriptor]:
    """The fields along a dotted key, the last of them one that a parameter can fill."""
    fields: list[FieldDescriptor] = []
    at: Descriptor | None = descriptor
    for name in key.split("."):
        field = named(at, name) if at is not None else None
        if field is None or (fields and fields[-1].is_repeated):
            raise InvalidRequest.field(key, f"{descriptor.name} has no such field")
        fields.append(field)
        at = None if _leaf(field) else field.message_type
    if at is not None or is_map(fields[-1]):
        raise InvalidRequest.field(key, "is a message: give its fields, or send it in a body")
    return fields


def _leaf(field: FieldDescriptor) -> bool:
    return field.message_type is None or field.message_type.full_name in LEAVES


def _set(tree: dict[str, Any], fields: Sequence[FieldDescriptor], value: str, path: str) -> None:
    at = tree
    for field in fields[:-1]:
        at = at.setdefault(field.name, {})
    last = fields[-1]
    if last.is_repeated:
        at.setdefault(last.name, []).append(_read(last, value))
    elif last.name in at:
        raise InvalidRequest.field(path, "is given twice")
    else:
        at[last.name] = _read(last, value)


def _read(field: FieldDescriptor, value: str) -> Any:
    """The JSON value that a parameter spells."""
    kind = field.cpp_type
    if field.message_type is not None:
        kind = LEAVES[field.message_type.full_name]
        if field.message_type.full_name == "google.protobuf.FieldMask":
            return _camel_mask(value)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return {"true": True, "false": False}.get(value, value)
    if kind == FieldDescriptor.CPPTYPE_ENUM and value.isascii() and value.isdigit():
        return int(value[:20])
    return value


def _camel_mask(value: str) -> str:
    """JSON writes masks in lowerCamelCase; people write the names they see in the contract."""
    head, *rest = value.split("_")
    return head + "".join(part[:1].upper() + part[1:] for part in rest)
