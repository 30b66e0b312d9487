"""Requests of the OpenAI API as messages of our contract. Calls nothing."""

import json
from typing import Any

from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import prompt_pb2, sampling_params_pb2

from gateway.modelnames import model_ref
from gateway.openai.requests import ChatMessage, ChatRequest, Common, CompletionRequest, NamedTool
from services.runtime.errors import InvalidRequest

_ROLES = {
    "developer": prompt_pb2.ROLE_SYSTEM,
    "system": prompt_pb2.ROLE_SYSTEM,
    "user": prompt_pb2.ROLE_USER,
    "assistant": prompt_pb2.ROLE_ASSISTANT,
    "tool": prompt_pb2.ROLE_TOOL,
}
_SAME = (
    *("temperature", "top_p", "n", "presence_penalty", "frequency_penalty", "top_k", "min_p"),
    *("repetition_penalty", "seed"),
)


def chat(request: ChatRequest) -> pb.GenerateStreamRequest:
    """A chat as a stream of ours; what is not streamed is gathered from it."""
    check_stream(request)
    prompt = prompt_pb2.ChatPrompt(messages=[_message(one) for one in request.messages])
    for tool in request.tools or ():
        function = tool.function
        schema = "" if function.parameters is None else json.dumps(function.parameters)
        prompt.tools.add(
            name=function.name, description=function.description, parameters_json_schema=schema
        )
    _choose(prompt, request)
    params = _params(request)
    most = request.max_completion_tokens or request.max_tokens
    if most is not None:
        params.max_tokens = most
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest.field("top_logprobs", "needs logprobs")
    if request.logprobs:
        params.logprobs = request.top_logprobs or 0
    _constrain(params, request)
    return pb.GenerateStreamRequest(
        model=model_ref(request.model), prompt=prompt_pb2.Prompt(chat=prompt), params=params
    )


def completions(request: CompletionRequest) -> list[pb.GenerateStreamRequest]:
    """One of ours for each prompt."""
    check_stream(request)
    params = _params(request)
    if request.max_tokens is not None:
        params.max_tokens = request.max_tokens
    if request.logprobs is not None:
        params.logprobs = request.logprobs
    return [
        pb.GenerateStreamRequest(model=model_ref(request.model), prompt=prompt, params=params)
        for prompt in _prompts(request.prompt)
    ]


def check_stream(request: Common) -> None:
    """What only a stream has."""
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest.field("stream_options", "is for streams only")


def _prompts(given: Any) -> list[prompt_pb2.Prompt]:
    if isinstance(given, str):
        return [prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text=given))]
    if not given:
        raise InvalidRequest.field("prompt", "is empty")
    if isinstance(given[0], int):
        return [_tokens(given)]
    if len(given) > 64:
        raise InvalidRequest.field("prompt", "has more than 64 prompts")
    return [_prompts(one)[0] for one in given]


def _tokens(ids: list[int]) -> prompt_pb2.Prompt:
    try:
        return prompt_pb2.Prompt(tokens=prompt_pb2.TokenPrompt(ids=ids))
    except ValueError as error:
        raise InvalidRequest.field("prompt", "has a number that is no token") from error


def _message(message: ChatMessage) -> prompt_pb2.ChatMessage:
    return prompt_pb2.ChatMessage(
        role=_ROLES[message.role],
        content=message.text,
        name=message.name,
        tool_call_id=message.tool_call_id,
        tool_calls=[
            prompt_pb2.ToolCall(
                id=call.id, name=call.function.name, arguments_json=call.function.arguments
            )
            for call in message.tool_calls or ()
        ],
    )


def _choose(prompt: prompt_pb2.ChatPrompt, request: ChatRequest) -> None:
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        prompt.tool_choice.name = choice.function.name
    elif choice == "required":
        prompt.tool_choice.required = True
    elif choice == "none":
        prompt.tool_choice.none = True


def _params(request: Common) -> sampling_params_pb2.SamplingParams:
    given = {name: getattr(request, name) for name in _SAME}
    stop = request.stop or []
    try:
        return sampling_params_pb2.SamplingParams(
            **{name: value for name, value in given.items() if value is not None},
            stop=[stop] if isinstance(stop, str) else stop,
            stop_token_ids=request.stop_token_ids or (),
            logit_bias={int(token): bias for token, bias in (request.logit_bias or {}).items()},
            ignore_eos=request.ignore_eos,
        )
    except ValueError as error:
        raise InvalidRequest(f"a number is out of its range: {error}") from error


def _constrain(params: sampling_params_pb2.SamplingParams, request: ChatRequest) -> None:
    wanted = request.response_format
    if wanted is None or wanted.type == "text":
        return
    if wanted.type == "json_object":
        params.constraint.json_object = True
    elif wanted.json_schema is None:
        raise InvalidRequest.field("response_format.json_schema", "is required")
    else:
        params.constraint.json_schema = json.dumps(wanted.json_schema.schema_)
