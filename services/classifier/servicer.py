"""The wire side of the classifier: messages to items, classify, answers to messages.

An RPC of the contract that is not here answers UNIMPLEMENTED by the generated base class.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.classifier.v1 import options_pb2

from services.classifier import converters as to
from services.classifier.classifier import Answer, Asked, Classifier
from services.inference.serving import Serving
from services.runtime.call import current_call
from services.runtime.errors import InvalidRequest, ModelNotReady

Context = Any


class ClassifierServicer(rpc.ClassifierServiceServicer):
    """gristmill.classifier.v1.ClassifierService."""

    def __init__(self, serving: Serving[Classifier], default_priority: int) -> None:
        self._serving = serving
        self._default_priority = default_priority

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> Any:  # noqa: N802
        items = [to.item_in(item) for item in request.items]
        with self._serving.use(to.wanted(request.model, current_call().metadata)) as loaded:
            answers = await _runner(loaded.runner).classify(items, self._asked(request))
        call_id = current_call().request_id
        return pb.ClassifyResponse(
            results=[to.result_out(answer, call_id) for answer in answers],
            model=loaded.entry.model,
            version=loaded.entry.version,
        )

    async def ClassifyStream(  # noqa: N802
        self, request: pb.ClassifyStreamRequest, context: Context
    ) -> AsyncIterator[Any]:
        items = [to.item_in(item) for item in request.items]
        done: asyncio.Queue[tuple[int, Answer] | None] = asyncio.Queue()
        call_id = current_call().request_id
        with self._serving.use(to.wanted(request.model, current_call().metadata)) as loaded:
            work = asyncio.ensure_future(
                _runner(loaded.runner).classify(
                    items,
                    self._asked(request),
                    lambda index, answer: done.put_nowait((index, answer)),
                )
            )
            work.add_done_callback(lambda _: done.put_nowait(None))
            try:
                while (one := await done.get()) is not None:
                    index, answer = one
                    yield pb.ClassifyStreamResponse(
                        index=index,
                        result=to.result_out(answer, call_id),
                        model=loaded.entry.model,
                        version=loaded.entry.version,
                    )
                await work
            finally:
                work.cancel()

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> Any:  # noqa: N802
        if not request.model.model:
            raise InvalidRequest.field("model.model", "is required")
        loaded = await self._serving.load(to.wanted(request.model))
        return pb.LoadModelResponse(
            model=to.loaded_out(loaded, self._serving.aliases_of(loaded.key))
        )

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> Any:  # noqa: N802
        if not request.model.model:
            raise InvalidRequest.field("model.model", "is required")
        await self._serving.unload(to.wanted(request.model))
        return pb.UnloadModelResponse()

    async def ListLoadedModels(  # noqa: N802
        self, request: pb.ListLoadedModelsRequest, context: Context
    ) -> Any:
        return pb.ListLoadedModelsResponse(
            models=[
                to.loaded_out(one, self._serving.aliases_of(one.key))
                for one in self._serving.models()
            ]
        )

    def _asked(self, request: pb.ClassifyRequest | pb.ClassifyStreamRequest) -> Asked:
        call = current_call()
        options = request.options
        return Asked(
            call.identity.name,
            call.deadline,
            request.priority or self._default_priority,
            to.choice_in(options),
            options.return_probabilities,
            options.truncation == options_pb2.TRUNCATION_REFUSE,
        )


def _runner(runner: Classifier | None) -> Classifier:
    if runner is None:  # resolved versions are ready, and ready ones have a runner
        raise ModelNotReady("the model is not ready", metadata={"state": "loading"})
    return runner
