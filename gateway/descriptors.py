"""What the gateway asks of protobuf descriptors. Knows no JSON and no HTTP."""

from functools import lru_cache

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from gristmill.bounds.v1 import bounds_pb2


def of(message: Message) -> Descriptor:
    """The descriptor of a message; its stubs name two kinds of which one exists here."""
    found: Descriptor = message.DESCRIPTOR  # type: ignore[assignment]  # see above
    return found


def message_of(field: FieldDescriptor) -> Descriptor:
    """The type of a message field."""
    if field.message_type is None:
        raise TypeError(f"{field.full_name} is not a message")
    return field.message_type


def enum_of(field: FieldDescriptor) -> EnumDescriptor:
    """The type of an enum field."""
    if field.enum_type is None:
        raise TypeError(f"{field.full_name} is not an enum")
    return field.enum_type


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def map_parts(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """The key and the value of a map field."""
    parts = message_of(field).fields_by_name
    return parts["key"], parts["value"]


@lru_cache(maxsize=1024)
def _names(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    fields = descriptor.fields
    return {field.name: field for field in fields} | {field.json_name: field for field in fields}


def named(descriptor: Descriptor, key: str) -> FieldDescriptor | None:
    """The field of this name, in lowerCamelCase or as the contract writes it."""
    return _names(descriptor).get(key)


def field_at(descriptor: Descriptor, path: str) -> FieldDescriptor:
    """The field at a dotted path of proto names; ValueError where there is none."""
    at: Descriptor | None = descriptor
    found: FieldDescriptor | None = None
    for name in path.split("."):
        found = at.fields_by_name.get(name) if at is not None else None
        if found is None:
            break
        at = found.message_type
    if found is None:
        raise ValueError(f"{descriptor.full_name} has no field {path}")
    return found


def bounds_of(field: FieldDescriptor) -> bounds_pb2.Bounds:
    """The bounds that the contract puts on a field."""
    found: bounds_pb2.Bounds = field.GetOptions().Extensions[bounds_pb2.field]
    return found
