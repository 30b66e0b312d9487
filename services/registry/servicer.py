"""The wire side of models and versions, and the servicer that all calls of the registry make up.

Messages to records, use case, records to messages. An RPC of the contract that is not here answers
UNIMPLEMENTED by the generated base class.
"""

import asyncio
from typing import Any, Protocol

from gristmill.registry.v1 import registry_service_pb2 as pb
from gristmill.registry.v1 import registry_service_pb2_grpc as rpc

from services.registry import converters as to
from services.registry import listing, paging, readers, resources
from services.registry.artifacts import ArtifactCalls
from services.registry.config import RegistryConfig
from services.registry.lifecycle import Lifecycle
from services.registry.models import Models
from services.registry.pointer_calls import PointerCalls
from services.registry.pointers import Pointers
from services.registry.requests import author, masked
from services.registry.resources import version_key
from services.registry.sources import Sources
from services.registry.storage.blobs import Blobs
from services.registry.store import Store
from services.registry.watch import Watch
from services.registry.work_calls import WorkCalls
from services.runtime.errors import InvalidRequest

Context = Any


class Parts(Protocol):
    """What the calls work on."""

    config: RegistryConfig
    store: Store
    blobs: Blobs
    models: Models
    pointers: Pointers
    lifecycle: Lifecycle
    sources: Sources
    watch: Watch


class RegistryServicer(ArtifactCalls, PointerCalls, WorkCalls, rpc.RegistryServiceServicer):
    """gristmill.registry.v1.RegistryService."""

    def __init__(self, registry: Parts) -> None:
        self.store = registry.store
        self.blobs = registry.blobs
        self.models = registry.models
        self.pointers = registry.pointers
        self.lifecycle = registry.lifecycle
        self.sources = registry.sources
        self.watch = registry.watch
        self.model_work = registry.config.worker != "headers"
        self.send_timeout_s = registry.config.watch_send_timeout_s
        self.draining = asyncio.Event()
        self._messages = {}

    async def CreateModel(self, request: pb.CreateModelRequest, context: Context) -> Any:  # noqa: N802
        record = await self.models.create_model(
            author(request),
            request.model_id,
            readers.task_in(request.model.task),
            request.model.description,
            dict(request.model.labels),
            dry=request.validate_only,
        )
        return pb.CreateModelResponse(model=to.model_out(record))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> Any:  # noqa: N802
        record = await self.store.model(resources.model_id(request.name))
        return pb.GetModelResponse(model=to.model_out(record))

    async def BatchGetModels(self, request: pb.BatchGetModelsRequest, context: Context) -> Any:  # noqa: N802
        names = [resources.model_id(name) for name in request.names]
        records = await self.store.batch_models(names)
        return pb.BatchGetModelsResponse(models=[to.model_out(record) for record in records])

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> Any:  # noqa: N802
        asked = listing.asked(
            "models",
            paging.size(request.page_size),
            request.page_token,
            request.filter,
            request.order_by,
        )
        page = await self.store.models(asked)
        return pb.ListModelsResponse(
            models=[to.model_out(record) for record in page.entries],
            next_page_token=page.next_page_token,
        )

    async def UpdateModel(self, request: pb.UpdateModelRequest, context: Context) -> Any:  # noqa: N802
        model = request.model
        values = {"description": model.description, "labels": dict(model.labels)}
        record = await self.models.update_model(
            author(request),
            model.name,
            model.etag,
            masked(request.update_mask, values),
            dry=request.validate_only,
        )
        return pb.UpdateModelResponse(model=to.model_out(record))

    async def ArchiveModel(self, request: pb.ArchiveModelRequest, context: Context) -> Any:  # noqa: N802
        record = await self.models.archive_model(
            author(request), request.name, request.etag, restore=request.restore
        )
        return pb.ArchiveModelResponse(model=to.model_out(record))

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> Any:  # noqa: N802
        await self.models.delete_model(
            author(request),
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
            author(request),
            resources.model_id(request.parent),
            readers.artifacts_in(version),
            version.description,
            dict(version.labels),
            dict(version.metrics),
            readers.lineage_in(version),
            dry=request.validate_only,
        )
        return pb.CreateModelVersionResponse(version=await self.shown(record))

    async def GetModelVersion(self, request: pb.GetModelVersionRequest, context: Context) -> Any:  # noqa: N802
        record = await self.store.version(*version_key(request.name))
        return pb.GetModelVersionResponse(version=await self.shown(record))

    async def BatchGetModelVersions(  # noqa: N802
        self, request: pb.BatchGetModelVersionsRequest, context: Context
    ) -> Any:
        parent = resources.model_id(request.parent, wildcard=True)
        keys = [version_key(name) for name in request.names]
        for index, (model, _) in enumerate(keys):
            if parent not in ("-", model):
                raise InvalidRequest.field(f"names[{index}]", f"is not of {request.parent}")
        records = await self.store.batch_versions(keys)
        return pb.BatchGetModelVersionsResponse(
            versions=[await self.shown(record) for record in records]
        )

    async def ListModelVersions(  # noqa: N802
        self, request: pb.ListModelVersionsRequest, context: Context
    ) -> Any:
        asked = listing.asked(
            "versions",
            paging.size(request.page_size),
            request.page_token,
            request.filter,
            request.order_by,
        )
        page = await self.store.versions(resources.model_id(request.parent), asked)
        return pb.ListModelVersionsResponse(
            versions=[await self.shown(record) for record in page.entries],
            next_page_token=page.next_page_token,
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
            author(request),
            version.name,
            version.etag,
            masked(request.update_mask, values),
            dry=request.validate_only,
        )
        return pb.UpdateModelVersionResponse(version=await self.shown(record))

    async def ArchiveModelVersion(  # noqa: N802
        self, request: pb.ArchiveModelVersionRequest, context: Context
    ) -> Any:
        record = await self.models.archive_version(
            author(request), request.name, request.etag, restore=request.restore
        )
        return pb.ArchiveModelVersionResponse(version=await self.shown(record))

    async def DeleteModelVersion(  # noqa: N802
        self, request: pb.DeleteModelVersionRequest, context: Context
    ) -> Any:
        await self.models.delete_version(
            author(request), request.name, request.etag, dry=request.validate_only
        )
        return pb.DeleteModelVersionResponse()
