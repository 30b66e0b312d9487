"""What becomes of prompts, parameters and generated text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from gristmill.generator.v1 import prompt_pb2
from gristmill.generator.v1.sampling_params_pb2 import SamplingParams
from gristmill_client import InvalidRequest, ServerError
from gristmill_client._generate_messages import generate_request, stream_request

from tests.unit.client.conftest import Twin
from tests.unit.client.fakes import FakeGenerator, error_info, refuse, serving


def params(**options: Any) -> SamplingParams:
    return generate_request("x", None, None, options).params  # type: ignore[arg-type]  # any of them


def chat(**options: Any) -> prompt_pb2.ChatPrompt:
    messages: Any = options.pop("messages", [{"role": "user", "content": "Hi"}])
    request = generate_request(None, messages, None, options)  # type: ignore[arg-type]  # any of them
    return request.prompts[0].chat


def test_a_prompt_is_raw_and_messages_are_a_chat() -> None:
    assert generate_request("Once", None, None, {}).prompts[0].text.text == "Once"
    assert list(generate_request([1, 2], None, None, {}).prompts[0].tokens.ids) == [1, 2]
    message = chat().messages[0]
    assert (message.role, message.content) == (prompt_pb2.ROLE_USER, "Hi")


@pytest.mark.parametrize(
    ("prompt", "messages"), [(None, None), ("x", [{"role": "user", "content": "y"}])]
)
def test_exactly_one_of_prompt_and_messages(prompt: Any, messages: Any) -> None:
    with pytest.raises(TypeError, match="one of them"):
        generate_request(prompt, messages, None, {})


def test_parameters_not_given_stay_absent() -> None:
    assert params() == SamplingParams()
    assert params(temperature=0.0).HasField("temperature")


def test_parameters_reach_the_request() -> None:
    assert params(
        max_tokens=5,
        top_p=0.5,
        seed=2**63,
        n=2,
        stop="\n",
        stop_token_ids=[7],
        logit_bias={3: -1.0},
        ignore_eos=True,
    ) == SamplingParams(
        max_tokens=5,
        top_p=0.5,
        seed=2**63,
        n=2,
        stop=["\n"],
        stop_token_ids=[7],
        logit_bias={3: -1.0},
        ignore_eos=True,
    )


def test_the_output_has_one_constraint() -> None:
    assert params(json_schema={"type": "object"}).constraint.json_schema == '{"type": "object"}'
    assert params(regex="a+").constraint.regex == "a+"
    assert list(params(choices=["a", "b"]).constraint.choices.choices) == ["a", "b"]
    assert params(json_object=True).constraint.json_object
    with pytest.raises(ValueError, match="json_object and regex"):
        params(json_object=True, regex="a+")


def test_tools_belong_to_a_chat() -> None:
    tools = [{"name": "add", "parameters": {"type": "object"}}]
    prompt = chat(tools=tools, tool_choice="add")
    assert prompt.tools[0].parameters_json_schema == '{"type": "object"}'
    assert prompt.tool_choice.name == "add"
    assert chat(tool_choice="required").tool_choice.required
    assert not chat(tool_choice="auto").HasField("tool_choice")
    with pytest.raises(TypeError, match="messages"):
        params(tools=tools)


def test_a_message_has_only_known_keys_and_roles() -> None:
    with pytest.raises(TypeError, match="contents"):
        chat(messages=[{"role": "user", "contents": "typo"}])
    with pytest.raises(ValueError, match="ROLE_BOSS"):
        chat(messages=[{"role": "boss", "content": "x"}])


def test_a_stream_gives_one_answer() -> None:
    with pytest.raises(ValueError, match="one answer"):
        stream_request("x", None, None, {"n": 2})


def test_a_completion_has_the_text_and_how_it_came(twin: Callable[..., Twin]) -> None:
    generator = FakeGenerator()
    with serving(generator.register) as address:
        client = twin(generator=address)
        answer = client.run(client.client.chat("Hi", system="Be brief", model="smollm2"))
    assert (answer.text, answer.finish_reason) == ("Hello, world", "stop")
    assert (answer.model, answer.version, answer.usage.completion_tokens) == ("smollm2", 1, 3)
    assert (answer.timings.total_us, answer.choices[0].stop_match) == (900, "!")
    sent = generator.requests[0].prompts[0].chat.messages
    assert [message.content for message in sent] == ["Be brief", "Hi"]


def test_a_prompt_that_failed_alone_raises_its_own_error(twin: Callable[..., Twin]) -> None:
    with serving(FakeGenerator().register) as address:
        client = twin(generator=address)
        with pytest.raises(InvalidRequest, match="too long"):
            client.run(client.client.generate("bad"))


def test_the_deltas_of_a_stream_join_to_its_text(twin: Callable[..., Twin]) -> None:
    with serving(FakeGenerator().register) as address:
        client = twin(generator=address)
        stream = client.open(lambda: client.client.stream("x"))
        assert (client.next(stream), stream.model, stream.prompt_tokens) == ("Hello", "smollm2", 5)
        assert (stream.usage, stream.finish_reason) == (None, None)
        assert client.collect(stream) == [", ", "world"]
    assert (stream.text, stream.finish_reason) == ("Hello, world", "length")
    assert (stream.usage.completion_tokens, stream.timings.total_us) == (3, 900)
    assert stream.token_ids == [0, 1, 2]


def test_a_failure_in_mid_stream_keeps_what_came(twin: Callable[..., Twin]) -> None:
    generator = FakeGenerator()
    generator.fail_after_first = lambda context: refuse(
        context, grpc.StatusCode.INTERNAL, "failed", error_info("BACKEND_FAILED")
    )
    with serving(generator.register) as address:
        client = twin(generator=address)
        stream = client.open(lambda: client.client.stream("x"))
        with pytest.raises(ServerError) as caught:
            client.collect(stream)
    assert caught.value.reason == "BACKEND_FAILED"
    assert (stream.text, stream.finish_reason) == ("Hello", None)
