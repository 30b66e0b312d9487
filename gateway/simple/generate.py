"""POST /generate: a text that goes on from a prompt, at once or as it comes."""

from contextlib import aclosing

import grpc
from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import prompt_pb2, result_pb2, sampling_params_pb2

from gateway import contract
from gateway.dialect import Exchange
from gateway.generation import gathered
from gateway.modelnames import model_ref
from gateway.simple.requests import GenerateRequest
from gateway.streams import Silence, paced
from services.runtime.errors import InvalidRequest

GENERATE = contract.method("generator", "GenerateStream")


async def generate(exchange: Exchange) -> None:
    """POST /generate: the text at once, or as it comes."""
    asked = await exchange.json(GenerateRequest)
    stop = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    try:
        params = sampling_params_pb2.SamplingParams(
            max_tokens=asked.max_tokens,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            stop=stop,
        )
        prompt = prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text=asked.prompt))
    except (ValueError, UnicodeEncodeError) as error:
        raise InvalidRequest(f"a value is out of its range: {error}") from None
    request = pb.GenerateStreamRequest(prompt=prompt, params=params)
    if asked.model_name:
        request.model.CopyFrom(model_ref(asked.model_name))
    if asked.stream:
        await _stream(exchange, request)
    else:
        await _whole(exchange, request)


async def _whole(exchange: Exchange, request: pb.GenerateStreamRequest) -> None:
    call = await exchange.start(GENERATE, request)
    found = await gathered(call)
    cut = result_pb2.FINISH_REASON_LENGTH
    reason = "length" if any(one.finish_reason == cut for one in found.finished.choices) else "stop"
    await exchange.reply(
        {
            "text": found.text,
            "finish_reason": reason,
            "tokens_generated": found.finished.usage.completion_tokens,
        }
    )


async def _stream(exchange: Exchange, request: pb.GenerateStreamRequest) -> None:
    """Plain text, whose end is the end. What fails on the way cuts the connection."""
    call = await exchange.start(GENERATE, request)
    media_type = "text/plain; charset=utf-8"
    events = paced(call.read, grpc.aio.EOF, exchange.limits.ping_interval_s)
    async with aclosing(events):
        async for event in events:
            if not isinstance(event, Silence) and event.HasField("delta"):
                await exchange.write(event.delta.text.encode(), media_type)
    if not exchange.begun:
        await exchange.write(b"", media_type)
    await exchange.end()
