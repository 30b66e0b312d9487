"""Streams and asyncio with the released tritonclient; run by `triton_calls.py`."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import tritonclient.grpc.aio as triton_aio  # type: ignore[import-not-found,unused-ignore]
from tritonclient.utils import (  # type: ignore[import-not-found,unused-ignore]
    InferenceServerException,
)

from tests.e2e.triton_parts import (
    ANEW,
    ANSWER_S,
    FLOWERS,
    LABELS,
    MANY,
    SENTENCES,
    SPECIES,
    Answers,
    Client,
    classes,
    executed,
    features,
    labels,
    many_texts,
    text,
)


def stream(client: Client) -> None:
    """Requests over one stream, answered in their order; one that fails fails alone."""
    answers = Answers()
    client.start_stream(answers)
    for number in range(300):
        given = [features(FLOWERS[number % 2])] if number != 7 else [features(FLOWERS[0][:2])]
        client.async_stream_infer(
            "iris",
            given,
            request_id=str(number),
            outputs=classes(1),
            priority=1 + number % 9,
            timeout=60_000_000,
            enable_empty_final_response=number % 2 == 0,
        )
    client.async_stream_infer("sentiment", [text(*SENTENCES)], outputs=classes(1))
    client.stop_stream()
    assert len(answers.found) == 301
    failed = answers.found.pop(7)
    assert isinstance(failed, InferenceServerException)
    assert "shape" in failed.message()
    assert labels(answers.found.pop()) == list(LABELS)
    numbers_told = [int(result.get_response().id) for result in answers.found]
    assert numbers_told == [n for n in range(300) if n != 7]
    for result in answers.found:
        response = result.get_response()
        assert response.parameters["triton_final_response"].bool_param
        assert labels(result) == [SPECIES[int(response.id) % 2]]


def strict_stream(client: Client) -> None:
    """With `triton_grpc_error` the first failure ends the stream, with its status."""
    answers = Answers()
    client.start_stream(answers, headers={"triton_grpc_error": "true"})
    client.async_stream_infer("iris", [features(FLOWERS[0])])
    answers.wait(1)
    client.async_stream_infer("nobody", [features(FLOWERS[0])])
    answers.wait(1)
    client.stop_stream()
    good, error = answers.found
    assert good.as_numpy("probabilities").shape == (1, 3)
    assert error.status() == "StatusCode.NOT_FOUND", error


def cancelled_stream(client: Client) -> None:
    """A stream that is taken back leaves nothing to compute."""
    before = executed(client, "sentiment")
    answers = Answers()
    client.start_stream(answers)
    for _ in range(100):
        client.async_stream_infer("sentiment", many_texts(MANY // 100), parameters=ANEW)
    answers.wait(1)
    client.stop_stream(cancel_requests=True)
    assert answers.found[-1].status() == "StatusCode.CANCELLED"
    client.infer("sentiment", [text("ok")])
    assert executed(client, "sentiment") - before < MANY
    answers = Answers()
    client.start_stream(answers, stream_timeout=0.3)
    answers.wait(1)
    assert answers.found[-1].status() == "StatusCode.DEADLINE_EXCEEDED"
    client.stop_stream()


def with_asyncio(client: Client) -> None:
    """The same client for asyncio: calls, a cancelled call, a stream."""
    asyncio.run(asyncio.wait_for(_with_asyncio(sys.argv[2], client), ANSWER_S))


async def _with_asyncio(address: str, plain: Client) -> None:
    async with triton_aio.InferenceServerClient(address) as client:
        assert await client.is_server_ready()
        assert (await client.get_model_metadata("iris")).name == "iris"
        assert (await client.get_model_config("iris")).config.name == "iris"
        assert len((await client.get_model_repository_index()).models) == 2
        assert len((await client.get_inference_statistics()).model_stats) == 2
        calls = [
            client.infer("iris", [features(FLOWERS[n % 2])], outputs=classes(1), request_id=str(n))
            for n in range(100)
        ]
        for number, result in enumerate(await asyncio.gather(*calls)):
            assert labels(result) == [SPECIES[number % 2]]
        before = executed(plain, "sentiment")
        how = {"parameters": ANEW, "client_timeout": ANSWER_S}
        call = asyncio.ensure_future(client.infer("sentiment", many_texts(), **how))
        while executed(plain, "sentiment") == before:
            assert not call.done()
            await asyncio.sleep(0.01)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert call.cancelled()
        await client.infer("sentiment", [text("ok")])
        assert executed(plain, "sentiment") - before < MANY
        try:
            await client.infer("nobody", [features(FLOWERS[0])])
        except InferenceServerException as error:
            assert error.status() == "StatusCode.NOT_FOUND"
        await _stream_with_asyncio(client)
        await client.unload_model("iris")
        assert not await client.is_model_ready("iris")
        await client.load_model("iris")
        assert await client.is_model_ready("iris")


async def _stream_with_asyncio(client: Client) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(100):
            yield {
                "model_name": "iris" if number != 50 else "nobody",
                "inputs": [features(FLOWERS[number % 2])],
                "outputs": classes(1),
                "request_id": str(number),
            }

    number = 0
    async for result, error in client.stream_infer(requests()):
        if number == 50:
            assert "nobody" in error.message()
        else:
            assert error is None
            assert result.get_response().id == str(number)
            assert labels(result) == [SPECIES[number % 2]]
        number += 1
    assert number == 100
