"""Records to messages and back: the only place that knows both."""

from datetime import datetime
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp
from gristmill.registry.v1 import (
    alias_pb2,
    artifact_pb2,
    history_pb2,
    model_pb2,
    signature_pb2,
)

from services.registry.blobs import Blobs
from services.registry.resources import (
    AliasRecord,
    ArtifactRecord,
    ChangeRecord,
    GateRecord,
    LineageRecord,
    ModelRecord,
    Resource,
    SignatureRecord,
    Task,
    VersionRecord,
)
from services.runtime.errors import InvalidRequest

TASKS: dict[int, Task] = {
    model_pb2.TASK_CLASSIFICATION: "classification",
    model_pb2.TASK_GENERATION: "generation",
}

COMPARISONS: dict[int, Literal["at_least", "at_most"]] = {
    alias_pb2.COMPARISON_AT_LEAST: "at_least",
    alias_pb2.COMPARISON_AT_MOST: "at_most",
}


def task_in(value: int, field: str = "model.task") -> Task:
    """The task that a field names."""
    if value not in TASKS:
        raise InvalidRequest.field(field, "must be CLASSIFICATION or GENERATION")
    return TASKS[value]


def task_out(task: Task) -> model_pb2.Task.ValueType:
    """The task on the wire."""
    return model_pb2.Task.Value(f"TASK_{task.upper()}")


def moment(value: datetime | None) -> Timestamp | None:
    """A moment on the wire; absent where there is none."""
    if value is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(value)
    return stamp


def model_out(record: ModelRecord) -> model_pb2.Model:
    """A model."""
    return model_pb2.Model(
        name=record.name,
        task=task_out(record.task),
        description=record.description,
        labels=record.labels,
        etag=record.etag,
        create_time=moment(record.create_time),
        update_time=moment(record.update_time),
        archive_time=moment(record.archive_time),
        latest_version=record.latest_version,
    )


def version_out(record: VersionRecord, blobs: Blobs | None = None) -> model_pb2.ModelVersion:
    """A version; with `blobs`, each artifact says whether its bytes are here."""
    whole = record.state != "uploading"  # nothing is checked before all the bytes are here
    return model_pb2.ModelVersion(
        name=record.name,
        version=record.version,
        state=model_pb2.VersionState.Value(f"VERSION_STATE_{record.state.upper()}"),
        artifacts=[
            artifact_pb2.Artifact(
                path=a.path,
                size_bytes=a.size_bytes,
                sha256=a.sha256,
                stored=whole or (blobs is not None and blobs.has(a.sha256, a.size_bytes)),
            )
            for a in record.artifacts
        ],
        digest=record.digest,
        description=record.description,
        labels=record.labels,
        metrics=record.metrics,
        signature=signature_out(record.signature) if record.signature else None,
        lineage=lineage_out(record.lineage) if record.lineage else None,
        rejections=[
            model_pb2.Rejection(path=r.path, rule=r.rule, message=r.message)
            for r in record.rejections
        ],
        etag=record.etag,
        create_time=moment(record.create_time),
        ready_time=moment(record.ready_time),
        creator=record.creator,
    )


def signature_out(record: SignatureRecord) -> signature_pb2.Signature:
    """A signature."""
    return signature_pb2.Signature(
        input_kinds=[
            signature_pb2.InputKind.Value(f"INPUT_KIND_{kind.upper()}")
            for kind in record.input_kinds
        ],
        labels=record.labels,
        multi_label=record.multi_label,
        max_tokens=record.max_tokens,
    )


def lineage_out(record: LineageRecord) -> model_pb2.Lineage:
    """Where a version came from."""
    return model_pb2.Lineage(
        source=record.source,
        revision=record.revision,
        parent_version=record.parent_version,
        conversion=record.conversion,
        facts=record.facts,
    )


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


def alias_out(record: AliasRecord) -> alias_pb2.Alias:
    """An alias."""
    return alias_pb2.Alias(
        name=record.name,
        version=record.version,
        gates=[_gate_out(gate) for gate in record.gates],
        etag=record.etag,
        update_time=moment(record.update_time),
    )


def _gate_out(gate: GateRecord) -> alias_pb2.Gate:
    message = alias_pb2.Gate(
        metric=gate.metric,
        comparison=alias_pb2.Comparison.Value(f"COMPARISON_{gate.comparison.upper()}"),
    )
    if gate.holder_plus is not None:
        message.holder_plus = gate.holder_plus
    elif gate.value is not None:
        message.value = gate.value
    return message


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


def resource_out(record: Resource | None) -> history_pb2.Resource | None:
    """Any resource; absent where there is none."""
    if record is None:
        return None
    if isinstance(record, ModelRecord):
        return history_pb2.Resource(model=model_out(record))
    if isinstance(record, VersionRecord):
        return history_pb2.Resource(version=version_out(record))
    return history_pb2.Resource(alias=alias_out(record))


def change_out(record: ChangeRecord) -> history_pb2.Change:
    """A change."""
    return history_pb2.Change(
        revision=record.revision,
        commit_time=moment(record.commit_time),
        actor=record.actor,
        name=record.name,
        kind=history_pb2.ChangeKind.Value(f"CHANGE_KIND_{record.kind.upper()}"),
        before=resource_out(record.before),
        after=resource_out(record.after),
        request_id=record.request_id,
    )
