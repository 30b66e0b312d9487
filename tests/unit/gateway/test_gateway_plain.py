"""The short way from JSON to messages and back says what the long way says, for every type."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gateway import descriptors, plain, shape
from gateway.app import table_of
from services.runtime.errors import InvalidRequest

METHODS = sorted({route.target.path: route.target for route in table_of().routes}.items())
REQUESTS = [method.request for _, method in METHODS]
TYPES = REQUESTS + [method.response for _, method in METHODS]
DEPTH = 5
_F = FieldDescriptor
_RANGES = {
    _F.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _F.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _F.CPPTYPE_UINT32: (0, 2**32 - 1),
    _F.CPPTYPE_UINT64: (0, 2**64 - 1),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def scalar(draw: Any, field: FieldDescriptor) -> Any:
    """Any value that a scalar field can have."""
    kind = field.cpp_type
    if kind in _RANGES:
        return draw(st.integers(*_RANGES[kind]))
    if kind == _F.CPPTYPE_FLOAT:
        return draw(st.floats(width=32))
    if kind == _F.CPPTYPE_DOUBLE:
        return draw(st.floats())
    if kind == _F.CPPTYPE_BOOL:
        return draw(st.booleans())
    if kind == _F.CPPTYPE_ENUM:
        return draw(st.sampled_from([one.number for one in descriptors.enum_of(field).values]))
    return draw(st.binary(max_size=5) if field.type == _F.TYPE_BYTES else st.text(max_size=5))


def fill(draw: Any, message: Any, depth: int) -> None:
    """Set some of the fields."""
    descriptor: Descriptor = message.DESCRIPTOR
    if descriptor.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        message.seconds = draw(st.integers(0, 2**31))
    if descriptor.full_name.startswith(("google.protobuf.", "google.rpc.")):
        return
    for field in descriptor.fields:
        if draw(st.booleans()):
            _set(draw, message, field, depth)


def _set(draw: Any, message: Any, field: FieldDescriptor, depth: int) -> None:
    target = getattr(message, field.name)
    if descriptors.is_map(field):
        key, value = descriptors.map_parts(field)
        if value.message_type is None:
            target[scalar(draw, key)] = scalar(draw, value)
    elif field.type == _F.TYPE_MESSAGE and depth:
        if not field.is_repeated:
            target.SetInParent()
        fill(draw, target.add() if field.is_repeated else target, depth - 1)
    elif field.type != _F.TYPE_MESSAGE and field.is_repeated:
        target.extend(scalar(draw, field) for _ in range(draw(st.integers(0, 3))))
    elif field.type != _F.TYPE_MESSAGE:
        setattr(message, field.name, scalar(draw, field))


@st.composite
def messages(draw: Any, types: list[Any]) -> Message:
    """A message of any of the types."""
    message: Message = draw(st.sampled_from(types))()
    fill(draw, message, DEPTH)
    return message


@st.composite
def spoiled(draw: Any) -> tuple[Any, Any]:
    """A type, and the tree of a message of it with one part that is anything."""
    message = draw(messages(REQUESTS))
    tree = json_format.MessageToDict(message, preserving_proto_field_name=draw(st.booleans()))
    at = tree
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            if isinstance(at, dict):
                at[draw(st.text(max_size=4))] = draw(JSON)
            else:
                at.append(draw(JSON))
            return type(message), tree
        key = draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and draw(st.booleans()):
            at = at[key]
            continue
        at[key] = draw(JSON)
        return type(message), tree


@given(messages(TYPES))
def test_what_is_written_is_what_json_format_writes(message: Message) -> None:
    wanted = json_format.MessageToDict(message, always_print_fields_with_no_presence=True)
    assert plain.tree_of(message) == wanted


@given(messages(REQUESTS))
def test_what_is_read_is_what_json_format_reads(message: Message) -> None:
    tree = json_format.MessageToDict(message)
    found = type(message)()
    if plain.read(found, tree):
        assert found.SerializeToString(deterministic=True) == message.SerializeToString(
            deterministic=True
        )
    else:
        assert found == type(message)()


@given(spoiled())
def test_what_is_read_is_nothing_that_the_long_way_refuses(given_: tuple[Any, Any]) -> None:
    kind, tree = given_
    found = kind()
    if not plain.read(found, tree):
        return
    wanted = kind()
    try:
        shape.fill(wanted, tree)
    except InvalidRequest as error:
        raise AssertionError(f"{tree} was read") from error
    assert found == wanted


@pytest.mark.parametrize("name", [name for name, _ in METHODS if "Classify" in name])
def test_plain_requests_are_read_on_the_short_way(name: str) -> None:
    method = dict(METHODS)[name]
    item = {"text": {"text": "so so"}}
    tree = {"items": [item if "Bidi" not in name else {"id": "a", "item": item}]}
    assert plain.read(method.request(), {**tree, "options": {"topK": 3}, "priority": 2})


@pytest.mark.parametrize(
    "tree",
    [
        {"priority": True},
        {"priority": "2"},
        {"priority": -1},
        {"options": {"threshold": 1e300}},
        {"options": {"topK": 1, "top_k": 2}},
        {"items": [{"text": {"text": "a"}, "image": {}}]},
        {"items": {}},
        {"items": None},
        {"nothing": 1},
        [],
        None,
    ],
)
def test_what_is_not_plain_is_left_to_the_long_way(tree: Any) -> None:
    message = dict(METHODS)["/gristmill.classifier.v1.ClassifierService/Classify"].request()
    assert not plain.read(message, tree)
    assert not message.ByteSize()
