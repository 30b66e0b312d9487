"""Reads the registry's messages into plain values; makes no call."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import cast

from google.protobuf.timestamp_pb2 import Timestamp
from gristmill.registry.v1 import alias_pb2, model_pb2, signature_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1.artifact_pb2 import Artifact as ArtifactMessage
from gristmill.registry.v1.traffic_policy_pb2 import TrafficPolicy as TrafficPolicyMessage

from gristmill_client._files import CHUNK_BYTES, LocalFile
from gristmill_client._gates import gate_text
from gristmill_client._messages import MODELS, enum_name
from gristmill_client.resources import (
    Alias,
    Artifact,
    Lineage,
    Model,
    Rejection,
    Signature,
    Split,
    Task,
    TrafficPolicy,
    Version,
    VersionState,
)

TASKS: dict[Task, model_pb2.Task.ValueType] = {
    "classification": model_pb2.TASK_CLASSIFICATION,
    "generation": model_pb2.TASK_GENERATION,
    "dataset": model_pb2.TASK_DATASET,
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
        create_time=time_of(message.create_time),
        update_time=time_of(message.update_time),
        archive_time=time_of(message.archive_time),
    )


def version(message: model_pb2.ModelVersion) -> Version:
    return Version(
        model=model_of(message.name),
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
        create_time=time_of(message.create_time),
        ready_time=time_of(message.ready_time),
        creator=message.creator,
    )


def _state(message: model_pb2.ModelVersion) -> VersionState:
    states = model_pb2.VersionState.DESCRIPTOR
    return cast(VersionState, enum_name(states, message.state, "VERSION_STATE_"))


def artifact(message: ArtifactMessage) -> Artifact:
    return Artifact(message.path, message.size_bytes, message.sha256, message.stored)


def alias(message: alias_pb2.Alias) -> Alias:
    return Alias(
        model=model_of(message.name),
        alias=message.name.rpartition("/")[2],
        version=message.version,
        gates=tuple(gate_text(gate) for gate in message.gates),
        etag=message.etag,
        update_time=time_of(message.update_time),
    )


def traffic_policy(message: TrafficPolicyMessage) -> TrafficPolicy:
    return TrafficPolicy(
        model=model_of(message.name),
        splits=tuple(
            Split(split.version or None, split.alias or None, split.weight)
            for split in message.splits
        ),
        sticky_key=message.sticky_key,
        shadow_version=message.shadow_version,
        etag=message.etag,
        update_time=time_of(message.update_time),
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


def model_of(name: str) -> str:
    """ "sentiment" of "models/sentiment/versions/3"."""
    return name.removeprefix(MODELS).partition("/")[0]


def time_of(stamp: Timestamp) -> datetime | None:
    return stamp.ToDatetime(tzinfo=UTC) if stamp.ByteSize() else None
