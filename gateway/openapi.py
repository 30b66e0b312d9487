"""The OpenAPI 3.1 document, read off the same table that routes requests. Serves nothing."""

import re
from collections.abc import Iterable
from typing import Any

from gateway import comments, examples
from gateway.contract import Method
from gateway.dialect import Operation
from gateway.operations import PARAMETERS, PATTERNS, operation, order, path_of
from gateway.routing import RouteTable
from gateway.schemas import Schemas
from services.runtime.auth import SCOPES
from services.runtime.server import VERSION

Json = dict[str, Any]

INTRODUCTION = """\
Every method of the gRPC contract that has an HTTP annotation, read off the contract itself.

JSON is proto3 JSON: names in lowerCamelCase (the contract's own names are taken too), 64-bit \
integers as strings, bytes as base64. Answers hold every field without presence, also where its \
value is 0 or empty. Unknown fields are refused.

Streams come as Server-Sent Events, one message in each `data:`; a stream that fails ends with an \
`event: error`. Send `Accept: application/x-ndjson` for one JSON object a line instead.
"""

ERROR: Json = {
    "type": "object",
    "description": "Any failure. `reason` is stable and for machines, `message` is for people.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "status", "reason", "message", "details", "requestId"],
            "properties": {
                "code": {"type": "integer", "description": "The HTTP status."},
                "status": {"type": "string", "examples": ["RESOURCE_EXHAUSTED"]},
                "reason": {"type": "string", "examples": ["QUEUE_FULL"]},
                "message": {"type": "string"},
                "details": {
                    "type": "array",
                    "description": "google.rpc details: ErrorInfo, BadRequest, RetryInfo, ...",
                    "items": {
                        "type": "object",
                        "required": ["@type"],
                        "properties": {"@type": {"type": "string"}},
                        "additionalProperties": True,
                    },
                },
                "requestId": {"type": "string"},
            },
        }
    },
}


def document(table: RouteTable[Method], spoken: Iterable[Operation] = (), *, guarded: bool) -> Json:
    """The document of a table and of what is spoken besides; `guarded`: callers need a token."""
    texts = comments.read()
    schemas = Schemas(texts)
    paths: dict[str, Json] = {}
    tags: dict[str, str] = {}
    for route in sorted(table.routes, key=order):
        path = path_of(route)
        paths.setdefault(path, {})[route.http_method.lower()] = operation(schemas, texts, route)
        service = route.target.descriptor.containing_service
        tags[service.name] = texts.get(service.full_name, "")
    for one in spoken:
        paths.setdefault(one.path, {})[one.verb.lower()] = _spoken(one)
        tags.setdefault(one.doc["tags"][0], "")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gristmill",
            "version": VERSION,
            "description": INTRODUCTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": text} for name, text in tags.items()],
        "security": [{"bearer": []}] if guarded else [{}, {"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "parameters": PARAMETERS,
            "responses": {"Error": _error_response()},
            "schemas": {**dict(sorted(schemas.components.items())), "Error": ERROR},
        },
    }


def _spoken(one: Operation) -> Json:
    """An operation of a dialect, with what all of them have."""
    names = re.findall(r"{(\w+)}", one.path)
    own = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": PATTERNS.get(name, "^[^/]+$")},
            "example": examples.SEGMENTS.get(name, name),
        }
        for name in names
    ]
    return {
        **one.doc,
        "parameters": [
            *own,
            *one.doc.get("parameters", []),
            *({"$ref": f"#/components/parameters/{name}"} for name in PARAMETERS),
        ],
        "x-gristmill-method": one.method.path.lstrip("/"),
        "x-gristmill-scope": SCOPES.get(one.method.path, ""),
        "x-gristmill-example-path": examples.of_path(one.path),
    }


def _error_response() -> Json:
    return {
        "description": "The call failed.",
        "headers": {
            "x-request-id": {"schema": {"type": "string"}},
            "retry-after": {
                "description": "Seconds, with 429 and 503.",
                "schema": {"type": "integer"},
            },
        },
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
