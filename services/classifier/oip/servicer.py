"""The wire side of the Open Inference Protocol, each method a few lines.

What is refused is raised as a domain error; the edge makes the status.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from services.classifier.classifier import Classifier
from services.classifier.oip import config as described
from services.classifier.oip import statistics as counted
from services.classifier.oip.inference import Inference, version_in
from services.classifier.oip.repository import Repository
from services.classifier.oip.stream import Stream
from services.classifier.traffic import Target, Traffic
from services.inference.loaded import Wanted
from services.inference.serving import Serving
from services.oip.contract import pb
from services.runtime.call import current_call
from services.runtime.errors import GristmillError, InvalidRequest

NAME = "gristmill"
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "parameters",
    "statistics",
)
"""By the names that Triton has for them."""
Context = Any


class InferenceServicer:
    """inference.GRPCInferenceService; `ready` tells whether the process serves."""

    def __init__(
        self,
        serving: Serving[Classifier],
        traffic: Traffic,
        ready: Callable[[], bool],
        version: str,
        default_priority: int = 5,
        default_timeout_s: float = 30.0,
    ) -> None:
        self._serving = serving
        self._traffic = traffic
        self._ready = ready
        self._version = version
        self._default_priority = default_priority
        self._default_timeout_s = default_timeout_s
        self._inference = Inference(traffic, default_priority)
        self._repository = Repository(serving)

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> Any:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> Any:  # noqa: N802
        return pb.ServerReadyResponse(ready=self._ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> Any:  # noqa: N802
        try:
            self._target(request)
        except InvalidRequest:
            raise
        except GristmillError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> Any:
        return pb.ServerMetadataResponse(name=NAME, version=self._version, extensions=EXTENSIONS)

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> Any:
        target = self._target(request)
        return described.metadata(target, self._versions(target.model))

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> Any:  # noqa: N802
        target = self._target(request)
        return pb.ModelConfigResponse(
            config=described.config(target, self._versions(target.model), self._default_priority)
        )

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> Any:
        if request.version and not request.name:
            raise InvalidRequest.field("name", "is required with a version")
        version = version_in("version", request.version)
        found = [
            counted.statistics(one, one.runner)
            for one in self._serving.models()
            if one.runner is not None
            and request.name in ("", one.entry.model)
            and version in (0, one.entry.version)
        ]
        if request.name and not found:
            self._target(request)  # says why there is none
        return pb.ModelStatisticsResponse(model_stats=found)

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> Any:  # noqa: N802
        call = current_call()
        return await self._inference.answer(request, call, call.deadline)

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[Any]:
        stream = Stream(self._traffic, self._inference, current_call(), self._default_timeout_s)
        async with stream, aclosing(stream.responses(requests)) as responses:
            async for response in responses:
                yield response

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> Any:
        return self._repository.index(request)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> Any:
        await self._repository.load(request)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> Any:
        await self._repository.unload(request)
        return pb.RepositoryModelUnloadResponse()

    def _target(self, request: Any) -> Target:
        """The version that a request's `name` and `version` mean now."""
        version = version_in("version", request.version)
        return self._traffic.use(Wanted(request.name, version, metadata=current_call().metadata))

    def _versions(self, model: str) -> list[int]:
        """Those that can be asked for."""
        return [
            one.entry.version
            for one in self._serving.models()
            if one.entry.model == model and one.state == "ready"
        ]
