"""Reads the messages of long work into plain values; makes no call."""

from __future__ import annotations

from typing import Any

from gristmill.registry.v1 import model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from gristmill_client import _errors
from gristmill_client import _registry_messages as messages
from gristmill_client._operation_state import OperationState
from gristmill_client.resources import Conversion, Profile, ProfilePoint, Version

CONVERSIONS: dict[Conversion, pb.Conversion.ValueType] = {
    "onnx": pb.CONVERSION_ONNX,
    "onnx-int8-dynamic": pb.CONVERSION_ONNX_INT8_DYNAMIC,
}


def operation(message: Any) -> OperationState[Any]:
    """A google.longrunning.Operation of the registry."""
    metadata = pb.OperationMetadata()
    message.metadata.Unpack(metadata)  # an operation without any is one of unknown progress
    failed = message.HasField("error")
    return OperationState(
        name=message.name,
        # The operation of a check that is long past has no metadata any more.
        kind=metadata.kind or message.name.removeprefix("operations/").partition(".")[0],
        subject=metadata.subject,
        progress=1.0 if message.done and not failed else metadata.progress,
        message=metadata.message,
        done=message.done,
        error=_errors.from_status(message.error) if failed else None,
        result=_result(message.response) if message.HasField("response") else None,
        create_time=messages.time_of(metadata.create_time),
        end_time=messages.time_of(metadata.end_time),
        cancel_requested=metadata.cancel_requested,
    )


def profile(message: pb.ModelVersionProfile) -> Profile:
    points = (ProfilePoint(p.batch_size, p.length, p.p50_us, p.p95_us) for p in message.points)
    return Profile(
        model=messages.model_of(message.name),
        version=int(message.name.rpartition("/")[2] or 0),
        fingerprint=message.fingerprint,
        points=tuple(points),
        measure_time=messages.time_of(message.measure_time),
    )


def _result(response: Any) -> Version | Profile | None:
    made, curve = model_pb2.ModelVersion(), pb.ModelVersionProfile()
    if response.Unpack(made):
        return messages.version(made)
    return profile(curve) if response.Unpack(curve) else None
