"""The generate extension: a text in, a text out, over the generator."""

import json
from contextlib import aclosing
from typing import Any

import grpc
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import prompt_pb2, result_pb2, sampling_params_pb2
from gristmill.registry.v1 import model_pb2
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from gateway import contract
from gateway.dialect import Exchange
from gateway.generation import gathered
from gateway.streams import Silence, paced
from services.runtime.errors import InvalidRequest

Json = dict[str, Any]
GENERATE = contract.method("generator", "GenerateStream")
MAX_TOKENS = 20
"""Where the caller names none: the extension's own default."""
GENERATE_STATUSES = {400: 422, 500: 424}
"""The extension's own statuses for what is wrong in a request, and for what failed."""
_FINISH = {
    result_pb2.FINISH_REASON_LENGTH: "length",
    result_pb2.FINISH_REASON_STOP: "eos_token",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class GenerateParameters(_Strict):
    """How to generate."""

    max_tokens: StrictInt = Field(default=MAX_TOKENS, ge=1, le=2**31 - 1)
    temperature: float | None = Field(default=None, strict=True)
    top_p: float | None = Field(default=None, strict=True)
    top_k: StrictInt | None = Field(default=None, ge=0)
    seed: StrictInt | None = None
    stop: list[StrictStr] = Field(default=[], max_length=16)
    details: StrictBool = False


class GenerateRequest(_Strict):
    """POST /v2/models/{model}/generate and generate_stream."""

    text_input: StrictStr
    id: StrictStr = Field(default="", max_length=1024)
    parameters: GenerateParameters = GenerateParameters()


async def generate(exchange: Exchange) -> None:
    """The whole text at once."""
    asked = await exchange.json(GenerateRequest)
    call = await exchange.start(GENERATE, message_of(asked, exchange))
    found = await gathered(call)
    answer = _answer(asked, found.started, found.text)
    if asked.parameters.details:
        answer["details"] = _details(found.finished)
    await exchange.reply(answer)


async def generate_stream(exchange: Exchange) -> None:
    """One event for each piece of the text; the last one has the details where they are wanted."""
    asked = await exchange.json(GenerateRequest)
    call = await exchange.start(GENERATE, message_of(asked, exchange))
    started, ping_interval_s = pb.Started(), exchange.limits.ping_interval_s
    try:
        async with aclosing(paced(call.read, grpc.aio.EOF, ping_interval_s)) as events:
            async for event in events:
                if isinstance(event, Silence):
                    await exchange.write(b": ping\n\n")
                elif event.HasField("started"):
                    started = event.started
                elif event.HasField("delta") and event.delta.text:
                    await exchange.write(_event(_answer(asked, started, event.delta.text)))
                elif event.HasField("finished") and asked.parameters.details:
                    last = _answer(asked, started, "")
                    await exchange.write(_event({**last, "details": _details(event.finished)}))
    except Exception as error:
        if not exchange.begun:
            raise
        found = exchange.failed(error, call)
        await exchange.write(_event({"error": found.body["error"]["message"]}))
    if not exchange.begun:
        await exchange.write(b"")
    await exchange.end()


def message_of(asked: GenerateRequest, exchange: Exchange) -> pb.GenerateStreamRequest:
    """The request as a message of ours."""
    given = asked.parameters
    params = sampling_params_pb2.SamplingParams()
    try:
        params.max_tokens = given.max_tokens
        params.stop.extend(given.stop)
        for name in ("temperature", "top_p", "top_k", "seed"):
            value = getattr(given, name)
            if value is not None:
                setattr(params, name, value)
        model = model_pb2.ModelRef(model=exchange.variables["model"])
        if "version" in exchange.variables:
            model.version = int(exchange.variables["version"])
        prompt = prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text=asked.text_input))
    except ValueError as error:
        raise InvalidRequest(f"a number is out of its range: {error}") from None
    return pb.GenerateStreamRequest(model=model, prompt=prompt, params=params)


def _answer(asked: GenerateRequest, started: pb.Started, text: str) -> Json:
    answer: Json = {
        "model_name": started.model,
        "model_version": str(started.version),
        "text_output": text,
    }
    if asked.id:
        answer["id"] = asked.id
    return answer


def _details(finished: pb.Finished) -> Json:
    choice = finished.choices[0] if finished.choices else result_pb2.Choice()
    reason = "stop_sequence" if choice.stop_match else _FINISH.get(choice.finish_reason, "")
    return {
        "finish_reason": reason or "eos_token",
        "prompt_tokens": finished.usage.prompt_tokens,
        "generated_tokens": finished.usage.completion_tokens,
    }


def _event(tree: Json) -> bytes:
    return b"data: " + json.dumps(tree, ensure_ascii=False).encode() + b"\n\n"
