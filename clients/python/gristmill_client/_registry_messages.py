"""Reads the registry's messages into plain values; makes no call."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal, cast

from google.protobuf.timestamp_pb2 import Timestamp
from gristmill.registry.v1 import alias_pb2, history_pb2, model_pb2, signature_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1.artifact_pb2 import Artifact as ArtifactMessage
from gristmill.registry.v1.traffic_policy_pb2 import TrafficPolicy as TrafficPolicyMessage

from gristmill_client._files import CHUNK_BYTES, LocalFile
from gristmill_client._messages import MODELS, enum_name
from gristmill_client.resources import (
    Alias,
    Artifact,
    Lineage,
    Model,
    Rejection,
    Resource,
    Signature,
    Split,
    Task,
    TrafficPolicy,
    Version,
    VersionState,
    WatchEvent,
)

TASKS: dict[Task, model_pb2.Task.ValueType] = {
    "classification": model_pb2.TASK_CLASSIFICATION,
    "generation": model_pb2.TASK_GENERATION,
}
_TASK_NAMES = {value: name for name, value in TASKS.items()}


def model(message: model_pb2.Model) -> Model:
    return Model(
        name=message.name.removeprefix(MODELS),
        task=_TASK_NAMES.get(message.task),
        description=message.description,
        labels=dict(message.labels),
        latest_version=message.latest_version,
        etag=message.etag,
        create_time=_time(message.create_time),
        update_time=_time(message.update_time),
        archive_time=_time(message.archive_time),
    )


def version(message: model_pb2.ModelVersion) -> Version:
    return Version(
        model=_model_of(message.name),
        version=message.version,
        state=_state(message),
        artifacts=tuple(artifact(a) for a in message.artifacts),
        digest=message.digest,
        description=message.description,
        labels=dict(message.labels),
        metrics=dict(message.metrics),
        signature=_signature(message.signature) if message.HasField("signature") else None,
        lineage=_lineage(message.lineage) if message.HasField("lineage") else None,
        rejections=tuple(Rejection(r.path, r.rule, r.message) for r in message.rejections),
        etag=message.etag,
        create_time=_time(message.create_time),
        ready_time=_time(message.ready_time),
        creator=message.creator,
    )


def _state(message: model_pb2.ModelVersion) -> VersionState:
    states = model_pb2.VersionState.DESCRIPTOR
    return cast(VersionState, enum_name(states, message.state, "VERSION_STATE_"))


def artifact(message: ArtifactMessage) -> Artifact:
    return Artifact(message.path, message.size_bytes, message.sha256, message.stored)


def alias(message: alias_pb2.Alias) -> Alias:
    return Alias(
        model=_model_of(message.name),
        alias=message.name.rpartition("/")[2],
        version=message.version,
        gates=tuple(_gate(gate) for gate in message.gates),
        etag=message.etag,
        update_time=_time(message.update_time),
    )


def traffic_policy(message: TrafficPolicyMessage) -> TrafficPolicy:
    return TrafficPolicy(
        model=_model_of(message.name),
        splits=tuple(
            Split(split.version or None, split.alias or None, split.weight)
            for split in message.splits
        ),
        sticky_key=message.sticky_key,
        shadow_version=message.shadow_version,
        etag=message.etag,
        update_time=_time(message.update_time),
    )


def watch_event(message: pb.WatchResponse) -> WatchEvent:
    match message.WhichOneof("event"):
        case "snapshot":
            name, state = _resource(message.snapshot)
            return WatchEvent("snapshot", message.revision, name=name, resource=state)
        case "change":
            return _change(message.change, message.revision)
    return WatchEvent(
        "bookmark",
        message.revision,
        snapshot_complete=message.bookmark.snapshot_complete,
    )


def upload_start(version: str, file: LocalFile) -> pb.UploadArtifactRequest:
    return pb.UploadArtifactRequest(start=pb.UploadStart(version=version, path=file.artifact.path))


def upload_chunks(file: LocalFile, offset: int) -> Iterator[pb.UploadArtifactRequest]:
    """The bytes of the file from the offset on, as messages; reads as it goes."""
    with file.location.open("rb") as stream:
        stream.seek(offset)
        while data := stream.read(CHUNK_BYTES):
            yield pb.UploadArtifactRequest(chunk=pb.Chunk(offset=offset, data=data))
            offset += len(data)


def _change(change: history_pb2.Change, revision: int) -> WatchEvent:
    kind = enum_name(history_pb2.ChangeKind.DESCRIPTOR, change.kind, "CHANGE_KIND_").lower()
    return WatchEvent(
        cast(Literal["created", "updated", "deleted"], kind),
        revision or change.revision,
        name=change.name,
        resource=_resource(change.after)[1],
        before=_resource(change.before)[1],
        actor=change.actor,
        request_id=change.request_id,
        commit_time=_time(change.commit_time),
    )


def _resource(message: history_pb2.Resource) -> tuple[str, Resource | None]:
    """The resource's full name and the resource; None where it did not exist."""
    match message.WhichOneof("resource"):
        case "model":
            return message.model.name, model(message.model)
        case "version":
            return message.version.name, version(message.version)
        case "alias":
            return message.alias.name, alias(message.alias)
        case "traffic_policy":
            return message.traffic_policy.name, traffic_policy(message.traffic_policy)
    return "", None


def _signature(message: signature_pb2.Signature) -> Signature:
    return Signature(
        input_kinds=tuple(
            enum_name(signature_pb2.InputKind.DESCRIPTOR, kind, "INPUT_KIND_").lower()
            for kind in message.input_kinds
        ),
        labels=tuple(message.labels),
        multi_label=message.multi_label,
        max_tokens=message.max_tokens,
    )


def _lineage(message: model_pb2.Lineage) -> Lineage:
    return Lineage(
        source=message.source,
        revision=message.revision,
        parent_version=message.parent_version,
        conversion=message.conversion,
        facts=dict(message.facts),
    )


def _gate(gate: alias_pb2.Gate) -> str:
    sign = ">=" if gate.comparison == alias_pb2.COMPARISON_AT_LEAST else "<="
    if gate.WhichOneof("limit") == "holder_plus":
        return f"{gate.metric} {sign} that of the present version {gate.holder_plus:+g}"
    return f"{gate.metric} {sign} {gate.value:g}"


def _model_of(name: str) -> str:
    """ "sentiment" of "models/sentiment/versions/3"."""
    return name.removeprefix(MODELS).partition("/")[0]


def _time(stamp: Timestamp) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if stamp.ByteSize() else None
