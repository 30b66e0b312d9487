"""The wire side of the classifier: messages to items, classify, answers to messages."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.classifier.v1 import options_pb2

from services.classifier import converters as to
from services.classifier.answers import Answer, Asked
from services.classifier.bidi import Conversation
from services.classifier.classifier import Classifier
from services.classifier.traffic import Traffic
from services.inference.serving import Serving
from services.runtime.call import Call, current_call
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidRequest

Context = Any
REFUSE = options_pb2.TRUNCATION_REFUSE


class ClassifierServicer(rpc.ClassifierServiceServicer):
    """gristmill.classifier.v1.ClassifierService."""

    def __init__(
        self,
        serving: Serving[Classifier],
        traffic: Traffic,
        default_priority: int = 5,
        default_timeout_s: float = 30.0,
    ) -> None:
        self._serving = serving
        self._traffic = traffic
        self._default_priority = default_priority
        self._default_timeout_s = default_timeout_s

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> Any:  # noqa: N802
        call = current_call()
        items = [to.item_in(item) for item in request.items]
        asked = self._asked(request.options, request.priority, call, call.deadline)
        with self._traffic.use(to.wanted(request.model, call.metadata)) as target:
            answers = await target.classify(items, asked)
        response = pb.ClassifyResponse(model=target.model, version=target.version)
        for answer in answers:
            to.result_into(response.results.add(), answer, call.request_id)
        return response

    async def ClassifyStream(  # noqa: N802
        self, request: pb.ClassifyStreamRequest, context: Context
    ) -> AsyncIterator[Any]:
        call = current_call()
        items = [to.item_in(item) for item in request.items]
        asked = self._asked(request.options, request.priority, call, call.deadline)
        done: asyncio.Queue[tuple[int, Answer] | None] = asyncio.Queue()
        with self._traffic.use(to.wanted(request.model, call.metadata)) as target:
            work = asyncio.ensure_future(
                target.classify(items, asked, lambda i, answer: done.put_nowait((i, answer)))
            )
            work.add_done_callback(lambda _: done.put_nowait(None))
            try:
                while (one := await done.get()) is not None:
                    index, answer = one
                    response = pb.ClassifyStreamResponse(
                        index=index, model=target.model, version=target.version
                    )
                    to.result_into(response.result, answer, call.request_id)
                    yield response
                await work
            finally:
                work.cancel()

    async def ClassifyBidi(  # noqa: N802
        self, requests: AsyncIterator[pb.ClassifyBidiRequest], context: Context
    ) -> AsyncIterator[Any]:
        stream = Conversation(self._traffic, current_call(), self._asked, self._default_timeout_s)
        async with stream, aclosing(stream.answers(requests)) as responses:
            async for response in responses:
                yield response

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

    def _asked(
        self,
        options: options_pb2.ClassifyOptions,
        priority: int,
        call: Call,
        deadline: Deadline,
    ) -> Asked:
        return Asked(
            call.identity.name,
            deadline,
            priority or self._default_priority,
            to.choice_in(options),
            options.return_probabilities,
            options.truncation == REFUSE,
            options.no_cache,
        )
