"""The wire side of the generator: messages to prompts, generate, answers to messages."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from gristmill.generator.v1 import prompt_pb2, result_pb2, sampling_params_pb2

from services.generator import converters as to
from services.generator.conversation import Bounds, Conversation, Conversations
from services.generator.generation import Asked, Generation
from services.generator.generator import Generator
from services.inference.serving import Serving
from services.runtime import status
from services.runtime.call import Call, current_call
from services.runtime.deadline import Deadline
from services.runtime.errors import GristmillError, InvalidRequest

Context = Any


class GeneratorServicer(rpc.GeneratorServiceServicer):
    """gristmill.generator.v1.GeneratorService."""

    def __init__(
        self,
        serving: Serving[Generator],
        conversations: Conversations | None = None,
        default_priority: int = 5,
        bounds: Bounds | None = None,
    ) -> None:
        self._serving = serving
        self._conversations = conversations or Conversations()
        self._default_priority = default_priority
        self._bounds = bounds or Bounds()

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> Any:  # noqa: N802
        call = current_call()
        asked = self._asked(request.params, request.priority, call, call.deadline)
        use = await self._serving.ready(to.wanted(request.model, call.metadata), call.deadline)
        with use as loaded:
            results = await self._all(to.runner(loaded), request.prompts, asked)
            return pb.GenerateResponse(
                results=results, model=loaded.entry.model, version=loaded.entry.version
            )

    async def _all(self, generator: Generator, prompts: Any, asked: Asked) -> list[Any]:
        """Each prompt's result: what is wrong with one is its own, a refusal is everyone's."""
        generator.check(asked.sampling)
        prepared = [
            await self._prepare(generator, prompt, f"prompts[{i}]", asked)
            for i, prompt in enumerate(prompts)
        ]
        good = [p for p in prepared if not isinstance(p, GristmillError)]
        permits = []
        try:
            for generation, sampling in good:
                permits.append(generator.admit(generation, sampling, asked))
            tasks = [
                asyncio.ensure_future(_complete(generator, generation, sampling, asked, permit))
                for (generation, sampling), permit in zip(good, permits, strict=True)
            ]
            try:
                done = iter(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for permit in permits:
                permit.release()
        return [_failed(p) if isinstance(p, GristmillError) else next(done) for p in prepared]

    async def _prepare(
        self, generator: Generator, prompt: prompt_pb2.Prompt, path: str, asked: Asked
    ) -> Any:
        try:
            return await generator.prepare(to.prompt_in(prompt, path), asked, path)
        except InvalidRequest as error:
            return error

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateStreamRequest, context: Context
    ) -> AsyncIterator[Any]:
        call = current_call()
        asked = self._asked(request.params, request.priority, call, call.deadline)
        prompt = to.prompt_in(request.prompt, "prompt")
        use = await self._serving.ready(to.wanted(request.model, call.metadata), call.deadline)
        with use as loaded:
            generator = to.runner(loaded)
            generator.check(asked.sampling)
            generation, sampling = await generator.prepare(prompt, asked)
            with generator.admit(generation, sampling, asked) as permit:
                yield pb.GenerateStreamResponse(started=to.started_out(loaded, generation))
                async with aclosing(
                    generator.stream(generation, sampling, asked, permit)  # type: ignore[type-var]
                ) as deltas:
                    async for delta in deltas:
                        message = to.delta_out(delta, generator.engine.tokenizer)
                        yield pb.GenerateStreamResponse(delta=message)
            yield pb.GenerateStreamResponse(finished=to.finished_out(generation))

    async def GenerateBidi(  # noqa: N802
        self, requests: AsyncIterator[pb.GenerateBidiRequest], context: Context
    ) -> AsyncIterator[Any]:
        conversation = Conversation(
            self._serving, self._conversations, current_call(), self._asked, self._bounds
        )
        async with conversation, aclosing(conversation.answers(requests)) as responses:
            async for response in responses:
                yield response

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> Any:  # noqa: N802
        call = current_call()
        prompt = to.prompt_in(request.prompt, "prompt")
        use = await self._serving.ready(to.wanted(request.model, call.metadata), call.deadline)
        with use as loaded:
            generator = to.runner(loaded)
            ids = await generator.encode(prompt)
            return pb.CountTokensResponse(
                tokens=len(ids), max_context_tokens=generator.max_context_tokens
            )

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

    def _asked(
        self,
        params: sampling_params_pb2.SamplingParams,
        priority: int,
        call: Call,
        deadline: Deadline,
    ) -> Asked:
        return Asked(
            identity=call.identity.name,
            deadline=deadline,
            arrived=time.monotonic(),
            sampling=to.sampling_in(params),
            max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
            stop=tuple(params.stop),
            n=params.n or 1,
            priority=priority or self._default_priority,
        )

    async def ListLoadedModels(  # noqa: N802
        self, request: pb.ListLoadedModelsRequest, context: Context
    ) -> Any:
        return pb.ListLoadedModelsResponse(
            models=[
                to.loaded_out(one, self._serving.aliases_of(one.key))
                for one in self._serving.models()
            ]
        )


async def _complete(
    generator: Generator, generation: Generation, sampling: Any, asked: Asked, permit: Any
) -> result_pb2.PromptResult:
    try:
        async with aclosing(
            generator.stream(generation, sampling, asked, permit)  # type: ignore[type-var]
        ) as deltas:
            async for _ in deltas:
                pass
    except InvalidRequest as error:  # the engine's own: the other prompts go on
        return _failed(error)
    return result_pb2.PromptResult(
        generation=to.generation_out(generation, generator.engine.tokenizer)
    )


def _failed(error: GristmillError) -> result_pb2.PromptResult:
    return result_pb2.PromptResult(error=status.to_status(error, current_call().request_id))
