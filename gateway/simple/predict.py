"""POST /predict: texts, a text, or rows of numbers, to a classifier."""

import time
from collections.abc import Sequence
from typing import Any

from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import item_pb2, loaded_model_pb2, options_pb2
from gristmill.registry.v1 import signature_pb2

from gateway import contract
from gateway.dialect import Exchange, validated
from gateway.errors import CallFailedError, reason_of
from gateway.modelnames import model_ref
from gateway.simple.requests import InputsRequest, TextRequest, TextsRequest
from services.runtime.errors import (
    MODEL_AMBIGUOUS,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
)

Json = dict[str, Any]
CLASSIFY = contract.method("classifier", "Classify")
_LIST = contract.method("classifier", "ListLoadedModels")
TEXT = signature_pb2.INPUT_KIND_TEXT
FEATURES = signature_pb2.INPUT_KIND_FLOAT_FEATURES
ALL = 10_000


async def predict(exchange: Exchange) -> None:
    """POST /predict: texts, a text, or rows of numbers."""
    tree = await exchange.tree()
    keys = tree.keys() if isinstance(tree, dict) else ()
    if "texts" in keys:
        await _predict_texts(exchange, validated(TextsRequest, tree))
    elif "text" in keys:
        await _predict_text(exchange, validated(TextRequest, tree))
    elif "inputs" in keys:
        await _predict_inputs(exchange, validated(InputsRequest, tree))
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
    request = pb.ClassifyRequest(
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
        exchange.metadata = await exchange.admitted(_LIST)
    except (Unauthenticated, PermissionDenied):
        raise error from None
    response = await exchange.ask(_LIST, pb.ListLoadedModelsRequest())
    found: set[str] = {
        one.model
        for one in response.models
        if one.state == loaded_model_pb2.LOAD_STATE_READY and kind in one.signature.input_kinds
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
