"""Messages to items and answers to messages: the only place that knows both."""

from collections.abc import Mapping

from gristmill.classifier.v1 import item_pb2, loaded_model_pb2, options_pb2, result_pb2
from gristmill.registry.v1 import model_pb2, signature_pb2

from services.classifier.answers import Answer
from services.classifier.classifier import Classifier
from services.inference import tensor_bytes
from services.inference.items import (
    Array,
    FeaturesItem,
    ImageItem,
    Item,
    TensorsItem,
    TextItem,
    TextPairItem,
)
from services.inference.loaded import Loaded, Wanted
from services.inference.scoring import Choice
from services.runtime import status
from services.runtime.errors import GristmillError, InvalidRequest

BEST = Choice()
MOST_US = 2**32 - 1
_DATATYPES = {number: name.removeprefix("DATATYPE_") for name, number in item_pb2.Datatype.items()}


def wanted(ref: model_pb2.ModelRef, metadata: Mapping[str, str] | None = None) -> Wanted:
    """What a model reference asks for."""
    return Wanted(ref.model, ref.version, ref.alias, metadata or {})


def item_in(message: item_pb2.Item) -> Item | GristmillError:
    """The item, or the error that is its own."""
    content = message.WhichOneof("content")
    if content == "text":
        return TextItem(message.text.text)
    if content == "float_features":
        return FeaturesItem(message.float_features.values[:])
    if content == "text_pair":
        return TextPairItem(message.text_pair.first, message.text_pair.second)
    if content == "image":
        return ImageItem(message.image.data)
    if content == "tensors":
        try:
            return TensorsItem(_tensors_in(message.tensors))
        except InvalidRequest as error:
            return error
    return InvalidRequest.field("content", "is required")


def _tensors_in(message: item_pb2.NamedTensors) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for tensor in message.tensors:
        field = f"tensors[{tensor.name}]"
        if tensor.name in found:
            raise InvalidRequest.field(field, "is there twice")
        datatype = _DATATYPES.get(tensor.datatype, str(tensor.datatype))
        found[tensor.name] = tensor_bytes.decode(field, datatype, tensor.shape, tensor.data)
    return found


def choice_in(options: options_pb2.ClassifyOptions) -> Choice:
    """Which labels are wanted."""
    threshold = options.threshold if options.HasField("threshold") else None
    if threshold is None and options.top_k <= 1:
        return BEST
    return Choice(options.top_k or 1, threshold)


def result_into(result: result_pb2.ItemResult, answer: Answer, request_id: str) -> None:
    """Write an answer to where it goes on the wire."""
    if answer.error is not None:
        result.error.CopyFrom(status.to_status(answer.error, request_id))
    else:
        found = result.classification
        found.SetInParent()
        for label in answer.labels:
            found.labels.add(label=label.label, index=label.index, score=label.score)
        if answer.probabilities is not None:
            found.probabilities.extend(answer.probabilities.tolist())
        found.truncated = answer.truncated
        found.tokens = answer.tokens
        found.cached = answer.cached
    if answer.timings is not None:
        ours, timings = answer.timings, result.timings
        timings.preprocess_us = _us(answer.preprocess_s)
        timings.queue_us = _us(ours.queue_s)
        timings.batch_us = _us(ours.batch_s)
        timings.compute_us = _us(ours.compute_s)
        timings.batch_size = ours.batch_size


def _us(seconds: float) -> int:
    microseconds = int(seconds * 1e6 + 0.5)
    return microseconds if 0 <= microseconds <= MOST_US else MOST_US * (microseconds > 0)


def loaded_out(loaded: Loaded[Classifier], aliases: list[str]) -> loaded_model_pb2.LoadedModel:
    """A version in this process."""
    message = loaded_model_pb2.LoadedModel(
        model=loaded.entry.model,
        version=loaded.entry.version,
        state=loaded_model_pb2.LoadState.Value(f"LOAD_STATE_{loaded.state.upper()}"),
        reason=loaded.reason,
        aliases=aliases,
        digest=loaded.entry.digest,
    )
    if loaded.ready_time is not None:
        message.ready_time.FromDatetime(loaded.ready_time)
    if loaded.runner is not None:
        backend, manifest = loaded.runner.backend, loaded.runner.manifest
        message.backend, message.device = backend.name, backend.device
        signature = message.signature
        signature.labels.extend(manifest.output.labels)
        signature.multi_label = manifest.output.multi_label
        for specs, field in (
            (backend.inputs, signature.inputs),
            (backend.outputs, signature.outputs),
        ):
            for spec in specs:
                field.append(
                    signature_pb2.TensorSpec(
                        name=spec.name, datatype=spec.datatype, shape=spec.shape
                    )
                )
        if manifest.input is not None:
            kind = f"INPUT_KIND_{manifest.input.kind.upper()}"
            signature.input_kinds.append(signature_pb2.InputKind.Value(kind))
            if manifest.input.has_tokens:
                signature.max_tokens = manifest.input.max_tokens
    return message
