"""The simple routes: predict, generate, models, health."""

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as classifier_pb
from gristmill.classifier.v1 import item_pb2, loaded_model_pb2, options_pb2
from gristmill.generator.v1 import generator_service_pb2 as generator_pb
from gristmill.generator.v1 import prompt_pb2, result_pb2, sampling_params_pb2
from gristmill.registry.v1 import signature_pb2

from gateway import contract, jsontree
from gateway.bodies import read_json_body
from gateway.contract import Method
from gateway.dialect import Exchange, parse
from gateway.errors import Answer, CallFailedError, reason_of
from gateway.openai.messages import model_ref
from gateway.simple.requests import GenerateRequest, InputsRequest, TextRequest, TextsRequest
from gateway.streams import Silence, paced
from services.runtime import standard
from services.runtime.errors import (
    MODEL_AMBIGUOUS,
    MODEL_NOT_FOUND,
    WRONG_TASK,
    InvalidRequest,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
)

Json = dict[str, Any]
CLASSIFY = contract.method("classifier", "Classify")
GENERATE = contract.method("generator", "GenerateStream")
SERVICES = ("classifier", "generator")
LIST = {name: contract.method(name, "ListLoadedModels") for name in SERVICES}
LOAD = {name: contract.method(name, "LoadModel") for name in SERVICES}
UNLOAD = {name: contract.method(name, "UnloadModel") for name in SERVICES}
HEALTH = {
    name: Method(
        None,
        name,
        f"/{standard.HEALTH}/List",
        standard.HealthListRequest,
        standard.HealthListResponse,
        repeatable=True,
    )
    for name in SERVICES
}
TEXT = signature_pb2.INPUT_KIND_TEXT
FEATURES = signature_pb2.INPUT_KIND_FLOAT_FEATURES
ALL = 10_000
_READY = loaded_model_pb2.LOAD_STATE_READY
_ABSENT = (WRONG_TASK, MODEL_NOT_FOUND)


def error_shape(found: Answer, path: str) -> tuple[int, Json, dict[str, str]]:
    """Our own error, with the text where clients of such servers look for it."""
    return found.http, {"detail": found.body["error"]["message"], **found.body}, {}


async def predict(exchange: Exchange) -> None:
    """POST /predict: texts, a text, or rows of numbers."""
    body = await read_json_body(exchange.headers, exchange.receive)
    depth = exchange.limits.max_json_depth
    tree = jsontree.parse(body.strip() or b"{}", depth)
    keys = tree.keys() if isinstance(tree, dict) else ()
    if "texts" in keys:
        await _predict_texts(exchange, parse(TextsRequest, body, depth))
    elif "text" in keys:
        await _predict_text(exchange, parse(TextRequest, body, depth))
    elif "inputs" in keys:
        await _predict_inputs(exchange, parse(InputsRequest, body, depth))
    else:
        raise InvalidRequest("send texts, or text, or inputs")


async def _predict_texts(exchange: Exchange, asked: TextsRequest) -> None:
    started = time.monotonic()
    model, found = await _classify(exchange, asked.model_name, TEXT, _texts(asked.texts))
    predictions = [
        {
            "text": text,
            **_best(one),
            "probabilities": {_name(label): label.score for label in one.labels},
        }
        for text, one in zip(asked.texts, found, strict=True)
    ]
    await exchange.reply(
        {
            "predictions": predictions,
            "model_name": model,
            "inference_time_ms": _ms_since(started),
        }
    )


async def _predict_text(exchange: Exchange, asked: TextRequest) -> None:
    _, (one,) = await _classify(exchange, asked.model_name, TEXT, _texts([asked.text]))
    given = {} if asked.request_id is None else {"request_id": asked.request_id}
    await exchange.reply({**_best(one), **given})


async def _predict_inputs(exchange: Exchange, asked: InputsRequest) -> None:
    started = time.monotonic()
    try:
        items = [
            item_pb2.Item(float_features=item_pb2.FloatFeatures(values=row)) for row in asked.inputs
        ]
    except (ValueError, OverflowError):
        raise InvalidRequest.field("inputs", "has a number that is no float") from None
    _, found = await _classify(exchange, asked.model_name, FEATURES, items)
    answer: Json = {"predictions": [_best(one)["prediction"] for one in found]}
    if asked.return_probabilities:
        answer["probabilities"] = [list(one.probabilities) for one in found]
    await exchange.reply({**answer, "latency_ms": _ms_since(started)})


def _texts(texts: Sequence[str]) -> list[item_pb2.Item]:
    try:
        return [item_pb2.Item(text=item_pb2.Text(text=text)) for text in texts]
    except (ValueError, UnicodeEncodeError):
        raise InvalidRequest.field("text", "has an unpaired surrogate") from None


async def _classify(
    exchange: Exchange, name: str, kind: int, items: Sequence[item_pb2.Item]
) -> tuple[str, list[Any]]:
    """The model that answered, and the classification of each item; the first error of one."""
    request = classifier_pb.ClassifyRequest(
        items=items, options=options_pb2.ClassifyOptions(top_k=ALL, return_probabilities=True)
    )
    if name:
        request.model.CopyFrom(model_ref(name))
    try:
        response = await exchange.ask(CLASSIFY, request)
    except CallFailedError as error:
        if name or reason_of(error.status) != MODEL_AMBIGUOUS:
            raise
        request.model.model = await _only_one(exchange, kind, error)
        response = await exchange.ask(CLASSIFY, request)
    for index, result in enumerate(response.results):
        if result.HasField("error"):
            status = result.error
            if len(items) > 1:
                status.message = f"item {index}: {status.message}"
            raise CallFailedError(status)
    return response.model, [result.classification for result in response.results]


