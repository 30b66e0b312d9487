"""JSON schemas for what is not a message of the contract: small parts to put them together from."""

from typing import Any

from pydantic import BaseModel

Json = dict[str, Any]
OBJECT: Json = {"type": "object"}


def string(**more: Any) -> Json:
    """A text."""
    return {"type": "string", **more}


def integer(**more: Any) -> Json:
    """A whole number."""
    return {"type": "integer", **more}


def number(**more: Any) -> Json:
    """Any number."""
    return {"type": "number", **more}


def boolean() -> Json:
    """True or false."""
    return {"type": "boolean"}


def array(items: Json) -> Json:
    """Several of the same."""
    return {"type": "array", "items": items}


def nullable(schema: Json) -> Json:
    """The same, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def described(
    fields: Json, *, optional: tuple[str, ...] = (), closed: bool = True, about: str = ""
) -> Json:
    """An object of these fields."""
    found: Json = {
        "type": "object",
        "properties": fields,
        "required": [name for name in fields if name not in optional],
        "additionalProperties": not closed,
    }
    return {**found, "description": about} if about else found


def events(item: Json) -> Json:
    """Server-Sent Events with JSON in their data."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": item}
    return {"itemSchema": described({"data": data}, closed=False)}


def lines(item: Json) -> Json:
    """One JSON value a line."""
    return {"itemSchema": item}


def schema_of(kind: type[BaseModel]) -> Json:
    """The schema of a request that pydantic reads, whole: it refers to nothing outside."""
    found = kind.model_json_schema()
    parts = found.pop("$defs", {})
    whole: Json = _inlined(found, parts)
    return whole


def _inlined(node: Any, parts: Json) -> Any:
    if isinstance(node, list):
        return [_inlined(one, parts) for one in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        return _inlined(parts[node["$ref"].rsplit("/", 1)[1]], parts)
    return {key: _inlined(value, parts) for key, value in node.items() if key != "title"}
