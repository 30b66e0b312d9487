"""An example for every request of the contract: valid, short, and something one would send.

Built from the descriptors: what is required, and the first of each choice that is; words and
numbers come from the table below. A test holds every example against the bounds.
"""

import re
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from gateway.descriptors import bounds_of, enum_of, is_map, message_of
from gateway.schemas import Schemas, needed

_F = FieldDescriptor

# By the full name of a field. Fields here are part of an example even where they may be absent.
VALUES: dict[str, Any] = {
    "gristmill.registry.v1.ModelRef.model": "sentiment",
    "gristmill.classifier.v1.Text.text": "A wonderful film, from the first scene to the last.",
    "gristmill.classifier.v1.ClassifyRequest.model": {"model": "sentiment"},
    "gristmill.classifier.v1.ClassifyRequest.options": {"topK": 2},
    "gristmill.classifier.v1.ClassifyStreamRequest.model": {"model": "sentiment"},
    "gristmill.generator.v1.GenerateRequest.params": {"maxTokens": 64, "temperature": 0.7},
    "gristmill.generator.v1.GenerateStreamRequest.params": {"maxTokens": 64, "temperature": 0.7},
    "gristmill.generator.v1.TextPrompt.text": "The mill stood at the edge of the river, and",
    "gristmill.registry.v1.CreateModelRequest.model_id": "sentiment",
    "gristmill.registry.v1.Model.task": "TASK_CLASSIFICATION",
    "gristmill.registry.v1.Model.description": "Positive or negative, for short English texts.",
    "gristmill.registry.v1.Alias.version": 3,
    "gristmill.registry.v1.TrafficPolicy.splits": [
        {"version": 3, "weight": 90},
        {"version": 4, "weight": 10},
    ],
    "gristmill.registry.v1.Artifact.path": "model.onnx",
    "gristmill.registry.v1.Artifact.size_bytes": "22972370",
    "gristmill.registry.v1.Artifact.sha256": "9f86d081884c7d659a2feaa0c55ad015" * 2,
    "gristmill.registry.v1.ModelVersion.artifacts": [
        {
            "path": "model.onnx",
            "sizeBytes": "22972370",
            "sha256": "9f86d081884c7d659a2feaa0c55ad015" * 2,
        }
    ],
    "gristmill.registry.v1.ImportModelRequest.source": "hub",
    "gristmill.registry.v1.ImportModelRequest.path": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "gristmill.registry.v1.ConvertModelVersionRequest.conversion": "CONVERSION_ONNX_INT8_DYNAMIC",
    "gristmill.registry.v1.EvaluateModelVersionRequest.dataset": "models/reviews/versions/1",
    "gristmill.registry.v1.BatchGetModelsRequest.names": ["models/sentiment"],
    "gristmill.registry.v1.BatchGetModelVersionsRequest.names": ["models/sentiment/versions/3"],
    "gristmill.registry.v1.ResolveModelRequest.model": {"model": "sentiment", "alias": "live"},
}
# By the full name of a method, where the fields of its body do not make a likely request.
BODIES: dict[str, Any] = {
    "gristmill.registry.v1.RegistryService.UpdateModel": {"description": "For short texts."},
    "gristmill.registry.v1.RegistryService.UpdateModelVersion": {"metrics": {"accuracy": 0.93}},
    "google.longrunning.Operations.WaitOperation": {"timeout": "10s"},
}
SEGMENTS = {
    "model": "sentiment",
    "version": "3",
    "alias": "live",
    "operation": "finalize.sentiment.3",
}


def of_message(schemas: Schemas, descriptor: Descriptor, without: tuple[str, ...] = ()) -> Any:
    """An example of a message, as JSON."""
    built: dict[str, Any] = {}
    for field in descriptor.fields:
        if field.name not in without and _wanted(schemas, field):
            built[field.json_name] = of_field(schemas, field)
    return built


def of_field(schemas: Schemas, field: FieldDescriptor) -> Any:
    """An example of a field's value."""
    if field.full_name in VALUES:
        return VALUES[field.full_name]
    if is_map(field):
        return {}
    one = _one(schemas, field)
    return [one] if field.is_repeated else one


def of_path(template: str) -> str:
    """A path of OpenAPI with its variables filled in."""
    return re.sub(r"\{(\w+)\}", lambda found: SEGMENTS.get(found[1], found[1]), template)


def _wanted(schemas: Schemas, field: FieldDescriptor) -> bool:
    if field.full_name in VALUES:
        return True
    if needed(field):
        return True
    oneof = field.containing_oneof
    return oneof is not None and oneof.fields[0] is field and schemas.needs_one(oneof)


def _one(schemas: Schemas, field: FieldDescriptor) -> Any:
    if field.type == _F.TYPE_MESSAGE:
        return of_message(schemas, message_of(field))
    if field.type == _F.TYPE_ENUM:
        values = enum_of(field).values
        return values[min(1, len(values) - 1)].name
    if field.cpp_type == _F.CPPTYPE_BOOL:
        return True
    if field.cpp_type == _F.CPPTYPE_STRING:
        return "" if field.type == _F.TYPE_BYTES else "text"
    return max(1, int(bounds_of(field).min))
