"""The operations of the OpenAI API: `/v1/chat/completions`, `/v1/completions`, `/v1/models`."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import grpc
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import loaded_model_pb2

from gateway import contract
from gateway.dialect import Exchange, Operation
from gateway.errors import Answer
from gateway.openai import answers, documented, messages
from gateway.openai.answers import (
    CHAT_KIND,
    TEXT_KIND,
    ChatParts,
    Envelope,
    Gathered,
    Json,
    TextParts,
)
from gateway.openai.requests import ChatRequest, CompletionRequest
from gateway.opencall import OpenCall
from gateway.streams import Silence, paced
from services.runtime.errors import InvalidRequest, NotFound

_DONE = b"data: [DONE]\n\n"
_GENERATE = contract.method("generator", "GenerateStream")
_LIST = contract.method("generator", "ListLoadedModels")


def error_shape(found: Answer, path: str) -> tuple[int, Json, dict[str, str]]:
    """An error as OpenAI's clients read it: they are told whether to try again."""
    retry = "true" if found.http in (429, 503) else "false"
    return found.http, answers.error(found), {"x-should-retry": retry}


async def chat(exchange: Exchange) -> None:
    """POST /v1/chat/completions."""
    request = await exchange.json(ChatRequest)
    envelope = Envelope(CHAT_KIND, f"chatcmpl-{exchange.request_id}", request.model)
    asked = [messages.chat(request)]
    if request.stream:
        usage = bool(request.stream_options and request.stream_options.include_usage)
        await _stream(exchange, asked[0], envelope, usage=usage)
    else:
        logprobs = bool(request.logprobs)
        await _whole(exchange, asked, envelope, request.n or 1, logprobs=logprobs)


async def text(exchange: Exchange) -> None:
    """POST /v1/completions."""
    request = await exchange.json(CompletionRequest)
    envelope = Envelope(TEXT_KIND, f"cmpl-{exchange.request_id}", request.model)
    asked = messages.completions(request)
    if not request.stream:
        wanted = request.logprobs is not None
        await _whole(exchange, asked, envelope, request.n or 1, logprobs=wanted)
        return
    if len(asked) > 1:
        raise InvalidRequest.field("prompt", "a stream has one prompt")
    usage = bool(request.stream_options and request.stream_options.include_usage)
    await _stream(exchange, asked[0], envelope, usage=usage)


async def models(exchange: Exchange) -> None:
    """GET /v1/models."""
    found = await _models(exchange)
    await exchange.reply({"object": "list", "data": [found[name] for name in sorted(found)]})


async def model(exchange: Exchange) -> None:
    """GET /v1/models/{model}."""
    found, name = await _models(exchange), exchange.variables["model"]
    if name not in found:
        raise NotFound(f"there is no model {name!r} here", resource=("model", name))
    await exchange.reply(found[name])


async def _models(exchange: Exchange) -> dict[str, Json]:
    response = await exchange.ask(_LIST, pb.ListLoadedModelsRequest())
    return {
        one.model: {
            "id": one.model,
            "object": "model",
            "created": one.ready_time.seconds,
            "owned_by": "gristmill",
        }
        for one in response.models
        if one.state == loaded_model_pb2.LOAD_STATE_READY
    }


async def _whole(
    exchange: Exchange,
    asked: Sequence[pb.GenerateStreamRequest],
    envelope: Envelope,
    n: int,
    *,
    logprobs: bool,
) -> None:
    calls = [await exchange.start(_GENERATE, one) for one in asked]
    parts = await asyncio.gather(*[_gather(call, envelope, n) for call in calls])
    choose = answers.chat_choice if envelope.kind == CHAT_KIND else answers.text_choice
    gathered = [one for choices, _ in parts for one in choices]
    choices = [choose(i, one, logprobs=logprobs) for i, one in enumerate(gathered)]
    await exchange.reply(envelope.of(choices, answers.usage([used for _, used in parts])))


async def _gather(call: OpenCall, envelope: Envelope, n: int) -> tuple[list[Gathered], Any]:
    choices = [Gathered() for _ in range(n)]
    usage: Any = None
    while (event := await call.read()) is not grpc.aio.EOF:
        kind = event.WhichOneof("event")
        if kind == "started":
            envelope.began(event.started)
        elif kind == "delta":
            choices[event.delta.index].add(event.delta)
        else:
            usage = event.finished.usage
            for last in event.finished.choices:
                choices[last.index].last = last
    return choices, usage


async def _stream(
    exchange: Exchange, request: pb.GenerateStreamRequest, envelope: Envelope, *, usage: bool
) -> None:
    call = await exchange.start(_GENERATE, request)
    ping_s = exchange.limits.ping_interval_s
    try:
        async with aclosing(_chunks(call, envelope, request, ping_s, usage=usage)) as chunks:
            async for chunk in chunks:
                await exchange.write(chunk)
    except Exception as error:
        if not exchange.begun:
            raise
        last = json.dumps(answers.error(exchange.failed(error, call))).encode()
        await exchange.write(b"data: " + last + b"\n\n")
    await exchange.end()


async def _chunks(
    call: OpenCall,
    envelope: Envelope,
    request: pb.GenerateStreamRequest,
    ping_interval_s: float,
    *,
    usage: bool,
) -> AsyncGenerator[bytes, None]:
    """The lines of a stream."""
    parts = ChatParts(request.params.n or 1) if envelope.kind == CHAT_KIND else TextParts()

    def line(choices: Sequence[Json], used: Json | None = None) -> bytes:
        chunk = envelope.of(choices, used, chunk=True)
        if not usage:
            del chunk["usage"]
        return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"

    async for event in _events(call, ping_interval_s):
        if isinstance(event, Silence):
            yield b": ping\n\n"
            continue
        if event.HasField("started"):
            envelope.began(event.started)
        for choice in parts.of(event):
            yield line([choice])
        if usage and event.HasField("finished"):
            yield line([], answers.usage([event.finished.usage]))
    yield _DONE


async def _events(call: OpenCall, ping_interval_s: float) -> AsyncIterator[Any]:
    async with aclosing(paced(call.read, grpc.aio.EOF, ping_interval_s)) as events:
        async for event in events:
            yield event


OPERATIONS = (
    Operation("POST", "/v1/chat/completions", _GENERATE, chat, documented.CHAT),
    Operation("POST", "/v1/completions", _GENERATE, text, documented.TEXT),
    Operation("GET", "/v1/models", _LIST, models, documented.MODELS),
    Operation("GET", "/v1/models/{model}", _LIST, model, documented.MODEL),
)
