"""The wire side of the registry's resources: messages to records, use case, records to messages.

An RPC of the contract that is not here answers UNIMPLEMENTED by the generated base class.
"""

from collections.abc import Sequence
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as rpc

from services.registry import converters as to
from services.registry import paging, resources
from services.registry.artifacts import ArtifactCalls
from services.registry.models import Models
from services.registry.operations import finalize_operation
from services.registry.resources import version_key
from services.registry.store import Author, Store, request_digest
from services.runtime.auth import ANONYMOUS
from services.runtime.call import current_call
from services.runtime.errors import InvalidRequest, UnsupportedField
from services.runtime.server import VERSION

Context = Any


class RegistryServicer(ArtifactCalls, rpc.RegistryServiceServicer):
    """gristmill.registry.v1.RegistryService."""

    models: Models
    store: Store

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> Any:  # noqa: N802
        record = await self.models.create_model(
            _author(request),
            request.model_id,
            to.task_in(request.model.task),
            request.model.description,
            dict(request.model.labels),
            dry=request.validate_only,
        )
        return pb.CreateModelResponse(model=to.model_out(record))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> Any:  # noqa: N802
        record = await self.store.model(resources.model_id(request.name))
        return pb.GetModelResponse(model=to.model_out(record))

    async def BatchGetModels(self, request: pb.BatchGetModelsRequest, context: Context) -> Any:  # noqa: N802
        records = [await self.store.model(resources.model_id(name)) for name in request.names]
        return pb.BatchGetModelsResponse(models=[to.model_out(record) for record in records])

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> Any:  # noqa: N802
        _refuse_filters(request)
        size = paging.size(request.page_size)
        records = await self.store.models(paging.after(request.page_token), size + 1)
        shown, token = paging.cut(records, size, lambda record: record.id)
        return pb.ListModelsResponse(
            models=[to.model_out(record) for record in shown], next_page_token=token
        )

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> Any:  # noqa: N802
        model = request.model
        values = {"description": model.description, "labels": dict(model.labels)}
        record = await self.models.update_model(
            _author(request),
            model.name,
            model.etag,
            _masked(request.update_mask, values),
            dry=request.validate_only,
        )
        return pb.UpdateModelResponse(model=to.model_out(record))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> Any:  # noqa: N802
        await self.models.delete_model(
            _author(request),
            request.name,
            request.etag,
            force=request.force,
            dry=request.validate_only,
        )
        return pb.DeleteModelResponse()

    async def CreateModelVersion(  # noqa: N802
        self, request: pb.CreateModelVersionRequest, context: Context
    ) -> Any:
        version = request.version
        record = await self.models.create_version(
            _author(request),
            resources.model_id(request.parent),
            to.artifacts_in(version),
            version.description,
            dict(version.labels),
            dict(version.metrics),
            to.lineage_in(version),
            dry=request.validate_only,
        )
        return pb.CreateModelVersionResponse(version=to.version_out(record, self.blobs))

    async def FinalizeModelVersion(  # noqa: N802
        self, request: pb.FinalizeModelVersionRequest, context: Context
    ) -> Any:
        record = await self.models.finalize_version(_author(request), request.name)
        operation: operations_pb2.Operation = finalize_operation(record)
        return pb.FinalizeModelVersionResponse(operation=operation)

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Context) -> Any:  # noqa: N802
        record = await self.store.version(*version_key(request.name))
        return pb.GetModelVersionResponse(version=to.version_out(record, self.blobs))

    async def ListModelVersions(  # noqa: N802
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> Any:
        _refuse_filters(request)
        size = paging.size(request.page_size)
        records = await self.store.versions(
            resources.model_id(request.parent), paging.before(request.page_token), size + 1
        )
        shown, token = paging.cut(records, size, lambda record: str(record.version))
        return pb.ListModelVersionsResponse(
            versions=[to.version_out(record, self.blobs) for record in shown],
            next_page_token=token,
        )

    async def UpdateModelVersion(  # noqa: N802
        self, request: pb.UpdateModelVersionRequest, context: Context
    ) -> Any:
        version = request.version
        values = {
            "description": version.description,
            "labels": dict(version.labels),
            "metrics": dict(version.metrics),
        }
        record = await self.models.update_version(
            _author(request),
            version.name,
            version.etag,
            _masked(request.update_mask, values),
            dry=request.validate_only,
        )
        return pb.UpdateModelVersionResponse(version=to.version_out(record, self.blobs))

    async def DeleteModelVersion(  # noqa: N802
        self, request: pb.DeleteModelVersionRequest, context: Context
    ) -> Any:
        await self.models.delete_version(
            _author(request), request.name, request.etag, dry=request.validate_only
        )
        return pb.DeleteModelVersionResponse()

    async def SetAlias(self, request: pb.SetAliasRequest, context: Context) -> Any:  # noqa: N802
        paths = _paths(request.update_mask, ("version", "gates"))
        if "version" not in paths:
            raise UnsupportedField.field("update_mask", "version must be among the paths")
        named = "gates" in paths if request.update_mask.paths else bool(request.alias.gates)
        gates = to.gates_in(request.alias) if named else None
        record = await self.models.set_alias(
            _author(request),
            request.alias.name,
            request.alias.version,
            gates,
            request.alias.etag,
            dry=request.validate_only,
        )
        return pb.SetAliasResponse(alias=to.alias_out(record))

    async def GetAlias(self, request: pb.GetAliasRequest, context: Context) -> Any:  # noqa: N802
        record = await self.store.alias(*resources.alias_key(request.name))
        return pb.GetAliasResponse(alias=to.alias_out(record))

    async def ListAliases(self, request: pb.ListAliasesRequest, context: Context) -> Any:  # noqa: N802
        size = paging.size(request.page_size)
        records = await self.store.aliases(
            resources.model_id(request.parent), paging.after(request.page_token), size + 1
        )
        shown, token = paging.cut(records, size, lambda record: record.alias)
        return pb.ListAliasesResponse(
            aliases=[to.alias_out(record) for record in shown], next_page_token=token
        )

    async def DeleteAlias(self, request: pb.DeleteAliasRequest, context: Context) -> Any:  # noqa: N802
        await self.models.delete_alias(
            _author(request), request.name, request.etag, dry=request.validate_only
        )
        return pb.DeleteAliasResponse()

    async def ResolveModel(self, request: pb.ResolveModelRequest, context: Context) -> Any:  # noqa: N802
        if not request.model.model:
            raise InvalidRequest.field("model.model", "is required")
        record, chosen_by = await self.store.resolve(
            request.model.model, request.model.version, request.model.alias
        )
        return pb.ResolveModelResponse(
            version=to.version_out(record, self.blobs), chosen_by=chosen_by
        )

    async def GetModelHistory(self, request: pb.GetModelHistoryRequest, context: Context) -> Any:  # noqa: N802
        for field in ("start_time", "end_time", "at_time", "resource"):
            if request.ListFields() and any(f.name == field for f, _ in request.ListFields()):
                raise UnsupportedField.field(field, "is not built yet")
        size = paging.size(request.page_size)
        records = await self.store.history(
            resources.model_id(request.name), paging.before(request.page_token), size + 1
        )
        shown, token = paging.cut(records, size, lambda record: str(record.revision))
        return pb.GetModelHistoryResponse(
            changes=[to.change_out(record) for record in shown], next_page_token=token
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> Any:  # noqa: N802
        return pb.GetServerInfoResponse(
            version=VERSION,
            revision=await self.store.revision(),
            oldest_revision=0,
            database="sqlite",
        )


def _author(request: Any) -> Author:
    """Who makes this change, under the request id where the request has one."""
    call = current_call()
    request_id = str(getattr(request, "request_id", ""))
    message: Message = request
    return Author(
        identity="" if call.identity is ANONYMOUS else call.identity.name,
        call_id=call.request_id,
        request_id=request_id,
        method=call.method,
        digest=request_digest(message.SerializeToString(deterministic=True)) if request_id else "",
    )


def _paths(mask: FieldMask, known: Sequence[str]) -> Sequence[str]:
    unknown = [path for path in mask.paths if path not in known]
    if unknown:
        raise InvalidRequest.field("update_mask", f"cannot change {', '.join(unknown)}")
    return list(mask.paths) or list(known)


def _masked(mask: FieldMask, values: dict[str, Any]) -> dict[str, object]:
    return {name: values[name] for name in _paths(mask, list(values))}


def _refuse_filters(request: pb.ListModelsRequest | pb.ListModelVersionsRequest) -> None:
    for field in ("filter", "order_by"):
        if getattr(request, field):
            raise UnsupportedField.field(field, "is not built yet")
