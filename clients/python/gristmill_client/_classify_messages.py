"""Builds classification requests and reads their answers; makes no call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import item_pb2, options_pb2, result_pb2

from gristmill_client import _errors
from gristmill_client._messages import model_ref, reject_unknown
from gristmill_client.prediction import (
    ClassifyOptions,
    ClassifyTimings,
    Item,
    Items,
    LabelScore,
    Prediction,
)
from gristmill_client.tensor import Array, Tensor, is_tensor

R = TypeVar("R", pb.ClassifyRequest, pb.ClassifyStreamRequest)
_TRUNCATION = {
    None: options_pb2.TRUNCATION_UNSPECIFIED,
    "end": options_pb2.TRUNCATION_END,
    "refuse": options_pb2.TRUNCATION_REFUSE,
}


def request(kind: type[R], items: Items, model: str | None, options: ClassifyOptions) -> R:
    """The request of Classify or ClassifyStream. Raises TypeError for what is no item."""
    reject_unknown(options, ClassifyOptions.__annotations__)
    return kind(
        model=model_ref(model, options.get("version"), options.get("alias")),
        items=[item_message(item) for item in _as_list(items)],
        options=options_message(options),
        priority=options.get("priority", 0),
    )


def options_message(options: ClassifyOptions) -> options_pb2.ClassifyOptions:
    return options_pb2.ClassifyOptions(
        top_k=options.get("top_k"),
        return_probabilities=options.get("probabilities", False),
        threshold=options.get("threshold"),
        truncation=_TRUNCATION[options.get("truncation")],
        no_cache=options.get("no_cache", False),
    )


def predictions(response: pb.ClassifyResponse) -> list[Prediction]:
    return [_prediction(result, response) for result in response.results]


def indexed_prediction(response: pb.ClassifyStreamResponse) -> tuple[int, Prediction]:
    return response.index, _prediction(response.result, response)


def identified_predictions(response: pb.ClassifyBidiResponse) -> list[tuple[str, Prediction]]:
    return [(result.id, _prediction(result.result, result)) for result in response.results]


def is_one(items: object) -> bool:
    """Whether it is an item by its type alone."""
    return isinstance(items, (str, bytes, Mapping, Tensor, item_pb2.Item))


def _as_list(items: Items) -> list[Item]:
    if is_one(items):
        return [cast(Item, items)]
    if not isinstance(items, Iterable):
        raise TypeError(f"cannot classify {type(items).__name__}")
    many = list(items)
    is_pair = isinstance(items, tuple) and len(many) == 2 and all(isinstance(i, str) for i in many)
    if is_pair or (many and all(_is_number(value) for value in many)):
        return [cast(Item, tuple(many))]
    return cast(list[Item], many)


def item_message(item: Item) -> item_pb2.Item:
    """Raises TypeError for what is no item, ValueError for a tensor at odds with itself."""
    match item:
        case item_pb2.Item():
            return item
        case str():
            return item_pb2.Item(text=item_pb2.Text(text=item))
        case bytes():
            return item_pb2.Item(image=item_pb2.Image(data=item))
        case (str() as first, str() as second):
            return item_pb2.Item(text_pair=item_pb2.TextPair(first=first, second=second))
        case Mapping():
            return _tensors(Tensor.of(array, name) for name, array in item.items())
    if is_tensor(item):
        return _tensors([Tensor.of(cast(Array, item))])
    if isinstance(item, Iterable):
        values = [value for value in item if _is_number(value)]
        if len(values) == len(list(item)):
            return item_pb2.Item(float_features=item_pb2.FloatFeatures(values=values))
    raise TypeError(
        "an item is a str, bytes (an image), a pair of str, a sequence of numbers, an array, "
        f"a Tensor, a mapping of names to them, or an Item, not {type(item).__name__}"
    )


def _tensors(tensors: Iterable[Tensor]) -> item_pb2.Item:
    message = item_pb2.NamedTensors()
    for tensor in tensors:
        message.tensors.add(
            name=tensor.name,
            datatype=item_pb2.Datatype.Value(f"DATATYPE_{tensor.datatype}"),
            shape=tensor.shape,
            data=tensor.data,
        )
    return item_pb2.Item(tensors=message)


def _is_number(value: object) -> bool:
    # What numpy's scalars are too, without asking for numpy.
    return hasattr(value, "__float__") and getattr(value, "ndim", 0) == 0


def _prediction(
    result: result_pb2.ItemResult,
    response: pb.ClassifyResponse | pb.ClassifyStreamResponse | pb.BidiResult,
) -> Prediction:
    answer = result.classification
    labels = tuple(LabelScore(entry.label, entry.index, entry.score) for entry in answer.labels)
    return Prediction(
        label=labels[0].label if labels else "",
        score=labels[0].score if labels else 0.0,
        labels=labels,
        probabilities=tuple(answer.probabilities),
        truncated=answer.truncated,
        tokens=answer.tokens,
        cached=answer.cached,
        model=response.model,
        version=response.version,
        timings=_timings(result.timings) if result.HasField("timings") else None,
        error=_errors.from_status(result.error) if result.HasField("error") else None,
    )


def _timings(timings: result_pb2.Timings) -> ClassifyTimings:
    return ClassifyTimings(
        preprocess_us=timings.preprocess_us,
        queue_us=timings.queue_us,
        batch_us=timings.batch_us,
        compute_us=timings.compute_us,
        batch_size=timings.batch_size,
    )
