"""The wire side of long work: finalize, import, convert, evaluate, profile; and of the server."""

from typing import Any

from gristmill.registry.v1 import registry_service_pb2 as pb

from services.registry import converters as to
from services.registry import operations, paging, readers, resources
from services.registry.jobs import OperationRecord
from services.registry.lifecycle import Lifecycle
from services.registry.requests import author
from services.registry.resources import VersionRecord
from services.registry.sources import Sources
from services.registry.store import Store
from services.runtime.errors import WORKER_MISSING, FailedPrecondition, InvalidRequest
from services.runtime.server import VERSION

Context = Any
TOLERANCES = {"onnx": 1e-3, "onnx-int8-dynamic": 0.1}
"""By conversion, where the caller gives none."""
BATCH_SIZES, LENGTHS = (1, 2, 4, 8, 16, 32), (16, 64, 128, 256)
MOST_BATCH, MOST_LENGTH = 4096, 1_048_576


class WorkCalls:
    """Calls that answer with an operation."""

    store: Store
    lifecycle: Lifecycle
    sources: Sources
    model_work: bool

    async def FinalizeModelVersion(  # noqa: N802
        self, request: pb.FinalizeModelVersionRequest, context: Context
    ) -> Any:
        found = await self.lifecycle.finalize(author(request), request.name)
        operation = (
            operations.finalized(found)
            if isinstance(found, VersionRecord)
            else operations.operation_out(found)
        )
        return pb.FinalizeModelVersionResponse(operation=operation)

    async def ListSources(self, request: pb.ListSourcesRequest, context: Context) -> Any:  # noqa: N802
        after, size = paging.after(request.page_token), paging.size(request.page_size)
        names = [name for name in sorted(self.sources.kinds) if name > after]
        shown, token = paging.cut(names, size, str)
        return pb.ListSourcesResponse(
            sources=[pb.Source(source=name, kind=self.sources.kinds[name]) for name in shown],
            next_page_token=token,
        )

    async def ImportModel(self, request: pb.ImportModelRequest, context: Context) -> Any:  # noqa: N802
        resources.model_id(request.parent)
        self.sources.check(request.source, request.path, request.revision)
        details = {
            "source": request.source,
            "path": request.path,
            "revision": request.revision,
        }
        record = await self.lifecycle.begin(
            author(request), "import", request.parent, details, dry=request.validate_only
        )
        return pb.ImportModelResponse(operation=operations.operation_out(record))

    async def ConvertModelVersion(  # noqa: N802
        self, request: pb.ConvertModelVersionRequest, context: Context
    ) -> Any:
        if request.conversion not in readers.CONVERSIONS:
            raise InvalidRequest.field("conversion", "is not one that this registry makes")
        name = readers.CONVERSIONS[request.conversion]
        given = request.HasField("max_difference")
        details = {
            "conversion": name,
            "max_difference": request.max_difference if given else TOLERANCES[name],
        }
        record = await self._begin(request, "convert", details)
        return pb.ConvertModelVersionResponse(operation=operations.operation_out(record))

    async def EvaluateModelVersion(  # noqa: N802
        self, request: pb.EvaluateModelVersionRequest, context: Context
    ) -> Any:
        resources.version_key(request.dataset)
        details = {"dataset": request.dataset, "metric_prefix": request.metric_prefix}
        record = await self._begin(request, "evaluate", details)
        return pb.EvaluateModelVersionResponse(operation=operations.operation_out(record))

    async def ProfileModelVersion(  # noqa: N802
        self, request: pb.ProfileModelVersionRequest, context: Context
    ) -> Any:
        for field, most in (("batch_sizes", MOST_BATCH), ("lengths", MOST_LENGTH)):
            if any(not 1 <= value <= most for value in getattr(request, field)):
                raise InvalidRequest.field(field, f"each must be from 1 to {most:,}")
        details = {
            "batch_sizes": sorted(set(request.batch_sizes)) or list(BATCH_SIZES),
            "lengths": sorted(set(request.lengths)) or list(LENGTHS),
        }
        record = await self._begin(request, "profile", details)
        return pb.ProfileModelVersionResponse(operation=operations.operation_out(record))

    async def GetModelVersionProfile(  # noqa: N802
        self, request: pb.GetModelVersionProfileRequest, context: Context
    ) -> Any:
        records = await self.lifecycle.profiles(request.name)
        return pb.GetModelVersionProfileResponse(
            profiles=[to.profile_out(record) for record in records]
        )

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> Any:  # noqa: N802
        oldest, newest = await self.store.revisions()
        return pb.GetServerInfoResponse(
            version=VERSION,
            revision=newest,
            oldest_revision=oldest,
            database=self.store.database.dialect,
        )

    async def _begin(self, request: Any, kind: Any, details: dict[str, Any]) -> OperationRecord:
        resources.version_key(request.name)
        if not self.model_work:
            said = "this registry has no worker for models: set worker to embedded or external"
            raise FailedPrecondition(said, reason=WORKER_MISSING)
        return await self.lifecycle.begin(author(request), kind, request.name, details, dry=False)
