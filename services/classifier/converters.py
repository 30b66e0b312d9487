"""Messages to items and answers to messages: the only place that knows both."""

from collections.abc import Mapping

import numpy as np
from gristmill.classifier.v1 import item_pb2, loaded_model_pb2, options_pb2, result_pb2
from gristmill.registry.v1 import model_pb2, signature_pb2

from services.classifier.classifier import Answer, Classifier
from services.inference.items import FeaturesItem, Item, TextItem, TextPairItem
from services.inference.scoring import Choice
from services.inference.serving import Loaded, Wanted
from services.runtime import status
from services.runtime.errors import GristmillError, InvalidRequest, UnsupportedField


def wanted(ref: model_pb2.ModelRef, metadata: Mapping[str, str] | None = None) -> Wanted:
    """What a model reference asks for."""
    return Wanted(ref.model, ref.version, ref.alias, metadata or {})


def item_in(message: item_pb2.Item) -> Item | GristmillError:
    """The item, or the error that is its own."""
    content = message.WhichOneof("content")
    if content == "text":
        return TextItem(message.text.text)
    if content == "float_features":
        return FeaturesItem(np.array(message.float_features.values, dtype=np.float32))
    if content == "text_pair":
        return TextPairItem(message.text_pair.first, message.text_pair.second)
    if content is None:
        return InvalidRequest.field("content", "is required")
    return UnsupportedField.field("content", f"no backend here takes {content} yet")


def choice_in(options: options_pb2.ClassifyOptions) -> Choice:
    """Which labels are wanted."""
    return Choice(options.top_k or 1, options.threshold if options.HasField("threshold") else None)


def result_out(answer: Answer, request_id: str) -> result_pb2.ItemResult:
    """An answer on the wire."""
    if answer.error is not None:
        result = result_pb2.ItemResult(error=status.to_status(answer.error, request_id))
    else:
        result = result_pb2.ItemResult(
            classification=result_pb2.Classification(
                labels=[
                    result_pb2.LabelScore(label=x.label, index=x.index, score=x.score)
                    for x in answer.labels
                ],
                probabilities=answer.probabilities,
                truncated=answer.truncated,
                tokens=answer.tokens,
            )
        )
    if answer.timings is not None:
        timings = answer.timings
        result.timings.preprocess_us = _us(answer.preprocess_s)
        result.timings.queue_us = _us(timings.queue_s)
        result.timings.batch_us = _us(timings.batch_s)
        result.timings.compute_us = _us(timings.compute_s)
        result.timings.batch_size = timings.batch_size
    return result


def _us(seconds: float) -> int:
    return min(2**32 - 1, max(0, round(seconds * 1e6)))


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
            if manifest.input.kind != "float_features":
                signature.max_tokens = manifest.input.max_tokens
    return message