async def _only_one(exchange: Exchange, kind: int, error: CallFailedError) -> str:
    """The only model that takes such an input; the error where several do, or none may know."""
    try:
        exchange.metadata = await exchange.admitted(LIST["classifier"])
    except (Unauthenticated, PermissionDenied):
        raise error from None
    response = await exchange.ask(LIST["classifier"], classifier_pb.ListLoadedModelsRequest())
    found: set[str] = {
        one.model
        for one in response.models
        if one.state == _READY and kind in one.signature.input_kinds
    }
    if len(found) != 1:
        raise error
    return found.pop()


def _name(label: Any) -> str:
    return label.label or str(label.index)


def _best(one: Any) -> Json:
    if not one.labels:
        return {"prediction": None, "confidence": 0.0}
    return {"prediction": _name(one.labels[0]), "confidence": one.labels[0].score}


def _ms_since(started: float) -> float:
    return round((time.monotonic() - started) * 1000, 3)


async def generate(exchange: Exchange) -> None:
    """POST /generate: the text at once, or as it comes."""
    asked = await exchange.json(GenerateRequest)
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    try:
        params = sampling_params_pb2.SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            stop=stop,
        )
        prompt = prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text=asked.prompt))
    except (ValueError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"a value is out of its range: {error}") from None
    request = generator_pb.GenerateStreamRequest(prompt=prompt, params=params)
    if asked.model_name:
        request.model.CopyFrom(model_ref(asked.model_name))
    if asked.stream:
        await _stream(exchange, request)
    else:
        await _whole(exchange, request)


async def _whole(exchange: Exchange, request: generator_pb.GenerateStreamRequest) -> None:
    call = await exchange.start(GENERATE, request)
    pieces: list[str] = []
    finished = generator_pb.Finished()
    while (event := await call.read()) is not grpc.aio.EOF:
        if event.HasField("delta"):
            pieces.append(event.delta.text)
        elif event.HasField("finished"):
            finished = event.finished
    cut = result_pb2.FINISH_REASON_LENGTH
    reason = "length" if any(one.finish_reason == cut for one in finished.choices) else "stop"
    await exchange.reply(
        {
            "text": "".join(pieces),
            "finish_reason": reason,
            "tokens_generated": finished.usage.completion_tokens,
        }
    )


async def _stream(exchange: Exchange, request: generator_pb.GenerateStreamRequest) -> None:
    """Plain text, whose end is the end. What fails on the way cuts the connection."""
    call = await exchange.start(GENERATE, request)
    media_type = "text/plain; charset=utf-8"
    events = paced(call.read, grpc.aio.EOF, exchange.limits.ping_interval_s)
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Silence) and event.HasField("delta"):
                await exchange.write(event.delta.text.encode(), media_type)
    if not exchange.begun:
        await exchange.write(b"", media_type)
    await exchange.end()


async def models(exchange: Exchange) -> None:
    """GET /models: of both services."""
    found = []
    for name in SERVICES:
        request = LIST[name].request()
        response = await exchange.ask(LIST[name], request)
        found += [_model(one) for one in response.models]
    await exchange.reply(found)


def _model(one: Any) -> Json:
    return {
        "name": one.model,
        "version": one.version,
        "loaded": one.state == _READY,
        "device": one.device,
    }


async def load(exchange: Exchange) -> None:
    """POST /models/{name}/load: by whichever service the model is for."""
    response = await _wherever(exchange, LOAD)
    await exchange.reply(_model(response.model))


async def unload(exchange: Exchange) -> None:
    """DELETE /models/{name}: it is unloaded, and stays in the registry."""
    await _wherever(exchange, UNLOAD)
    await exchange.reply({"name": exchange.variables["name"], "loaded": False})


async def _wherever(exchange: Exchange, methods: dict[str, Method]) -> Any:
    ref = model_ref(exchange.variables["name"])
    first, second = (methods[name] for name in SERVICES)
    try:
        return await exchange.ask(first, first.request(model=ref))
    except CallFailedError as error:
        if reason_of(error.status) not in _ABSENT:
            raise
    return await exchange.ask(second, second.request(model=ref))


async def health(exchange: Exchange) -> None:
    """GET /health: open to all; the device only for those who may list models."""
    healthy, serving = True, set()
    for name in SERVICES:
        try:
            response = await exchange.ask(HEALTH[name], HEALTH[name].request())
        except CallFailedError:
            healthy = False
            continue
        states = {key: one.status for key, one in response.statuses.items()}
        up = standard.HealthCheckResponse.SERVING
        healthy = healthy and states.get("") == up
        serving |= {
            key.removeprefix("models/")
            for key, state in states.items()
            if key.startswith("models/") and key.count("/") == 1 and state == up
        }
    body = {
        "status": "healthy" if healthy else "unhealthy",
        "models_loaded": sorted(serving),
        "device": await _devices(exchange),
    }
    await exchange.reply(body, 200 if healthy else 503)


async def _devices(exchange: Exchange) -> str | None:
    """What models run on here; None for who may not know, and where nobody says."""
    found: set[str] = set()
    try:
        exchange.metadata = await exchange.admitted(LIST["classifier"])
        for name in SERVICES:
            response = await exchange.ask(LIST[name], LIST[name].request())
            found |= {one.device for one in response.models if one.state == _READY}
    except (Unauthenticated, PermissionDenied, QuotaExceeded, CallFailedError):
        return None
    return ", ".join(sorted(found)) or None
