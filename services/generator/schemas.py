"""JSON Schemas as constraints: read by structure, refused where no engine follows them. Pure."""

import json
from collections.abc import Iterator, Mapping, Set
from typing import Any

from services.generator import expressions
from services.runtime.errors import InvalidRequest

MAX_DEPTH = 24
MAX_NODES = 2000
HEAVY = 4
"""What a character of a text and a property cost, against one for the place of an expression."""
LARGEST = 10**15
"""Numbers beyond it are not the same in all engines."""
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
    nodes = list(_schemas(schema, path))
    positions = 0
    for node in nodes:
        positions += _check_node(node, path)
        if positions > expressions.MAX_POSITIONS:
            most = expressions.MAX_POSITIONS
            said = f"is too large: its lengths, counts and patterns add up to over {most}"
            raise InvalidRequest.field(path, said)
    known = {id(node) for node in nodes}
    for node in nodes:
        if "$ref" in node:
            _check_reference(node["$ref"], schema, known, path)
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
        for name in (name for name in _MAPS if name in node):
            if not isinstance(node[name], dict) or False in node[name].values():
                raise InvalidRequest.field(path, f"has {_shown(node[name])} as {name}")
            pending += node[name].values()
        for name in (name for name in _LISTS if name in node):
            if not isinstance(node[name], list) or not node[name] or False in node[name]:
                raise InvalidRequest.field(path, f"has {_shown(node[name])} as {name}")
            if name == "prefixItems" and True in node[name]:
                raise InvalidRequest.field(path, "has true in prefixItems")
            pending += node[name]
        pending += [node[name] for name in _SINGLE if name in node]
        yield node


def _check_node(node: Mapping[str, Any], path: str) -> int:
    """Refuse what is malformed in one schema; the positions that it costs by itself."""
    given = node.get("type", "string")
    types = given if isinstance(given, list) else [given]
    if not types or not all(isinstance(one, str) and one in TYPES for one in types):
        raise InvalidRequest.field(path, f"has {_shown(given)} as type")
    if "enum" in node and not (isinstance(node["enum"], list) and node["enum"]):
        raise InvalidRequest.field(path, f"has {_shown(node['enum'])} as enum")
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        raise InvalidRequest.field(path, f"has {_shown(required)} as required")
    for name in (name for name in (*_COUNTS, *_NUMBERS) if name in node):
        _check_number(name, node[name], path)
    _check_satisfiable(node, types, path)
    return _cost(node, path)


def _check_number(name: str, value: Any, path: str) -> None:
    counted = name in _COUNTS
    right = isinstance(value, int if counted else int | float) and not isinstance(value, bool)
    if not right or abs(value) > LARGEST or (counted and value < 0):
        raise InvalidRequest.field(path, f"has {_shown(value)} as {name}")


def _check_satisfiable(node: Mapping[str, Any], types: list[str], path: str) -> None:
    """Refuse what nothing can satisfy."""
    for least, most in _PAIRS:
        if least in node and most in node and node[least] > node[most]:
            raise InvalidRequest.field(path, f"has {least} above {most}")
    whole = all(float(node.get(name, 0)).is_integer() for name in _NUMBERS)
    if types == ["integer"] and not whole:
        raise InvalidRequest.field(path, "bounds an integer by what is none")
    names = node.get("propertyNames", {})
    if not isinstance(names, dict) or names.get("type", "string") != "string":
        raise InvalidRequest.field(path, "has propertyNames that are no schema of texts")
    known = len(node.get("properties", ()))
    if node.get("minProperties", 0) > known and not node.get("additionalProperties"):
        raise InvalidRequest.field(path, "asks for more properties than it names: none are added")


def _cost(node: Mapping[str, Any], path: str) -> int:
    """What its counts and its expressions cost, written out."""
    positions: int = sum(
        node.get(name, 0) * (1 if "Length" not in name else HEAVY) for name in _COUNTS
    )
    positions += HEAVY * len(node.get("properties", ()))
    patterns = [*node.get("patternProperties", ())]
    patterns += [node["pattern"]] if "pattern" in node else []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidRequest.field(path, f"has {_shown(pattern)} as pattern")
        positions += expressions.check(pattern, f"{path}: pattern")
    return positions


def _check_reference(reference: Any, schema: Mapping[str, Any], known: Set[int], path: str) -> None:
    """A reference to a schema within the schema."""
    if not isinstance(reference, str) or (reference != "#" and not reference.startswith("#/")):
        raise InvalidRequest.field(path, "refers to another document, which is never fetched")
    found: Any = schema
    for part in reference.split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        try:
            found = found[int(name)] if isinstance(found, list) else found[name]
        except (LookupError, TypeError, ValueError):
            said = f"refers to {_shown(reference)}, which is not there"
            raise InvalidRequest.field(path, said) from None
    if id(found) not in known:
        raise InvalidRequest.field(path, f"refers to {_shown(reference)}, which is no schema")


def _shown(value: Any) -> str:
    return json.dumps(value)[:80]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
