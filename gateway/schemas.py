"""JSON schemas of messages, as proto3 JSON writes them, with the bounds of the contract.

Knows descriptors and comments; no route and no HTTP.
"""

from collections.abc import Callable, Collection
from typing import Any

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    OneofDescriptor,
)
from gristmill.bounds.v1 import bounds_pb2

from gateway.comments import Comments
from gateway.descriptors import bounds_of, enum_of, is_map, map_parts, message_of

Schema = dict[str, Any]
_F = FieldDescriptor
_INT64 = {"type": "string", "pattern": "^-?[0-9]{1,19}$", "format": "int64"}
_UINT64 = {"type": "string", "pattern": "^[0-9]{1,20}$", "format": "uint64"}
_SCALARS: dict[int, Schema] = {
    _F.CPPTYPE_BOOL: {"type": "boolean"},
    _F.CPPTYPE_STRING: {"type": "string"},
    _F.CPPTYPE_INT32: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    _F.CPPTYPE_UINT32: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1},
    _F.CPPTYPE_INT64: _INT64,
    _F.CPPTYPE_UINT64: _UINT64,
    _F.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    _F.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
}
_NUMBERS = (_F.CPPTYPE_INT32, _F.CPPTYPE_UINT32, _F.CPPTYPE_FLOAT, _F.CPPTYPE_DOUBLE)
WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Duration": {
        "type": "string",
        "pattern": r"^-?[0-9]+(\.[0-9]{1,9})?s$",
        "examples": ["1.5s"],
    },
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.FieldMask": {"type": "string", "examples": ["description,labels"]},
    "google.protobuf.Empty": {"type": "object", "additionalProperties": False},
    "google.protobuf.Any": {
        "type": "object",
        "properties": {"@type": {"type": "string"}},
        "additionalProperties": True,
    },
}


class Schemas:
    """Builds schemas and collects those that others refer to."""

    def __init__(self, comments: Comments) -> None:
        self._comments = comments
        self.components: dict[str, Schema] = {}

    def reference(self, descriptor: Descriptor) -> Schema:
        """A reference to the schema of a message, which is built with all it needs."""
        return self._once(component(descriptor.full_name), lambda: self.message(descriptor))

    def message(self, descriptor: Descriptor, without: Collection[str] = ()) -> Schema:
        """The schema of a message; `without` are fields that come from elsewhere."""
        fields = [field for field in descriptor.fields if field.name not in without]
        schema: Schema = {
            "type": "object",
            "properties": {field.json_name: self.field(field) for field in fields},
            "additionalProperties": False,
        }
        required = [field.json_name for field in fields if needed(field)]
        if required:
            schema["required"] = required
        choices = [self._choice(oneof) for oneof in descriptor.oneofs if not _is_optional(oneof)]
        if choices:
            schema["allOf"] = choices
        return self._described(schema, descriptor.full_name)

    def field(self, field: FieldDescriptor) -> Schema:
        """The schema of a field."""
        bounds = bounds_of(field)
        if is_map(field):
            schema = self._map(field, bounds)
        elif field.is_repeated:
            items = self._value(field, bounds)
            schema = {"type": "array", "items": items}
            _limit(schema, bounds, "min_items", "minItems")
            _limit(schema, bounds, "max_items", "maxItems")
        else:
            schema = self._value(field, bounds)
        return self._described(schema, field.full_name)

    def _map(self, field: FieldDescriptor, bounds: bounds_pb2.Bounds) -> Schema:
        key, value = map_parts(field)
        schema: Schema = {
            "type": "object",
            "additionalProperties": self._value(value, bounds),
        }
        if key.cpp_type != _F.CPPTYPE_STRING:
            schema["propertyNames"] = {"pattern": "^-?[0-9]+$"}
        _limit(schema, bounds, "min_items", "minProperties")
        _limit(schema, bounds, "max_items", "maxProperties")
        return schema

    def _value(self, field: FieldDescriptor, bounds: bounds_pb2.Bounds) -> Schema:
        if field.type == _F.TYPE_MESSAGE:
            message = message_of(field)
            known = WELL_KNOWN.get(message.full_name)
            return dict(known) if known is not None else self.reference(message)
        if field.type == _F.TYPE_ENUM:
            enum = enum_of(field)
            return self._once(component(enum.full_name), lambda: self._enum(enum))
        if field.type == _F.TYPE_BYTES:
            return _bytes(bounds)
        schema = dict(_SCALARS[field.cpp_type])
        # Without presence the default is absence, which the rules do not touch.
        absent = not (field.has_presence or field.is_repeated or bounds.required)
        if field.cpp_type in _NUMBERS:
            _number(schema, bounds, absent=absent)
        elif field.cpp_type == _F.CPPTYPE_STRING:
            _text(schema, bounds, absent=absent)
            if bounds.required and not field.has_presence:
                schema.setdefault("minLength", 1)
        return schema

    def _enum(self, enum: EnumDescriptor) -> Schema:
        texts = [
            f"- `{value.name}`: {self._comments.get(f'{enum.full_name}.{value.name}', '')}"
            for value in enum.values
        ]
        own = self._comments.get(enum.full_name, "")
        return {
            "type": "string",
            "enum": [value.name for value in enum.values],
            "description": "\n".join([own, "", *texts]).strip(),
        }

    def _choice(self, oneof: OneofDescriptor) -> Schema:
        """At most one of the fields; exactly one where the comment says that it is required."""
        each: list[Schema] = [{"required": [field.json_name]} for field in oneof.fields]
        if not self.needs_one(oneof):
            each.append({"not": {"anyOf": list(each)}})
        return {"oneOf": each}

    def needs_one(self, oneof: OneofDescriptor) -> bool:
        """Whether a oneof must be set. The contract says so in words only."""
        return "Required" in self._comments.get(oneof.full_name, "")

    def _once(self, name: str, build: Callable[[], Schema]) -> Schema:
        if name not in self.components:
            self.components[name] = {}  # what refers to itself finds its name taken
            self.components[name] = build()
        return {"$ref": f"#/components/schemas/{name}"}

    def _described(self, schema: Schema, name: str) -> Schema:
        text = self._comments.get(name)
        return {**schema, "description": text} if text else schema


