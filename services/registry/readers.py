"""Messages to records: the other half of `converters`."""

from datetime import UTC
from typing import Literal

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from gristmill.registry.v1 import (
    alias_pb2,
    model_pb2,
    registry_service_pb2,
    signature_pb2,
    traffic_policy_pb2,
)

from services.registry.resources import (
    ArtifactRecord,
    GateRecord,
    LineageRecord,
    PointRecord,
    ProfileRecord,
    RejectionRecord,
    SignatureRecord,
    SplitRecord,
    Task,
    TensorRecord,
    VersionRecord,
    version_key,
)
from services.runtime.errors import INTERNAL, InvalidRequest

TASKS: dict[int, Task] = {
    model_pb2.TASK_CLASSIFICATION: "classification",
    model_pb2.TASK_GENERATION: "generation",
    model_pb2.TASK_DATASET: "dataset",
}

COMPARISONS: dict[int, Literal["at_least", "at_most"]] = {
    alias_pb2.COMPARISON_AT_LEAST: "at_least",
    alias_pb2.COMPARISON_AT_MOST: "at_most",
}


CONVERSIONS: dict[int, str] = {
    registry_service_pb2.CONVERSION_ONNX: "onnx",
    registry_service_pb2.CONVERSION_ONNX_INT8_DYNAMIC: "onnx-int8-dynamic",
}
"""What a conversion is called where it is made."""


def seconds(duration: Duration) -> float:
    """A duration in seconds."""
    return float(duration.seconds + duration.nanos / 1e9)


def task_in(value: int, field: str = "model.task") -> Task:
    """The task that a field names."""
    if value not in TASKS:
        raise InvalidRequest.field(field, "must be CLASSIFICATION, GENERATION or DATASET")
    return TASKS[value]


def signature_in(message: signature_pb2.Signature) -> SignatureRecord:
    """A signature that a worker has read."""
    return SignatureRecord(
        input_kinds=tuple(
            signature_pb2.InputKind.Name(kind).removeprefix("INPUT_KIND_").lower()
            for kind in message.input_kinds
        ),
        labels=tuple(message.labels),
        multi_label=message.multi_label,
        max_tokens=message.max_tokens,
        inputs=tuple(_tensor_in(tensor) for tensor in message.inputs),
        outputs=tuple(_tensor_in(tensor) for tensor in message.outputs),
    )


def _tensor_in(message: signature_pb2.TensorSpec) -> TensorRecord:
    return TensorRecord(name=message.name, datatype=message.datatype, shape=tuple(message.shape))


def rejection_in(message: model_pb2.Rejection) -> RejectionRecord:
    """A reason against a version that a worker has found."""
    return RejectionRecord(path=message.path, rule=message.rule, message=message.message)


def lineage_in(message: model_pb2.ModelVersion) -> LineageRecord | None:
    """Where a new version comes from, where that is stated."""
    if not message.HasField("lineage"):
        return None
    lineage = message.lineage
    return LineageRecord(
        source=lineage.source,
        revision=lineage.revision,
        parent_version=lineage.parent_version,
        conversion=lineage.conversion,
        facts=dict(lineage.facts),
    )


def artifacts_in(message: model_pb2.ModelVersion) -> list[ArtifactRecord]:
    """The artifacts of a new version."""
    return [
        ArtifactRecord(path=a.path, size_bytes=a.size_bytes, sha256=a.sha256)
        for a in message.artifacts
    ]


def gates_in(message: alias_pb2.Alias) -> tuple[GateRecord, ...]:
    """The gates of an alias."""
    found = []
    for index, gate in enumerate(message.gates):
        limit = gate.WhichOneof("limit")
        if limit is None:
            raise InvalidRequest.field(f"alias.gates[{index}].limit", "is required")
        if gate.comparison not in COMPARISONS:
            said = "must be AT_LEAST or AT_MOST"
            raise InvalidRequest.field(f"alias.gates[{index}].comparison", said)
        found.append(
            GateRecord(
                metric=gate.metric,
                comparison=COMPARISONS[gate.comparison],
                value=gate.value if limit == "value" else None,
                holder_plus=gate.holder_plus if limit == "holder_plus" else None,
            )
        )
    return tuple(found)


def splits_in(message: traffic_policy_pb2.TrafficPolicy) -> tuple[SplitRecord, ...]:
    """The shares of a traffic policy."""
    found = []
    for index, split in enumerate(message.splits):
        if split.WhichOneof("target") is None:
            raise InvalidRequest.field(f"traffic_policy.splits[{index}].target", "is required")
        found.append(SplitRecord(version=split.version, alias=split.alias, weight=split.weight))
    return tuple(found)


def profile_in(
    message: registry_service_pb2.ModelVersionProfile, version: VersionRecord
) -> ProfileRecord:
    """A latency curve that a worker has measured."""
    return ProfileRecord(
        model=version.model,
        version=version.version,
        fingerprint=message.fingerprint,
        points=tuple(
            PointRecord(batch_size=p.batch_size, length=p.length, p50_us=p.p50_us, p95_us=p.p95_us)
            for p in message.points
        ),
        measure_time=message.measure_time.ToDatetime(UTC),
    )


def version_in(message: model_pb2.ModelVersion) -> VersionRecord:
    """A version as a worker is told of it: what it needs to bring its files."""
    model, version = version_key(message.name)
    return VersionRecord(
        model=model,
        version=version,
        artifacts=tuple(artifacts_in(message)),
        metrics=dict(message.metrics),
        lineage=lineage_in(message),
        create_time=message.create_time.ToDatetime(UTC),
    )


def reason_in(status: status_pb2.Status) -> str:
    """The reason that a status gives; INTERNAL where it gives none."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return INTERNAL
