"""The document is true: examples pass the bounds, schemas and routes are the contract's."""

import importlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from gateway import comments, openapi
from gateway.app import table_of
from gateway.binding import build
from gateway.operations import path_of
from gateway.routing import Match
from services.runtime.bounds import Bounds

TABLE = table_of()
DOCUMENT = openapi.document(TABLE, guarded=False)
SCHEMAS = DOCUMENT["components"]["schemas"]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for http_method, operation in methods.items():
            yield http_method.upper(), path, operation


def test_every_route_is_an_operation_and_the_other_way_round() -> None:
    routed = {(route.http_method, path_of(route)) for route in TABLE.routes}
    assert routed == {(method, path) for method, path, _ in operations()}
    assert len(routed) == len(TABLE.routes)
    names = [operation["operationId"] for *_, operation in operations()]
    assert len(set(names)) == len(names)


def test_path_parameters_are_those_of_the_path() -> None:
    for _, path, operation in operations():
        declared = [one["name"] for one in operation["parameters"] if one.get("in") == "path"]
        assert declared == re.findall(r"\{(\w+)\}", path)


@pytest.mark.parametrize(
    ("http_method", "path", "operation"),
    list(operations()),
    ids=[operation["operationId"] for *_, operation in operations()],
)
def test_the_example_is_a_valid_request(
    http_method: str, path: str, operation: dict[str, Any]
) -> None:
    match: Match[Any] | None = TABLE.match(http_method, operation["x-gristmill-example-path"])
    assert match is not None
    assert match.route is not None
    body = b""
    if "requestBody" in operation:
        body = json.dumps(
            operation["requestBody"]["content"]["application/json"]["example"]
        ).encode()
    query = [
        f"{one['name']}={value}"
        for one in operation["parameters"]
        if one.get("in") == "query" and "example" in one
        for value in (one["example"] if isinstance(one["example"], list) else [one["example"]])
    ]
    if match.route.target.client_streaming:
        return
    request = build(match.route, match.variables, "&".join(query).encode(), body, 100)
    Bounds().check(request)
    assert path_of(match.route) == path


def test_every_reference_is_there_and_nothing_is_left_over() -> None:
    text = json.dumps(DOCUMENT)
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', text))
    assert referred == set(SCHEMAS)
    assert "Error" in referred


def test_comments_are_the_descriptions() -> None:
    undescribed = [name for name, schema in SCHEMAS.items() if not schema.get("description")]
    assert [name for name in undescribed if not name.startswith("google.")] == []
    for *_, operation in operations():
        assert operation["summary"], operation["operationId"]
        assert not operation["summary"].endswith(".")
    assert SCHEMAS["classifier.v1.Item"]["description"] == "One thing to classify."


def test_bounds_are_in_the_schemas() -> None:
    items = SCHEMAS["classifier.v1.ClassifyRequest"]["properties"]["items"]
    assert (items["minItems"], items["maxItems"]) == (1, 1024)
    assert SCHEMAS["classifier.v1.ClassifyRequest"]["required"] == ["items"]
    params = SCHEMAS["generator.v1.SamplingParams"]["properties"]
    assert params["topP"]["exclusiveMinimum"] == 0
    assert params["topP"]["maximum"] == 1
    assert params["logitBias"]["maxProperties"] == 300
    assert params["logitBias"]["additionalProperties"]["minimum"] == -100
    assert params["seed"] == {
        "type": "string",
        "pattern": "^[0-9]{1,20}$",
        "format": "uint64",
        "description": params["seed"]["description"],
    }
    pattern = SCHEMAS["registry.v1.ModelRef"]["properties"]["model"]["pattern"]
    assert re.search(pattern, "sentiment")
    assert re.search(pattern, "")
    assert not re.search(pattern, "senti ment")


def test_choices_are_exclusive_and_required_where_the_contract_says_so() -> None:
    (choice,) = SCHEMAS["classifier.v1.Item"]["allOf"]
    assert len(choice["oneOf"]) == 5
    (choice,) = SCHEMAS["registry.v1.ModelRef"]["allOf"]
    assert len(choice["oneOf"]) == 3
    assert choice["oneOf"][-1] == {"not": {"anyOf": choice["oneOf"][:-1]}}
    assert "allOf" not in SCHEMAS["generator.v1.SamplingParams"]


def test_what_the_path_gives_is_not_asked_for_in_the_body() -> None:
    body = DOCUMENT["paths"]["/registry/v1/models/{model}/aliases/{alias}"]["put"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert "name" not in schema["properties"]
    assert schema["required"] == ["version"]


def test_tokens_are_asked_for_where_they_are_needed() -> None:
    assert openapi.document(TABLE, guarded=True)["security"] == [{"bearer": []}]
    assert {} in DOCUMENT["security"]


def test_the_comments_are_those_of_the_contract_in_use() -> None:
    """Fails when protos changed and `make generate` did not write contract.binpb."""
    stored = descriptor_pb2.FileDescriptorSet.FromString(comments.CONTRACT.read_bytes())
    assert len(stored.file) > 10
    for file in stored.file:
        file.ClearField("source_code_info")
        _clear_json_names(file)
        used = descriptor_pb2.FileDescriptorProto()
        module = file.name.removesuffix(".proto").replace("/", ".") + "_pb2"
        importlib.import_module(module).DESCRIPTOR.CopyToProto(used)
        assert used == file, file.name
    assert comments.CONTRACT.stat().st_size < 300_000


def _clear_json_names(owner: Any) -> None:
    """The names that protoc writes and the code it generates leaves out."""
    for field in (*getattr(owner, "field", ()), *owner.extension):
        field.ClearField("json_name")
    for message in (*getattr(owner, "message_type", ()), *getattr(owner, "nested_type", ())):
        _clear_json_names(message)