def component(full_name: str) -> str:
    """The name of a schema: the full name without our own prefix."""
    return full_name.removeprefix("gristmill.")


def needed(field: FieldDescriptor) -> bool:
    """Whether a request without this field is refused."""
    bounds = bounds_of(field)
    return bounds.required or bounds.min_items > 0


def _is_optional(oneof: OneofDescriptor) -> bool:
    """A oneof that the compiler made for a field marked `optional`."""
    return len(oneof.fields) == 1 and oneof.name == f"_{oneof.fields[0].name}"


def _limit(schema: Schema, bounds: bounds_pb2.Bounds, rule: str, keyword: str) -> None:
    if bounds.HasField(rule):  # type: ignore[arg-type]  # one of the names of the contract
        value = getattr(bounds, rule)
        schema[keyword] = int(value) if float(value).is_integer() else value


def _number(schema: Schema, bounds: bounds_pb2.Bounds, *, absent: bool) -> None:
    _limit(schema, bounds, "max", "maximum")
    if not absent or bounds.min <= 0:
        _limit(schema, bounds, "min", "minimum")
    if not absent or bounds.greater_than < 0:
        _limit(schema, bounds, "greater_than", "exclusiveMinimum")


def _text(schema: Schema, bounds: bounds_pb2.Bounds, *, absent: bool) -> None:
    _limit(schema, bounds, "max_len", "maxLength")
    if not absent:
        _limit(schema, bounds, "min_len", "minLength")
    if bounds.HasField("pattern"):
        schema["pattern"] = f"^(?:{bounds.pattern})" + ("?$" if absent else "$")


def _bytes(bounds: bounds_pb2.Bounds) -> Schema:
    schema: Schema = {"type": "string", "contentEncoding": "base64", "format": "byte"}
    if bounds.HasField("max_len"):
        schema["maxLength"] = -(-bounds.max_len // 3) * 4
    return schema
