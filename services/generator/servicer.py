"""The wire side of the generator: messages to prompts, generate, answers to messages.

An RPC of the contract that is not here answers UNIMPLEMENTED by the generated base class.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc
from gristmill.generator.v1 import prompt_pb2, result_pb2

from services.generator import converters as to
from services.generator.generator import Asked, Generation, Generator
from services.inference.serving import Serving
from services.runtime import status
from services.runtime.call import current_call
from services.runtime.errors import GristmillError, InvalidRequest, ModelNotReady

Context = Any


class GeneratorServicer(rpc.GeneratorServiceServicer):
    """gristmill.generator.v1.GeneratorService."""

    def __init__(self, serving: Serving[Generator]) -> None:
        self._serving = serving

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> Any:  # noqa: N802
        with self._serving.use(to.wanted(request.model, current_call().metadata)) as loaded:
            generator = _runner(loaded.runner)
            asked = _asked(request, generator)
            results = await self._all(generator, request.prompts, asked)
            return pb.GenerateResponse(
                results=results, model=loaded.entry.model, version=loaded.entry.version
            )

    async def _all(self, generator: Generator, prompts: Any, asked: Asked) -> list[Any]:
        """Each prompt's result: what is wrong with one is its own, a refusal is everyone's."""
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
        with self._serving.use(to.wanted(request.model, current_call().metadata)) as loaded:
            generator = _runner(loaded.runner)
            asked = _asked(request, generator)
            generation, sampling = await generator.prepare(
                to.prompt_in(request.prompt, "prompt"), asked
            )
            with generator.admit(generation, sampling, asked) as permit:
                yield pb.GenerateStreamResponse(
                    started=pb.Started(
                        model=loaded.entry.model,
                        version=loaded.entry.version,
                        prompt_tokens=len(generation.prompt),
                    )
                )
                async with aclosing(
                    generator.stream(generation, sampling, asked, permit)  # type: ignore[type-var]
                ) as deltas:
                    async for delta in deltas:
                        message = to.delta_out(delta, logprobs=sampling.logprobs)
                        yield pb.GenerateStreamResponse(delta=message)
            yield pb.GenerateStreamResponse(finished=to.finished_out(generation))

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> Any:  # noqa: N802
        with self._serving.use(to.wanted(request.model, current_call().metadata)) as loaded:
            generator = _runner(loaded.runner)
            ids = await generator.encode(to.prompt_in(request.prompt, "prompt"))
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
    return result_pb2.PromptResult(generation=to.generation_out(generation))


def _failed(error: GristmillError) -> result_pb2.PromptResult:
    return result_pb2.PromptResult(error=status.to_status(error, current_call().request_id))


def _asked(request: pb.GenerateRequest | pb.GenerateStreamRequest, generator: Generator) -> Asked:
    call = current_call()
    params = request.params
    return Asked(
        identity=call.identity.name,
        deadline=call.deadline,
        arrived=time.monotonic(),
        sampling=to.sampling_in(params, generator.engine.name),
        max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
        stop=tuple(params.stop),
        n=params.n or 1,
    )


def _runner(runner: Generator | None) -> Generator:
    if runner is None:  # resolved versions are ready, and ready ones have a runner
        raise ModelNotReady("the model is not ready", metadata={"state": "loading"})
    return runner
