"""The OpenAI operations as the OpenAPI document has them. Serves nothing."""

from typing import Any

from gateway.documented import (
    OBJECT,
    array,
    described,
    events,
    integer,
    nullable,
    schema_of,
    string,
)
from gateway.openai.requests import ChatRequest, CompletionRequest

Json = dict[str, Any]
TAG = "OpenAI"
_ERROR = described(
    {
        "message": string(),
        "type": string(),
        "param": nullable(string()),
        "code": nullable(string()),
    }
)
_USAGE = described(
    {"prompt_tokens": integer(), "completion_tokens": integer(), "total_tokens": integer()},
    closed=False,
)
_MODEL = described(
    {"id": string(), "object": {"const": "model"}, "created": integer(), "owned_by": string()}
)


def _answer(kind: str) -> Json:
    return described(
        {
            "id": string(),
            "object": {"const": kind},
            "created": integer(),
            "model": string(),
            "system_fingerprint": string(),
            "choices": array(OBJECT),
            "usage": _USAGE,
        }
    )


def _operation(name: str, summary: str, answer: Json, **more: Any) -> Json:
    return {
        "operationId": f"OpenAI_{name}",
        "tags": [TAG],
        "summary": summary,
        "description": f"{summary}, as OpenAI's API has it.",
        "responses": {
            "200": {"description": "OK", "content": answer},
            "default": {
                "description": "An error as OpenAI's clients read it.",
                "content": {"application/json": {"schema": described({"error": _ERROR})}},
            },
        },
        **more,
    }


def _generating(name: str, summary: str, kind: str, request: Any, example: Json) -> Json:
    body = {"application/json": {"schema": schema_of(request), "example": example}}
    answer = {
        "application/json": {"schema": _answer(kind)},
        "text/event-stream": events({}),
    }
    return _operation(name, summary, answer, requestBody={"required": True, "content": body})


CHAT = _generating(
    "CreateChatCompletion",
    "Answers a chat",
    "chat.completion",
    ChatRequest,
    {"model": "smollm2", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 24},
)
TEXT = _generating(
    "CreateCompletion",
    "Continues a prompt",
    "text_completion",
    CompletionRequest,
    {"model": "smollm2", "prompt": "Once upon a time", "max_tokens": 24},
)
MODELS = _operation(
    "ListModels",
    "Lists the models that generate",
    {
        "application/json": {
            "schema": described({"object": {"const": "list"}, "data": array(_MODEL)})
        }
    },
)
MODEL = _operation("GetModel", "Reads one of them", {"application/json": {"schema": _MODEL}})
