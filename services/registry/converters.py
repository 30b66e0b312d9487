"""Records to messages and back: the only place that knows both."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from gristmill.registry.v1 import (
    alias_pb2,
    artifact_pb2,
    history_pb2,
    model_pb2,
    registry_service_pb2,
    signature_pb2,
    traffic_policy_pb2,
)

from services.registry.resources import (
    AliasRecord,
    ChangeRecord,
    GateRecord,
    LineageRecord,
    ModelRecord,
    ProfileRecord,
    RejectionRecord,
    Resource,
    SignatureRecord,
    SplitRecord,
    Task,
    TensorRecord,
    TrafficPolicyRecord,
    VersionRecord,
)


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


def version_out(
    record: VersionRecord, stored: frozenset[str] = frozenset()
) -> model_pb2.ModelVersion:
    """A version; of one that is uploading, `stored` are the digests whose bytes are all here."""
    # Nothing is checked before all the bytes are here, and what is corrupt is put aside.
    whole = record.state not in ("uploading", "quarantined")
    return model_pb2.ModelVersion(
        name=record.name,
        version=record.version,
        state=model_pb2.VersionState.Value(f"VERSION_STATE_{record.state.upper()}"),
        artifacts=[
            artifact_pb2.Artifact(
                path=a.path,
                size_bytes=a.size_bytes,
                sha256=a.sha256,
                stored=whole or a.sha256 in stored,
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
        inputs=[_tensor_out(tensor) for tensor in record.inputs],
        outputs=[_tensor_out(tensor) for tensor in record.outputs],
    )


def _tensor_out(record: TensorRecord) -> signature_pb2.TensorSpec:
    return signature_pb2.TensorSpec(name=record.name, datatype=record.datatype, shape=record.shape)


def lineage_out(record: LineageRecord) -> model_pb2.Lineage:
    """Where a version came from."""
    return model_pb2.Lineage(
        source=record.source,
        revision=record.revision,
        parent_version=record.parent_version,
        conversion=record.conversion,
        facts=record.facts,
    )


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


def policy_out(record: TrafficPolicyRecord) -> traffic_policy_pb2.TrafficPolicy:
    """A traffic policy."""
    return traffic_policy_pb2.TrafficPolicy(
        name=record.name,
        splits=[_split_out(split) for split in record.splits],
        sticky_key=record.sticky_key,
        shadow_version=record.shadow_version,
        etag=record.etag,
        update_time=moment(record.update_time),
    )


def _split_out(record: SplitRecord) -> traffic_policy_pb2.Split:
    message = traffic_policy_pb2.Split(weight=record.weight)
    if record.alias:
        message.alias = record.alias
    else:
        message.version = record.version
    return message


def profile_out(record: ProfileRecord) -> registry_service_pb2.ModelVersionProfile:
    """A latency curve."""
    return registry_service_pb2.ModelVersionProfile(
        name=f"models/{record.model}/versions/{record.version}",
        fingerprint=record.fingerprint,
        points=[
            registry_service_pb2.ProfilePoint(
                batch_size=p.batch_size, length=p.length, p50_us=p.p50_us, p95_us=p.p95_us
            )
            for p in record.points
        ],
        measure_time=moment(record.measure_time),
    )


def resource_out(record: Resource | None) -> history_pb2.Resource | None:
    """Any resource; absent where there is none."""
    if record is None:
        return None
    if isinstance(record, ModelRecord):
        return history_pb2.Resource(model=model_out(record))
    if isinstance(record, VersionRecord):
        return history_pb2.Resource(version=version_out(record))
    if isinstance(record, AliasRecord):
        return history_pb2.Resource(alias=alias_out(record))
    return history_pb2.Resource(traffic_policy=policy_out(record))


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


def rejection_out(record: RejectionRecord) -> model_pb2.Rejection:
    """A reason against a version."""
    return model_pb2.Rejection(path=record.path, rule=record.rule, message=record.message)
