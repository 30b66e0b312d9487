"""The paths of the Open Inference Protocol: what each does, needs and is documented as."""

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.contract import Method
from gateway.dialect import Exchange, Operation
from gateway.documented import OBJECT, array
from gateway.oip import documented, infer, routes
from gateway.oip.generate import GENERATE, GenerateRequest, generate, generate_stream

Json = dict[str, Any]


def _both(
    verb: str, path: str, method: Method, serve: Callable[[Exchange], Awaitable[None]], doc: Json
) -> tuple[Operation, Operation]:
    """An operation on a model, and on one of its versions."""
    versioned = {**doc, "operationId": f"{doc['operationId']}Version"}
    whole = f"/v2/models/{{model}}{path}"
    of_version = f"/v2/models/{{model}}/versions/{{version}}{path}"
    return (
        Operation(verb, whole, method, serve, doc),
        Operation(verb, of_version, method, serve, versioned),
    )


_INFER_EXAMPLE = {
    "inputs": [
        {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["A wonderful film."]}
    ]
}
_GENERATE_EXAMPLE = {"text_input": "Once upon a time", "parameters": {"max_tokens": 24}}
OPERATIONS = (
    Operation(
        "GET",
        "/v2",
        routes.SERVER,
        routes.server,
        documented.operation("Server", "Names the server", documented.SERVER),
    ),
    Operation(
        "GET",
        "/v2/health/live",
        routes.LIVE,
        routes.live,
        documented.operation("Live", "Says that it lives", documented.STATE),
    ),
    Operation(
        "GET",
        "/v2/health/ready",
        routes.READY,
        routes.ready,
        documented.operation("Ready", "Says it serves", documented.STATE),
    ),
    # Before the models: one cannot be called so where statistics are asked for.
    Operation(
        "GET",
        "/v2/models/stats",
        routes.STATISTICS,
        routes.statistics,
        documented.operation("AllStatistics", "Counts what was inferred", OBJECT),
    ),
    *_both(
        "GET",
        "",
        routes.MODEL,
        routes.model,
        documented.operation("Model", "Names a model's tensors", documented.METADATA),
    ),
    *_both(
        "GET",
        "/ready",
        routes.MODEL_READY,
        routes.model_ready,
        documented.operation("ModelReady", "Says whether a model serves", documented.STATE),
    ),
    *_both(
        "GET",
        "/config",
        routes.CONFIG,
        routes.config,
        documented.operation("Config", "Says how a model runs", OBJECT),
    ),
    *_both(
        "GET",
        "/stats",
        routes.STATISTICS,
        routes.statistics,
        documented.operation("Statistics", "Counts what a model inferred", OBJECT),
    ),
    *_both(
        "POST",
        "/infer",
        routes.INFER,
        routes.infer_,
        documented.operation(
            *(
                "Infer",
                "Runs a model on tensors",
                documented.ANSWER,
                infer.InferRequest,
                _INFER_EXAMPLE,
            ),
            {"application/octet-stream": documented.BYTES},
        ),
    ),
    *_both(
        "POST",
        "/generate",
        GENERATE,
        generate,
        documented.operation(
            *(
                "Generate",
                "Continues a text",
                documented.GENERATED,
                GenerateRequest,
                _GENERATE_EXAMPLE,
            )
        ),
    ),
    *_both(
        "POST",
        "/generate_stream",
        GENERATE,
        generate_stream,
        documented.operation(
            "GenerateStream",
            "Continues a text, piece by piece",
            documented.GENERATED,
            GenerateRequest,
            _GENERATE_EXAMPLE,
            {"text/event-stream": documented.EVENTS},
        ),
    ),
    Operation(
        "POST",
        "/v2/repository/index",
        routes.INDEX,
        routes.index,
        documented.operation(
            "Index", "Lists every version here", array(OBJECT), documented.IndexRequest
        ),
    ),
    Operation(
        "POST",
        "/v2/repository/models/{model}/load",
        routes.LOAD,
        routes.load,
        documented.operation("Load", "Loads a model", OBJECT, documented.RepositoryRequest),
    ),
    Operation(
        "POST",
        "/v2/repository/models/{model}/unload",
        routes.UNLOAD,
        routes.unload,
        documented.operation("Unload", "Unloads a model", OBJECT, documented.RepositoryRequest),
    ),
)
