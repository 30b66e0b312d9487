"""Reads the messages of the watch and of the history into plain values; makes no call."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal, cast

from google.protobuf.timestamp_pb2 import Timestamp
from gristmill.registry.v1 import history_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb

from gristmill_client import _registry_messages as messages
from gristmill_client._messages import enum_name
from gristmill_client.resources import Change, Resource, WatchEvent


def watch_event(message: pb.WatchResponse) -> WatchEvent:
    match message.WhichOneof("event"):
        case "snapshot":
            name, state = named_resource(message.snapshot)
            return WatchEvent("snapshot", message.revision, name=name, resource=state)
        case "change":
            return _change_event(change(message.change), message.revision)
    return WatchEvent(
        "bookmark",
        message.revision,
        snapshot_complete=message.bookmark.snapshot_complete,
    )


def change(message: history_pb2.Change) -> Change:
    kind = enum_name(history_pb2.ChangeKind.DESCRIPTOR, message.kind, "CHANGE_KIND_").lower()
    return Change(
        revision=message.revision,
        kind=cast(Literal["created", "updated", "deleted"], kind),
        name=message.name,
        before=named_resource(message.before)[1],
        after=named_resource(message.after)[1],
        actor=message.actor,
        request_id=message.request_id,
        commit_time=messages.time_of(message.commit_time),
    )


def _change_event(told: Change, revision: int) -> WatchEvent:
    return WatchEvent(
        told.kind,
        revision or told.revision,
        name=told.name,
        resource=told.after,
        before=told.before,
        actor=told.actor,
        request_id=told.request_id,
        commit_time=told.commit_time,
    )


def named_resource(message: history_pb2.Resource) -> tuple[str, Resource | None]:
    """The resource's full name and the resource; None where it did not exist."""
    match message.WhichOneof("resource"):
        case "model":
            return message.model.name, messages.model(message.model)
        case "version":
            return message.version.name, messages.version(message.version)
        case "alias":
            return message.alias.name, messages.alias(message.alias)
        case "traffic_policy":
            policy = messages.traffic_policy(message.traffic_policy)
            return message.traffic_policy.name, policy
    return "", None


def timestamp(moment: datetime | None) -> Timestamp | None:
    """A moment without a zone is taken as local time, as Python does everywhere."""
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment.astimezone(UTC))
    return stamp
