"""JSON Schemas as constraints: read by structure, refused where no engine follows them. Pure."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.generator import expressions
from services.runtime.errors import InvalidRequest

MAX_DEPTH = 24
MAX_NODES = 2000
TYPES = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = (
    *("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "additionalItems"),
)
_COUNTS = (
    *("minItems", "maxItems", "minProperties", "maxProperties", "minLength", "maxLength"),
    *("minContains", "maxContains"),
)
_PAIRS = (
    ("minItems", "maxItems"),
    ("minProperties", "maxProperties"),
    ("minLength", "maxLength"),
    ("minContains", "maxContains"),
    ("minimum", "maximum"),
    ("exclusiveMinimum", "exclusiveMaximum"),
    ("minimum", "exclusiveMaximum"),
    ("exclusiveMinimum", "maximum"),
)
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def check(text: str, path: str) -> dict[str, Any]:
    """The schema in a text; InvalidRequest where it is malformed or would cost too much."""
    try:
        schema = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.field(path, f"is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise InvalidRequest.field(path, "is no JSON object")
    _check_size(schema, path)
    positions = 0
    for node in _schemas(schema, path):
        positions += _check_node(node, schema, path)
        if positions > expressions.MAX_POSITIONS:
            most = expressions.MAX_POSITIONS
            said = f"is too large: its lengths, counts and patterns add up to over {most}"
            raise InvalidRequest.field(path, said)
    return schema


def _check_size(schema: Any, path: str) -> None:
    """Its depth and its parts, without recursion."""
    pending: list[tuple[int, Any]] = [(1, schema)]
    seen = 0
    while pending:
        depth, node = pending.pop()
        seen += 1
        if depth > MAX_DEPTH:
            raise InvalidRequest.field(path, f"is nested more than {MAX_DEPTH} deep")
        if seen > MAX_NODES:
            raise InvalidRequest.field(path, f"has more than {MAX_NODES} parts")
        parts = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        pending += [(depth + 1, value) for value in parts]


def _schemas(schema: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
    """Every schema in a schema; what is data is passed over."""
    pending: list[Any] = [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise InvalidRequest.field(path, f"has {_shown(node)} where a schema must be")
        yield node
        for name in _MAPS:
            found = _parts(node, name, dict, path).values()
            if False in found:
                raise InvalidRequest.field(path, f"has false in {name}, which accepts nothing")
            pending += found
        for name in _LISTS:
            pending += _parts(node, name, list, path)
            if False in node.get(name, ()) or (
                name == "prefixItems" and True in node.get(name, ())
            ):
                raise InvalidRequest.field(path, f"has true or false in {name}")
        pending += [node[name] for name in _SINGLE if name in node]


def _parts(node: Mapping[str, Any], name: str, kind: type, path: str) -> Any:
    found = node.get(name, kind())
    if not isinstance(found, kind) or (name in node and kind is list and not found):
        raise InvalidRequest.field(path, f"has {_shown(found)} as {name}")
    return found


def _check_node(node: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> int:
    """Refuse what is malformed in one schema; the positions that it costs by itself."""
    if "$ref" in node:
        _check_reference(node["$ref"], schema, path)
    given = node.get("type", "string")
    types = given if isinstance(given, list) else [given]
    if not types or not all(isinstance(one, str) and one in TYPES for one in types):
        raise InvalidRequest.field(path, f"has {_shown(given)} as type")
    if not isinstance(node.get("enum", [0]), list) or node.get("enum") == []:
        raise InvalidRequest.field(path, f"has {_shown(node['enum'])} as enum")
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        raise InvalidRequest.field(path, f"has {_shown(required)} as required")
    for name in _NUMBERS:
        if not isinstance(node.get(name, 0), int | float):
            raise InvalidRequest.field(path, f"has {_shown(node[name])} as {name}")
    patterns = [
        *node.get("patternProperties", ()),
        *([node["pattern"]] if "pattern" in node else []),
    ]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidRequest.field(path, f"has {_shown(pattern)} as pattern")
        expressions.check(pattern, f"{path}: pattern")
    _check_pairs(node, types, path)
    return max(_count(node, name, path) for name in _COUNTS)


def _check_pairs(node: Mapping[str, Any], types: list[str], path: str) -> None:
    """Refuse what nothing can satisfy."""
    for least, most in _PAIRS:
        if least in node and most in node and node[least] > node[most]:
            raise InvalidRequest.field(path, f"has {least} above {most}")
    whole = all(float(node.get(name, 0)).is_integer() for name in _NUMBERS)
    if types == ["integer"] and not whole:
        raise InvalidRequest.field(path, "bounds an integer by what is none")
    names = node.get("propertyNames")
    if names is not None and (
        not isinstance(names, dict) or names.get("type", "string") != "string"
    ):
        raise InvalidRequest.field(path, "has propertyNames that are no schema of texts")
    known = len(node.get("properties", ()))
    if node.get("minProperties", 0) > known and not node.get("additionalProperties"):
        raise InvalidRequest.field(path, "asks for more properties than it allows")


def _count(node: Mapping[str, Any], name: str, path: str) -> int:
    value = node.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidRequest.field(path, f"has {_shown(value)} as {name}")
    return value


def _check_reference(reference: Any, schema: Mapping[str, Any], path: str) -> None:
    """A reference within the schema that leads somewhere."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        raise InvalidRequest.field(path, "refers to another document, which is never fetched")
    found: Any = schema
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            raise InvalidRequest.field(path, f"refers to {_shown(reference)}, which is not there")
        found = found[name]
    if not isinstance(found, dict | bool):
        raise InvalidRequest.field(path, f"refers to {_shown(reference)}, which is no schema")


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
