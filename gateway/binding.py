"""Builds the request message of a matched route from path, query and body. Knows no HTTP."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import Message

from gateway import descriptors, jsontree, plain, query, shape
from gateway.contract import Method
from gateway.routing import Route
from services.runtime.errors import InvalidRequest


def build(
    route: Route[Method],
    variables: Mapping[str, str],
    query_string: bytes,
    body: bytes,
    max_json_depth: int,
) -> Message:
    """The request message; InvalidRequest names what does not fit."""
    message: Message = route.target.request()
    _read_body(message, route.body, body, max_json_depth)
    _read_query(message, route, query_string)
    for path, value in variables.items():
        _set_variable(message, path, value)
    return message


def _read_body(message: Message, field: str, body: bytes, max_depth: int) -> None:
    if not field:
        if body.strip():
            raise InvalidRequest("this method takes no body")
        return
    tree: Any = jsontree.parse(body, max_depth) if body.strip() else {}
    if field == "*":
        if not plain.read(message, tree):
            shape.fill(message, tree)
    else:
        shape.fill(message, {field: tree})


def _read_query(message: Message, route: Route[Method], query_string: bytes) -> None:
    if not query_string:
        return
    if route.body == "*":
        raise InvalidRequest("this method takes its fields from the body, not from the query")
    bound = [variable.field for variable in route.template.variables]
    tree = query.tree_of(
        descriptors.of(message), query_string, [*bound, *([route.body] if route.body else [])]
    )
    shape.fill(message, tree)


def _set_variable(message: Message, path: str, value: str) -> None:
    *owners, name = path.split(".")
    owner: Any = message
    for step in owners:
        owner = getattr(owner, step)
    leaf = descriptors.field_at(descriptors.of(message), path)
    fault = shape.scalar_fault(leaf, value)
    if fault:
        raise InvalidRequest.field(path, fault)
    given = getattr(owner, name)
    own = type(owner)()
    shape.fill(own, {name: value})
    wanted = getattr(own, name)
    if given not in (leaf.default_value, wanted):
        raise InvalidRequest.field(path, f"is {given!r} in the body and {value!r} in the path")
    setattr(owner, name, wanted)
