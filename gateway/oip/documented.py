"""The operations of the Open Inference Protocol as the OpenAPI document has them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, StrictBool, StrictInt, StrictStr

from gateway.documented import OBJECT, array, boolean, described, events, integer, schema_of, string

Json = dict[str, Any]
TAG = "Open Inference Protocol"


class IndexRequest(BaseModel):
    """POST /v2/repository/index."""

    model_config = ConfigDict(extra="forbid")
    ready: StrictBool = False


class RepositoryRequest(BaseModel):
    """POST /v2/repository/models/{model}/load and unload."""

    model_config = ConfigDict(extra="forbid")
    parameters: dict[str, StrictBool | StrictInt | StrictStr] = {}


TENSOR = described({"name": string(), "datatype": string(), "shape": array(integer())})
METADATA = described(
    {
        "name": string(),
        "versions": array(string()),
        "platform": string(),
        "inputs": array(TENSOR),
        "outputs": array(TENSOR),
    }
)
SERVER = described({"name": string(), "version": string(), "extensions": array(string())})
ANSWER = described(
    {
        "model_name": string(),
        "model_version": string(),
        "id": string(),
        "parameters": OBJECT,
        "outputs": array(
            described(
                {
                    "name": string(),
                    "datatype": string(),
                    "shape": array(integer()),
                    "parameters": OBJECT,
                    "data": array({}),
                },
                optional=("parameters", "data"),
            )
        ),
    },
    optional=("id", "parameters"),
)
GENERATED = described(
    {
        "id": string(),
        "model_name": string(),
        "model_version": string(),
        "text_output": string(),
        "details": OBJECT,
    },
    optional=("id", "details"),
)
STATE = {"type": "object", "additionalProperties": boolean()}
BYTES = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
EVENTS = events({"anyOf": [GENERATED, described({"error": string()})]})


def operation(
    name: str,
    summary: str,
    answer: Json,
    request: type[BaseModel] | None = None,
    example: Any = None,
    media: Json | None = None,
) -> Json:
    """One operation; `media` are further kinds of its answer."""
    ok = {"application/json": {"schema": answer}, **(media or {})}
    refused = {"application/json": {"schema": described({"error": string()})}}
    built: Json = {
        "operationId": f"OpenInference_{name}",
        "tags": [TAG],
        "summary": summary,
        "description": f"{summary}, as the Open Inference Protocol has it.",
        "responses": {
            "200": {"description": "OK", "content": ok},
            "default": {"description": "An error, as a text.", "content": refused},
        },
    }
    if answer is STATE:
        either = {"anyOf": [STATE, described({"error": string()})]}
        built["responses"]["503"] = {
            "description": "It is not.",
            "content": {"application/json": {"schema": either}},
        }
    if request is not None:
        body = {"schema": schema_of(request), "example": example or {}}
        built["requestBody"] = {
            "required": example is not None,
            "content": {"application/json": body},
        }
    return built
