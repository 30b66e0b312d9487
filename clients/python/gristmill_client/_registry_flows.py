"""What can be asked about models and versions in unary calls, as flows; moves no bytes."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from gristmill.registry.v1 import model_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from gristmill_client import _registry_messages as messages
from gristmill_client import errors
from gristmill_client._messages import MODELS, model_id, model_ref
from gristmill_client._steps import Flow, call
from gristmill_client.resources import Model, Resolution, Task, Version

Request = TypeVar("Request")
Response = TypeVar("Response")

PAGE_SIZE = 1000
# The most names that the contract takes in one batch get.
BATCH_SIZE = 100


def ask(
    method: Callable[[RegistryServiceStub], grpc.UnaryUnaryMultiCallable[Request, Response]],
    request: Request,
    timeout: float | None = None,
) -> Flow[Response]:
    """One call of the registry as a step of a flow."""
    return call("registry", RegistryServiceStub, method, request, timeout)


def pages(
    method: Callable[[RegistryServiceStub], grpc.UnaryUnaryMultiCallable[Any, Any]],
    request: Any,
    entries: str,
    limit: int | None = None,
) -> Flow[list[Any]]:
    """The entries of all pages, or the first `limit`."""
    found: list[Any] = []
    while True:
        request.page_size = PAGE_SIZE if limit is None else min(PAGE_SIZE, limit - len(found))
        page = yield from ask(method, request)
        found += getattr(page, entries)
        if not page.next_page_token or (limit is not None and len(found) >= limit):
            return found[:limit]
        request.page_token = page.next_page_token


def model_name(name: str) -> str:
    return MODELS + model_id(name)


def version_name(name: str, version: int) -> str:
    return f"{model_name(name)}/versions/{version}"


def request_id() -> str:
    """Makes a repetition of the call by gRPC's own retries harmless."""
    return str(uuid.uuid4())


def list_models(filter_: str = "", order_by: str = "") -> Flow[list[Model]]:
    request = pb.ListModelsRequest(filter=filter_, order_by=order_by)
    found = yield from pages(lambda stub: stub.ListModels, request, "models")
    return [messages.model(message) for message in found]


def list_versions(
    name: str, filter_: str = "", order_by: str = "", limit: int | None = None
) -> Flow[list[Version]]:
    request = pb.ListModelVersionsRequest(
        parent=model_name(name), filter=filter_, order_by=order_by
    )
    found = yield from pages(lambda stub: stub.ListModelVersions, request, "versions", limit)
    return [messages.version(message) for message in found]


def get_model(name: str) -> Flow[Model]:
    request = pb.GetModelRequest(name=model_name(name))
    response = yield from ask(lambda stub: stub.GetModel, request)
    return messages.model(response.model)


def get_version(name: str, version: int) -> Flow[Version]:
    request = pb.GetModelVersionRequest(name=version_name(name, version))
    response = yield from ask(lambda stub: stub.GetModelVersion, request)
    return messages.version(response.version)


def batch_get(names: Iterable[str]) -> Flow[list[Model]]:
    wanted, found = [model_name(name) for name in names], list[Model]()
    for begin in range(0, len(wanted), BATCH_SIZE):
        request = pb.BatchGetModelsRequest(names=wanted[begin : begin + BATCH_SIZE])
        response = yield from ask(lambda stub: stub.BatchGetModels, request)
        found += map(messages.model, response.models)
    return found


def batch_get_versions(refs: Iterable[tuple[str, int]]) -> Flow[list[Version]]:
    wanted, found = [version_name(*ref) for ref in refs], list[Version]()
    for begin in range(0, len(wanted), BATCH_SIZE):
        names = wanted[begin : begin + BATCH_SIZE]
        request = pb.BatchGetModelVersionsRequest(parent=f"{MODELS}-", names=names)
        response = yield from ask(lambda stub: stub.BatchGetModelVersions, request)
        found += map(messages.version, response.versions)
    return found


def ensure_model(name: str, task: Task, description: str = "") -> Flow[Model]:
    """The model, created if it is absent."""
    try:
        return (yield from get_model(name))
    except errors.NotFound:
        pass
    request = pb.CreateModelRequest(
        model_id=model_id(name),
        model=model_pb2.Model(task=messages.TASKS[task], description=description),
        request_id=request_id(),
    )
    try:
        response = yield from ask(lambda stub: stub.CreateModel, request)
    except errors.AlreadyExists:  # somebody else came first
        return (yield from get_model(name))
    return messages.model(response.model)


def update(
    name: str,
    version: int | None,
    description: str | None,
    labels: Mapping[str, str] | None,
    metrics: Mapping[str, float] | None = None,
) -> Flow[Model | Version]:
    given = {"description": description, "labels": labels, "metrics": metrics}
    fields: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    mask: Any = {"paths": sorted(fields)}
    if not fields:
        raise ValueError("give a description, labels or metrics")
    if version is None:
        if metrics is not None:
            raise ValueError("metrics belong to a version: name one")
        changed = model_pb2.Model(name=model_name(name), **fields)
        request = pb.UpdateModelRequest(model=changed, update_mask=mask, request_id=request_id())
        answer = yield from ask(lambda stub: stub.UpdateModel, request)
        return messages.model(answer.model)
    return (yield from _update_version(name, version, fields, mask))


def _update_version(
    name: str, version: int, fields: dict[str, Any], mask: Any
) -> Flow[Model | Version]:
    changed = model_pb2.ModelVersion(name=version_name(name, version), **fields)
    request = pb.UpdateModelVersionRequest(
        version=changed, update_mask=mask, request_id=request_id()
    )
    answer = yield from ask(lambda stub: stub.UpdateModelVersion, request)
    return messages.version(answer.version)


def archive(name: str, version: int | None, restore: bool) -> Flow[Model | Version]:
    if version is None:
        request = pb.ArchiveModelRequest(
            name=model_name(name), restore=restore, request_id=request_id()
        )
        model = yield from ask(lambda stub: stub.ArchiveModel, request)
        return messages.model(model.model)
    put_away = yield from ask(
        lambda stub: stub.ArchiveModelVersion,
        pb.ArchiveModelVersionRequest(
            name=version_name(name, version), restore=restore, request_id=request_id()
        ),
    )
    return messages.version(put_away.version)


def resolve(name: str, version: int | None = None, alias: str | None = None) -> Flow[Resolution]:
    request = pb.ResolveModelRequest(model=model_ref(name, version, alias))
    response = yield from ask(lambda stub: stub.ResolveModel, request)
    return Resolution(messages.version(response.version), response.chosen_by)


def pick(name: str, version: int | str | None) -> Flow[str]:
    """The full name of a version given by number or alias, else of the newest READY one."""
    if isinstance(version, int):
        return version_name(name, version)
    if version is not None:
        chosen = (yield from resolve(name, alias=version)).version
        return version_name(chosen.model, chosen.version)
    found: Sequence[Version] = yield from list_versions(name, "state = READY", limit=1)
    if not found:
        raise errors.FailedPrecondition(f"the model {name} has no READY version")
    return version_name(name, found[0].version)


def delete(name: str, version: int | None = None, force: bool = False) -> Flow[None]:
    if version is not None:
        yield from ask(
            lambda stub: stub.DeleteModelVersion,
            pb.DeleteModelVersionRequest(name=version_name(name, version), request_id=request_id()),
        )
        return
    yield from ask(
        lambda stub: stub.DeleteModel,
        pb.DeleteModelRequest(name=model_name(name), force=force, request_id=request_id()),
    )
