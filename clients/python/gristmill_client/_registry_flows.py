"""What can be asked of the registry in unary calls, as flows; moves no bytes."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import TypeVar

import grpc
from gristmill.registry.v1 import alias_pb2
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

from gristmill_client import _registry_messages as messages
from gristmill_client._messages import MODELS, model_id, model_ref
from gristmill_client._steps import Flow, call
from gristmill_client.resources import Alias, Model, Resolution, Version

Request = TypeVar("Request")
Response = TypeVar("Response")

PAGE_SIZE = 1000


def ask(
    method: Callable[[RegistryServiceStub], grpc.UnaryUnaryMultiCallable[Request, Response]],
    request: Request,
    timeout: float | None = None,
) -> Flow[Response]:
    """One call of the registry as a step of a flow."""
    return call("registry", RegistryServiceStub, method, request, timeout)


def model_name(name: str) -> str:
    return MODELS + model_id(name)


def version_name(name: str, version: int) -> str:
    return f"{model_name(name)}/versions/{version}"


def request_id() -> str:
    """Makes a repetition of the call by gRPC's own retries harmless."""
    return str(uuid.uuid4())


def list_models(filter_: str = "") -> Flow[list[Model]]:
    request = pb.ListModelsRequest(page_size=PAGE_SIZE, filter=filter_)
    found: list[Model] = []
    while True:
        page = yield from ask(lambda stub: stub.ListModels, request)
        found += map(messages.model, page.models)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def list_versions(name: str, filter_: str = "") -> Flow[list[Version]]:
    request = pb.ListModelVersionsRequest(
        parent=model_name(name), page_size=PAGE_SIZE, filter=filter_
    )
    found: list[Version] = []
    while True:
        page = yield from ask(lambda stub: stub.ListModelVersions, request)
        found += map(messages.version, page.versions)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def list_aliases(name: str) -> Flow[list[Alias]]:
    request = pb.ListAliasesRequest(parent=model_name(name), page_size=PAGE_SIZE)
    found: list[Alias] = []
    while True:
        page = yield from ask(lambda stub: stub.ListAliases, request)
        found += map(messages.alias, page.aliases)
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


def get_model(name: str) -> Flow[Model]:
    request = pb.GetModelRequest(name=model_name(name))
    response = yield from ask(lambda stub: stub.GetModel, request)
    return messages.model(response.model)


def get_version(name: str, version: int) -> Flow[Version]:
    request = pb.GetModelVersionRequest(name=version_name(name, version))
    response = yield from ask(lambda stub: stub.GetModelVersion, request)
    return messages.version(response.version)


def resolve(name: str, version: int | None = None, alias: str | None = None) -> Flow[Resolution]:
    request = pb.ResolveModelRequest(model=model_ref(name, version, alias))
    response = yield from ask(lambda stub: stub.ResolveModel, request)
    return Resolution(messages.version(response.version), response.chosen_by)


def promote(name: str, version: int, alias: str = "live") -> Flow[Alias]:
    request = pb.SetAliasRequest(
        alias=alias_pb2.Alias(name=f"{model_name(name)}/aliases/{alias}", version=version),
        request_id=request_id(),
    )
    response = yield from ask(lambda stub: stub.SetAlias, request)
    return messages.alias(response.alias)


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
