"""One operation of the OpenAPI document: parameters, body and answers. Serves nothing."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway import examples
from gateway.comments import Comments, summary
from gateway.contract import Method
from gateway.descriptors import is_map, message_of
from gateway.documented import events, lines
from gateway.query import LEAVES
from gateway.routing import Route
from gateway.schemas import Schemas, needed
from services.runtime.auth import SCOPES

Json = dict[str, Any]
MAX_QUERY_DEPTH = 3
# What the services take for a name, as far as a pattern can say it.
PATTERNS = {
    "model": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    "name": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
    "version": "^[1-9][0-9]{0,8}$",
    "alias": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
}
PARAMETERS: Json = {
    "Timeout": {
        "name": "x-gristmill-timeout-ms",
        "in": "header",
        "description": "Time that the caller gives, in milliseconds. Absent: the server's default.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 86400000},
    },
    "RequestId": {
        "name": "x-request-id",
        "in": "header",
        "description": "An id for this request in every log: 1 to 128 letters, digits and "
        ". _ : / -. Absent, or anything else: the gateway makes one.",
        "schema": {"type": "string"},
    },
}


def path_of(route: Route[Method]) -> str:
    """The path as OpenAPI writes it: a name for every `*`, taken from the segment before it."""
    built: list[str] = []
    for segment in route.template.segments:
        wild = segment in ("*", "**")
        built.append("{" + _singular(built[-1]) + "}" if wild else segment)
    verb = f":{route.template.verb}" if route.template.verb else ""
    return "/" + "/".join(built) + verb


def _singular(segment: str) -> str:
    if segment.endswith("ses"):
        return segment[:-2]
    return segment.removesuffix("s")


def order(route: Route[Method]) -> tuple[bool, str, int]:
    """Sorts as the contract does: by service, our own first, then as they stand in it."""
    descriptor = route.target.descriptor
    service = descriptor.containing_service.full_name
    return service.startswith("google."), service, descriptor.index


def operation(schemas: Schemas, texts: Comments, route: Route[Method]) -> Json:
    method = route.target
    descriptor = method.descriptor
    text = texts.get(descriptor.full_name, "")
    built: Json = {
        "operationId": f"{descriptor.containing_service.name}_{descriptor.name}",
        "tags": [descriptor.containing_service.name],
        "summary": summary(text),
        "description": text,
        "parameters": [*_path_parameters(route), *_query(schemas, route), *_headers()],
        "responses": _responses(schemas, method),
        "x-gristmill-method": method.path.lstrip("/"),
        "x-gristmill-scope": SCOPES.get(method.path, ""),
        "x-gristmill-example-path": examples.of_path(path_of(route)),
    }
    if route.body:
        built["requestBody"] = _body(schemas, route)
    if method.client_streaming or method.server_streaming:
        built["x-gristmill-stream"] = "bidi" if method.client_streaming else "server"
    return built


def _headers() -> list[Json]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in PARAMETERS]


def _path_parameters(route: Route[Method]) -> list[Json]:
    found = []
    for part in path_of(route).split("/"):
        if part.startswith("{"):
            name = part[1:].partition("}")[0]
            found.append(
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "pattern": PATTERNS.get(name, "^[^/:]+$")},
                    "example": examples.SEGMENTS.get(name, name),
                }
            )
    return found


def _bound(route: Route[Method]) -> set[str]:
    """Field paths that the path gives."""
    return {variable.field for variable in route.template.variables}


def _body(schemas: Schemas, route: Route[Method]) -> Json:
    request: Descriptor = route.target.descriptor.input_type
    if route.body == "*":
        descriptor, bound = request, _bound(route)
    else:
        descriptor = message_of(request.fields_by_name[route.body])
        prefix = route.body + "."
        bound = {one.removeprefix(prefix) for one in _bound(route) if one.startswith(prefix)}
    without = tuple(sorted(bound))
    schema = schemas.message(descriptor, without) if bound else schemas.reference(descriptor)
    method = route.target.descriptor.full_name
    example = examples.BODIES.get(method) or examples.of_message(schemas, descriptor, without)
    return {
        "required": bool(example),
        "content": {"application/json": {"schema": schema, "example": example}},
    }


def _query(schemas: Schemas, route: Route[Method]) -> list[Json]:
    if route.body == "*" or route.target.client_streaming:
        return []
    request: Descriptor = route.target.descriptor.input_type
    found: list[Json] = []
    for field in request.fields:
        if field.name != route.body:
            _query_field(schemas, field, [], found, _bound(route))
    return found


def _query_field(
    schemas: Schemas,
    field: FieldDescriptor,
    above: list[FieldDescriptor],
    found: list[Json],
    bound: set[str],
) -> None:
    """Add the parameters that fill a field: itself, or the fields of its message."""
    fields = [*above, field]
    if ".".join(one.name for one in fields) in bound or is_map(field):
        return
    if field.message_type is None or field.message_type.full_name in LEAVES:
        schema = schemas.field(field)
        parameter: Json = {
            "name": ".".join(one.json_name for one in fields),
            "in": "query",
            "schema": schema,
            "description": schema.get("description", ""),
        }
        if all(needed(one) for one in fields):
            parameter["required"] = True
        if field.full_name in examples.VALUES:
            parameter["example"] = examples.VALUES[field.full_name]
        found.append(parameter)
    elif not field.is_repeated and len(fields) < MAX_QUERY_DEPTH:
        for nested in message_of(field).fields:
            _query_field(schemas, nested, fields, found, bound)


def _responses(schemas: Schemas, method: Method) -> Json:
    error = {"$ref": "#/components/responses/Error"}
    if method.client_streaming:
        message = schemas.reference(method.descriptor.output_type)
        socket = {
            "description": "A WebSocket; each text message is one message, as JSON.",
            "x-gristmill-item": message,
        }
        return {"101": socket, "426": error, "default": error}
    item = schemas.reference(method.descriptor.output_type)
    if not method.server_streaming:
        content: Json = {"application/json": {"schema": item}}
        return {"200": {"description": "OK", "content": content}, "default": error}
    content = {
        "text/event-stream": {**events(item), "x-gristmill-item": item},
        "application/x-ndjson": {**lines(item), "x-gristmill-item": item},
    }
    return {
        "200": {"description": "A stream; each message is one item.", "content": content},
        "default": error,
    }
