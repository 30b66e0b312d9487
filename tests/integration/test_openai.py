"""The OpenAI API with OpenAI's own SDK, over real sockets: gateway, generator, engine."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from gristmill.generator.v1 import generator_service_pb2_grpc as rpc

from gateway.config import GatewayConfig
from gateway.server import HttpServer
from services.generator.engine import EngineSettings
from services.generator.engines.fake import FakeEngine
from services.generator.engines.openvino import OpenVinoEngine
from services.generator.generator import Generator
from services.generator.servicer import GeneratorServicer
from services.runtime.admission import Limits
from services.runtime.errors import BackendFailed
from services.runtime.server import Service
from tests.engines.rig import GGUF
from tests.harness import SOON_S, Served, serve, soon
from tests.unit.generator.stack import (
    NAME,
    ROOMY,
    ScriptedEngine,
    generator,
    said,
    script,
    serving,
    until,
)

USER: Any = [{"role": "user", "content": "abc"}]


@dataclass
class Stack:
    """A gateway in front of a generator, and two clients."""

    url: str
    served: Served
    generator: Generator
    client: openai.AsyncOpenAI
    http: httpx.AsyncClient

    async def chat(self, messages: Any = USER, **more: Any) -> Any:
        """One chat."""
        create = self.client.chat.completions.create
        return await soon(create(model=NAME, messages=messages, **more))

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """One request as it is."""
        return await soon(self.http.post(path, json={"model": NAME, **body}))


@asynccontextmanager
async def stack(
    engine: Any, folder: Path, context: int = 4000, limits: Limits = ROOMY, **config: Any
) -> AsyncIterator[Stack]:
    """The whole of it; a fake engine steps by itself."""

    async def step() -> None:
        while isinstance(engine, FakeEngine):
            engine.step()
            await asyncio.sleep(0.001)

    stepping = asyncio.ensure_future(step())
    with generator(engine, context=context, limits=limits) as one:
        servicer = GeneratorServicer(await serving(one, folder))
        add = rpc.add_GeneratorServiceServicer_to_server
        async with serve(Service("generator", servicers=[(add, servicer)]), "grpcio") as served:
            address = dict.fromkeys(("registry", "classifier", "generator"), served.target)
            gateway = HttpServer(GatewayConfig(port=0, admin_port=-1, **{**address, **config}))
            await gateway.start()
            url = f"http://127.0.0.1:{gateway.port}"
            async with (
                openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
                httpx.AsyncClient(base_url=url, timeout=SOON_S, trust_env=False) as http,
            ):
                yield Stack(url, served, one, client, http)
            await soon(gateway.drain())
            await served.idle()
            assert one.admission.items == 0, "a permit was not returned"
    stepping.cancel()


async def test_a_chat_is_answered(tmp_path: Path) -> None:
    """The fake repeats its prompt."""
    async with stack(FakeEngine(), tmp_path) as s:
        parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
        messages = [
            {"role": "developer", "content": "S."},
            {"role": "user", "content": parts},
        ]
        answer = await s.chat(messages, user="u1")
    assert answer.object == "chat.completion"
    assert (answer.model, answer.system_fingerprint) == (NAME, f"{NAME}-v3")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "S.abc")
    assert choice.finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 5)
    assert answer.usage.total_tokens == 10
    assert answer.id == f"chatcmpl-{answer._request_id}"


async def test_a_stream_joins_to_the_same(tmp_path: Path) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        stream = await s.chat(stream=True, n=2, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1
    for index in range(2):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(one.delta.content or "" for one in mine) == "abc"
        assert [one.finish_reason for one in mine][-1] == "length"
        assert not any(one.finish_reason for one in mine[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 6
    assert all(chunk.usage is None for chunk in chunks[:-1])


async def test_a_stream_ends_with_done_and_says_nothing_of_usage_unasked(tmp_path: Path) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        response = await s.post("/v1/chat/completions", {"messages": USER, "stream": True})
    assert response.headers["content-type"] == "text/event-stream"
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in json.loads(one.removeprefix("data: ")) for one in blocks[:-2])


async def test_sampling_reaches_the_engine(tmp_path: Path) -> None:
    engine = ScriptedEngine(script("ab"))
    async with stack(engine, tmp_path) as s:
        await s.chat(
            temperature=0.5,
            top_p=0.25,
            presence_penalty=-1.5,
            frequency_penalty=1.5,
            seed=9,
            max_tokens=7,
            max_completion_tokens=5,
            extra_body={"top_k": 3, "min_p": 0.125, "repetition_penalty": 1.25},
        )
    (given,) = engine.samplings
    assert (given.temperature, given.top_p, given.top_k, given.min_p) == (0.5, 0.25, 3, 0.125)
    assert (given.presence_penalty, given.frequency_penalty) == (-1.5, 1.5)
    assert (given.repetition_penalty, given.seed, given.max_tokens) == (1.25, 9, 5)


@pytest.mark.parametrize("stop", ["c", ["x", "c"]])
async def test_a_stop_ends_it(tmp_path: Path, stop: Any) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        answer = await s.chat(stop=stop)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("ab", "stop")


async def test_log_probabilities(tmp_path: Path) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        answer = await s.chat(logprobs=True)
        stream = await s.chat(logprobs=True, stream=True)
        streamed = [
            one
            async for chunk in stream
            for choice in chunk.choices
            if choice.logprobs
            for one in choice.logprobs.content
        ]
    found = answer.choices[0].logprobs.content
    assert [(one.token, one.logprob, one.bytes) for one in found] == [
        ("a", -0.5, [97]),
        ("b", -0.5, [98]),
        ("c", -0.5, [99]),
    ]
    assert streamed == found


async def test_completions(tmp_path: Path) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        create = s.client.completions.create
        several: Any = await soon(create(model=NAME, prompt=["ab", "cd"], n=2, logprobs=0))
        ids: Any = await soon(create(model=NAME, prompt=[104, 105]))
        stream: Any = await soon(create(model=NAME, prompt="xyz", stream=True))
        streamed = "".join([c.choices[0].text async for c in stream])
    assert [(c.index, c.text) for c in several.choices] == [
        (0, "ab"),
        (1, "ab"),
        (2, "cd"),
        (3, "cd"),
    ]
    assert several.object == "text_completion"
    assert several.choices[0].logprobs.tokens == ["a", "b"]
    assert several.choices[0].logprobs.text_offset == [0, 1]
    assert (several.usage.prompt_tokens, several.usage.completion_tokens) == (4, 8)
    assert ids.choices[0].text == "hi"
    assert streamed == "xyz"


async def test_models(tmp_path: Path) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        models = [one async for one in s.client.models.list()]
        one = await soon(s.client.models.retrieve(NAME))
        with pytest.raises(openai.NotFoundError) as missing:
            await soon(s.client.models.retrieve("nobody"))
    assert [(m.id, m.object, m.owned_by) for m in models] == [(NAME, "model", "gristmill")]
    assert one == models[0]
    assert missing.value.code == "model_not_found"


@pytest.mark.parametrize("name", [f"{NAME}:3", f"{NAME}@live"])
async def test_a_version_or_an_alias_may_be_named(tmp_path: Path, name: str) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        create = s.client.chat.completions.create
        answer: Any = await soon(create(model=name, messages=USER))
    assert (answer.model, answer.choices[0].message.content) == (name, "abc")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": USER, "audio": {}}, "audio"),
        ({"messages": USER, "temperature": 3}, "temperature"),
        ({"messages": USER, "n": 0}, "n"),
        ({"messages": USER, "n": "2"}, "n"),
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"messages": USER, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": USER, "logprobs": True, "top_logprobs": 5}, "logprobs"),
        ({"messages": USER, "stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": USER, "logit_bias": {"5": 1}}, "logit_bias"),
        ({"messages": USER, "response_format": {"type": "json_object"}}, None),
        ({"messages": USER, "max_tokens": 10**6}, "max_tokens"),
        ({"messages": USER, "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"messages": USER, "tool_choice": "required"}, "tool_choice"),
    ],
)
async def test_what_is_not_taken_is_refused_by_its_name(
    tmp_path: Path, body: dict[str, Any], param: str | None
) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        response = await s.post("/v1/chat/completions", body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    else:
        assert error["param"].split(".")[0] in body
    assert response.headers["x-should-retry"] == "false"


async def test_errors_are_those_that_the_sdk_knows(tmp_path: Path) -> None:
    async with stack(FakeEngine(), tmp_path, limits=Limits(1, 10**9)) as s:
        with pytest.raises(openai.NotFoundError) as missing:
            await soon(s.client.chat.completions.create(model="nobody", messages=USER))
        with pytest.raises(openai.BadRequestError) as bad:
            await s.chat(max_tokens=10**6)
    assert (missing.value.code, missing.value.type) == ("model_not_found", "not_found_error")
    assert bad.value.param == "max_tokens"
    assert bad.value.request_id


async def test_a_full_queue_says_when_to_come_again(tmp_path: Path) -> None:
    engine = ScriptedEngine([said("a")])
    async with stack(engine, tmp_path, limits=Limits(1, 10**9)) as s:
        held = await s.chat(stream=True)
        await until(lambda: engine.running)
        with pytest.raises(openai.RateLimitError) as full:
            await s.chat()
        assert int(full.value.response.headers["retry-after"]) >= 1
        assert full.value.response.headers["x-should-retry"] == "true"
        await held.close()
        await until(lambda: engine.aborted == [0])


async def test_a_failure_in_mid_stream_is_told_and_raised(tmp_path: Path) -> None:
    async with stack(ScriptedEngine([said("a"), BackendFailed("no")]), tmp_path) as s:
        stream = await s.chat(stream=True)
        heard = []
        with pytest.raises(openai.APIError, match="the server failed"):
            async for chunk in stream:
                heard.append(chunk.choices[0].delta.content)
    assert "a" in heard


async def test_going_away_ends_the_work(tmp_path: Path) -> None:
    engine = ScriptedEngine([said("a")])
    async with stack(engine, tmp_path) as s:
        asking = asyncio.ensure_future(s.chat())
        await until(lambda: engine.running)
        asking.cancel()
        await until(lambda: engine.aborted == [0])


async def test_without_a_token_nobody_is_let_in(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(
        "tokens:\n  - {identity: reader, scopes: [read],"
        " sha256: 3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0}\n"
    )  # of the word "token"
    async with stack(FakeEngine(), tmp_path, token_file=tokens, allowed_hosts="127.0.0.1") as s:
        for path in ("/v1/chat/completions", "/v1/completions"):
            bare = await s.post(path, {"messages": USER})
            reader = await soon(
                s.http.post(path, json={}, headers={"authorization": "Bearer token"})
            )
            assert (bare.status_code, reader.status_code) == (401, 403)
            assert bare.json()["error"]["type"] == "authentication_error"
            assert reader.json()["error"]["type"] == "permission_error"
        assert (await soon(s.http.get("/v1/models"))).status_code == 401


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/models"])
async def test_other_methods_are_refused(tmp_path: Path, path: str) -> None:
    async with stack(FakeEngine(), tmp_path) as s:
        response = await soon(s.http.delete(path))
    assert response.status_code == 405
    assert "error" in response.json()


@pytest.mark.timeout(120)
async def test_a_real_model_is_chatted_with_constrained_and_calls_a_tool(tmp_path: Path) -> None:
    assert GGUF.exists(), f"{GGUF} is missing: run `make models`"
    engine = OpenVinoEngine(GGUF, EngineSettings())
    await engine.start()
    capital: Any = [{"role": "user", "content": "What is the capital of France?"}]
    weather: Any = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 20}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
    shape: Any = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": shape}}
    try:
        async with stack(engine, tmp_path) as s:
            answer = await s.chat(capital, temperature=0)
            shaped = await s.chat(capital, temperature=0, max_tokens=40, response_format=wanted)
            choice: Any = {"type": "function", "function": {"name": "weather"}}
            called = await s.chat(capital, temperature=0, tools=[weather], tool_choice=choice)
            stream = await s.chat(
                capital, temperature=0, tools=[weather], tool_choice="required", stream=True
            )
            chunks = [chunk.choices[0] async for chunk in stream]
    finally:
        await engine.close()
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(shaped.choices[0].message.content)["a"], int)
    message = called.choices[0].message
    assert (message.content, called.choices[0].finish_reason) == (None, "tool_calls")
    (call,) = message.tool_calls
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    (streamed,) = [c for one in chunks for c in one.delta.tool_calls or ()]
    assert streamed.function.arguments == call.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"
