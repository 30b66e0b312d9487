"""The calls that begin long work, as flows; waiting for it is elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gristmill.registry.v1 import registry_service_pb2 as pb

from gristmill_client import _registry_flows as registry
from gristmill_client import _work_messages as messages
from gristmill_client import errors
from gristmill_client._operation_state import OperationState
from gristmill_client._registry_flows import ask, model_name, pages, pick, request_id
from gristmill_client._steps import Flow
from gristmill_client.resources import Conversion, Profile, Source, Task

State = OperationState[Any]
Selector = int | str | None


def evaluate(
    name: str, version: Selector, data: str, data_version: Selector, metric_prefix: str
) -> Flow[State]:
    request = pb.EvaluateModelVersionRequest(
        name=(yield from pick(name, version)),
        dataset=(yield from pick(data, data_version)),
        metric_prefix=metric_prefix,
        request_id=request_id(),
    )
    response = yield from ask(lambda stub: stub.EvaluateModelVersion, request)
    return messages.operation(response.operation)


def convert(
    name: str, version: Selector, to: Conversion, max_difference: float | None
) -> Flow[State]:
    if to not in messages.CONVERSIONS:
        raise ValueError(f"`to` is one of {', '.join(messages.CONVERSIONS)}, not {to!r}")
    request = pb.ConvertModelVersionRequest(
        name=(yield from pick(name, version)),
        conversion=messages.CONVERSIONS[to],
        max_difference=max_difference,
        request_id=request_id(),
    )
    response = yield from ask(lambda stub: stub.ConvertModelVersion, request)
    return messages.operation(response.operation)


def profile(
    name: str, version: Selector, batch_sizes: Sequence[int], lengths: Sequence[int]
) -> Flow[State]:
    request = pb.ProfileModelVersionRequest(
        name=(yield from pick(name, version)),
        batch_sizes=batch_sizes,
        lengths=lengths,
        request_id=request_id(),
    )
    response = yield from ask(lambda stub: stub.ProfileModelVersion, request)
    return messages.operation(response.operation)


def profiles(name: str, version: Selector) -> Flow[list[Profile]]:
    request = pb.GetModelVersionProfileRequest(name=(yield from pick(name, version)))
    response = yield from ask(lambda stub: stub.GetModelVersionProfile, request)
    return [messages.profile(message) for message in response.profiles]


def import_model(
    name: str, source: str, path: str, revision: str, task: Task | None
) -> Flow[State]:
    if task is not None:
        yield from _known(source)  # before a model is made for nothing
        found = yield from registry.ensure_model(name, task)
        if found.task != task:
            raise errors.FailedPrecondition(f"the model {name} is for {found.task}, not for {task}")
    request = pb.ImportModelRequest(
        parent=model_name(name),
        source=source,
        path=path,
        revision=revision,
        request_id=request_id(),
    )
    try:
        response = yield from ask(lambda stub: stub.ImportModel, request)
    except errors.NotFound as error:
        if error.reason == "MODEL_NOT_FOUND" and task is None:
            error.message += "; name a task and it is created"
        raise
    return messages.operation(response.operation)


def _known(source: str) -> Flow[None]:
    known = [each.source for each in (yield from sources())]
    if source not in known:
        raise errors.NotFound(
            f"the registry has no source {source!r}, only: {', '.join(known) or 'none'}"
        )


def sources() -> Flow[list[Source]]:
    found = yield from pages(lambda stub: stub.ListSources, pb.ListSourcesRequest(), "sources")
    return [Source(message.source, message.kind) for message in found]
