"""The paths of the simple routes: what each does, needs and is documented as."""

from typing import Any

from gateway.dialect import Operation
from gateway.documented import (
    OBJECT,
    array,
    boolean,
    described,
    integer,
    nullable,
    number,
    schema_of,
    string,
)
from gateway.errors import Answer
from gateway.simple import generate, models, predict
from gateway.simple.requests import GenerateRequest, InputsRequest, TextRequest, TextsRequest

Json = dict[str, Any]
_MODEL = described(
    {"name": string(), "version": integer(), "loaded": boolean(), "device": string()}
)
_PREDICTION = described(
    {
        "text": string(),
        "prediction": nullable(string()),
        "confidence": number(),
        "probabilities": {"type": "object", "additionalProperties": number()},
    }
)
_PREDICTIONS = {
    "oneOf": [
        described(
            {
                "predictions": array(_PREDICTION),
                "model_name": string(),
                "inference_time_ms": number(),
            }
        ),
        described(
            {
                "prediction": nullable(string()),
                "confidence": number(),
                "request_id": string(),
            },
            optional=("request_id",),
        ),
        described(
            {
                "predictions": array(nullable(string())),
                "probabilities": array(array(number())),
                "latency_ms": number(),
            },
            optional=("probabilities",),
        ),
    ]
}
_GENERATED = described({"text": string(), "finish_reason": string(), "tokens_generated": integer()})
_HEALTH = described(
    {
        "status": {"enum": ["healthy", "unhealthy"]},
        "models_loaded": array(string()),
        "device": nullable(string()),
    }
)


def _operation(name: str, summary: str, answer: Json, **more: Any) -> Json:
    detail = described({"detail": string(), "error": OBJECT})
    return {
        "operationId": f"Simple_{name}",
        "tags": ["Simple"],
        "summary": summary,
        "description": f"{summary}.",
        "responses": {
            "200": {"description": "OK", "content": {"application/json": {"schema": answer}}},
            "default": {
                "description": "The call failed; `detail` is the text of the error.",
                "content": {"application/json": {"schema": detail}},
            },
        },
        **more,
    }


def _body(schema: Json, example: Json) -> Json:
    content = {"application/json": {"schema": schema, "example": example}}
    return {"required": True, "content": content}


_PREDICT = _operation(
    "Predict",
    "Classifies texts or rows of numbers",
    _PREDICTIONS,
    requestBody=_body(
        {"oneOf": [schema_of(kind) for kind in (TextsRequest, TextRequest, InputsRequest)]},
        {"texts": ["A wonderful film."], "model_name": "sentiment"},
    ),
)
_GENERATE = _operation(
    "Generate",
    "Continues a prompt",
    _GENERATED,
    requestBody=_body(schema_of(GenerateRequest), {"prompt": "Once upon a time", "max_tokens": 24}),
)
_GENERATE["responses"]["200"]["content"]["text/plain"] = {"schema": string()}
_UNHEALTHY = _operation("Health", "Says whether the services answer", _HEALTH)
_UNHEALTHY["responses"]["503"] = {
    "description": "Not every service answers, or this one is shutting down.",
    "content": {"application/json": {"schema": {"anyOf": [_HEALTH, OBJECT]}}},
}
_UNHEALTHY["security"] = []

OPERATIONS = (
    Operation("POST", "/predict", predict.CLASSIFY, predict.predict, _PREDICT),
    Operation("POST", "/generate", generate.GENERATE, generate.generate, _GENERATE),
    Operation(
        "GET",
        "/models",
        models.LIST["classifier"],
        models.models,
        _operation("Models", "Lists the models of both services", array(_MODEL)),
    ),
    Operation(
        "POST",
        "/models/{name}/load",
        models.LOAD["classifier"],
        models.load,
        _operation("Load", "Loads a registered model, waiting until it serves", _MODEL),
    ),
    Operation(
        "DELETE",
        "/models/{name}",
        models.UNLOAD["classifier"],
        models.unload,
        _operation(
            "Unload",
            "Unloads a model until the next load or start; it stays in the registry",
            described({"name": string(), "loaded": {"const": False}}),
        ),
    ),
    Operation("GET", "/health", models.HEALTH["classifier"], models.health, _UNHEALTHY),
)


def error_shape(found: Answer, path: str) -> tuple[int, Json, dict[str, str]]:
    """Our own error, with the text where clients of such servers look for it."""
    return found.http, {"detail": found.body["error"]["message"], **found.body}, {}
