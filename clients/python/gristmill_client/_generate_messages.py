"""Builds generation requests and reads their answers; makes no call."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import prompt_pb2, result_pb2, sampling_params_pb2

from gristmill_client import _errors
from gristmill_client._messages import enum_name, model_ref, reject_unknown
from gristmill_client.completion import (
    Choice,
    Completion,
    ConversationOptions,
    FinishReason,
    GenerateOptions,
    GenerateTimings,
    Message,
    TokenLogprob,
    Tool,
    ToolCall,
    TurnOptions,
    Usage,
)

Prompt = str | Sequence[int] | None
Messages = Sequence[Message] | None
Said = str | Sequence[Message]

_SCALARS = (
    "max_tokens", "temperature", "top_p", "top_k", "min_p", "presence_penalty",
    "frequency_penalty", "repetition_penalty", "seed", "n", "logprobs", "ignore_eos",
)  # fmt: skip
_CONSTRAINTS = {"json_schema", "json_object", "regex", "choices"}
# The contract's bound, a breach of which would end the conversation.
_MAX_TURN_MESSAGES = 128


def generate_request(
    prompt: Prompt, messages: Messages, model: str | None, options: GenerateOptions
) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        model=model_ref(model, options.get("version"), options.get("alias")),
        prompts=[_prompt(prompt, messages, options)],
        params=_params(options),
        priority=options.get("priority", 0),
    )


def stream_request(
    prompt: Prompt, messages: Messages, model: str | None, options: GenerateOptions
) -> pb.GenerateStreamRequest:
    if (options.get("n") or 1) > 1:
        raise ValueError("a stream gives one answer; for n > 1 use generate")
    return pb.GenerateStreamRequest(
        model=model_ref(model, options.get("version"), options.get("alias")),
        prompt=_prompt(prompt, messages, options),
        params=_params(options),
        priority=options.get("priority", 0),
    )


def open_request(
    system: str | None,
    history: Sequence[Message],
    model: str | None,
    options: ConversationOptions,
) -> pb.GenerateBidiRequest:
    reject_unknown(options, ConversationOptions.__annotations__)
    opening = pb.OpenConversation(
        model=model_ref(model, options.get("version"), options.get("alias")),
        history=[_message(message) for message in (*_system_messages(system), *history)],
        params=_params(options),
        tools=_tools(options),
    )
    return pb.GenerateBidiRequest(open=opening)


def turn(said: Said, inherited: ConversationOptions, options: TurnOptions) -> pb.Turn:
    """A turn without id and timeout; `inherited` is what the conversation was opened with.

    The server takes parameters of a turn in the place of the conversation's, so these have both. A
    constraint of the turn's own comes without the conversation's.
    """
    reject_unknown(options, TurnOptions.__annotations__)
    replaced = _CONSTRAINTS if _CONSTRAINTS & options.keys() else set()
    kept = {name: value for name, value in inherited.items() if name not in replaced}
    merged = cast(TurnOptions, {**kept, **options})
    if isinstance(said, Mapping):
        raise TypeError("a turn is a text or a sequence of messages, not one message")
    spoken = user_messages(said, None) if isinstance(said, str) else said
    if not 1 <= len(spoken) <= _MAX_TURN_MESSAGES:
        raise ValueError(f"a turn has 1 to {_MAX_TURN_MESSAGES} messages, not {len(spoken)}")
    return pb.Turn(
        messages=[_message(message) for message in spoken],
        params=_params(merged) if options.keys() - {"priority"} else None,
        priority=merged.get("priority", 0),
    )


def user_messages(text: str, system: str | None) -> list[Message]:
    """The messages of a chat that begins with `text`."""
    return [*_system_messages(system), {"role": "user", "content": text}]


def _system_messages(system: str | None) -> list[Message]:
    return [{"role": "system", "content": system}] if system else []


def _prompt(prompt: Prompt, messages: Messages, options: GenerateOptions) -> prompt_pb2.Prompt:
    reject_unknown(options, GenerateOptions.__annotations__)
    if (prompt is None) == (messages is None):
        raise TypeError("give a prompt (raw text or token ids) or messages (a chat), one of them")
    if messages is not None:
        return prompt_pb2.Prompt(chat=_chat(messages, options))
    if options.get("tools") or options.get("tool_choice"):
        raise TypeError("tools belong to messages: a raw prompt cannot call any")
    if isinstance(prompt, str):
        return prompt_pb2.Prompt(text=prompt_pb2.TextPrompt(text=prompt))
    return prompt_pb2.Prompt(tokens=prompt_pb2.TokenPrompt(ids=prompt))


def _chat(messages: Iterable[Message], options: GenerateOptions) -> prompt_pb2.ChatPrompt:
    return prompt_pb2.ChatPrompt(
        messages=[_message(message) for message in messages],
        tools=_tools(options),
        tool_choice=_tool_choice(options.get("tool_choice")),
    )


def _message(message: Message) -> prompt_pb2.ChatMessage:
    reject_unknown(message, Message.__annotations__)
    return prompt_pb2.ChatMessage(
        role=prompt_pb2.Role.Value(f"ROLE_{message['role'].upper()}"),
        content=message.get("content", ""),
        name=message.get("name", ""),
        tool_calls=[prompt_pb2.ToolCall(**call) for call in message.get("tool_calls", ())],
        tool_call_id=message.get("tool_call_id", ""),
    )


def _tools(options: ConversationOptions) -> list[prompt_pb2.Tool]:
    return [_tool(tool) for tool in options.get("tools") or ()]


def _tool(tool: Tool) -> prompt_pb2.Tool:
    reject_unknown(tool, Tool.__annotations__)
    schema = tool.get("parameters")
    return prompt_pb2.Tool(
        name=tool["name"],
        description=tool.get("description", ""),
        parameters_json_schema=json.dumps(schema) if schema is not None else "",
    )


def _tool_choice(choice: str | None) -> prompt_pb2.ToolChoice | None:
    match choice:
        case None | "auto":
            return None
        case "none":
            return prompt_pb2.ToolChoice(none=True)
        case "required":
            return prompt_pb2.ToolChoice(required=True)
    return prompt_pb2.ToolChoice(name=choice)


def _params(options: TurnOptions) -> sampling_params_pb2.SamplingParams:
    given = cast(Mapping[str, Any], options)
    stop = options.get("stop") or ()
    return sampling_params_pb2.SamplingParams(
        **{name: given[name] for name in _SCALARS if given.get(name) is not None},
        stop=[stop] if isinstance(stop, str) else stop,
        stop_token_ids=options.get("stop_token_ids"),
        logit_bias=options.get("logit_bias"),
        constraint=_constraint(options),
    )


def _constraint(options: TurnOptions) -> sampling_params_pb2.OutputConstraint | None:
    wanted: dict[str, Any] = {}
    if (schema := options.get("json_schema")) is not None:
        wanted["json_schema"] = schema if isinstance(schema, str) else json.dumps(schema)
    if (regex := options.get("regex")) is not None:
        wanted["regex"] = regex
    if choices := options.get("choices"):
        wanted["choices"] = sampling_params_pb2.Choices(choices=choices)
    if options.get("json_object"):
        wanted["json_object"] = True
    if len(wanted) > 1:
        raise ValueError(f"one constraint at a time, not {' and '.join(sorted(wanted))}")
    return sampling_params_pb2.OutputConstraint(**wanted) if wanted else None


def completion(response: pb.GenerateResponse) -> Completion:
    """The completion of a request with one prompt. Raises the prompt's own error if it has one."""
    (result,) = response.results
    if result.HasField("error"):
        raise _errors.from_status(result.error)
    answers = tuple(choice(c) for c in result.generation.choices)
    return Completion(
        text=answers[0].text if answers else "",
        finish_reason=answers[0].finish_reason if answers else None,
        usage=usage(result.generation.usage),
        timings=timings(result.generation.timings),
        model=response.model,
        version=response.version,
        choices=answers,
    )


def choice(message: result_pb2.Choice) -> Choice:
    return Choice(
        index=message.index,
        text=message.text,
        finish_reason=_finish_reason(message.finish_reason),
        token_ids=tuple(message.token_ids),
        logprobs=tuple(logprob(entry) for entry in message.logprobs),
        tool_calls=tuple(ToolCall(c.id, c.name, c.arguments_json) for c in message.tool_calls),
        stop_match=message.stop_match,
    )


def _finish_reason(value: result_pb2.FinishReason.ValueType) -> FinishReason | None:
    name = enum_name(result_pb2.FinishReason.DESCRIPTOR, value, "FINISH_REASON_").lower()
    return None if name == "unspecified" else cast(FinishReason, name)


def logprob(entry: result_pb2.TokenLogprob) -> TokenLogprob:
    top = tuple(TokenLogprob(t.token_id, t.text, t.logprob) for t in entry.top)
    return TokenLogprob(entry.token_id, entry.text, entry.logprob, top)


def usage(message: result_pb2.Usage) -> Usage:
    return Usage(message.prompt_tokens, message.cached_tokens, message.completion_tokens)


def timings(message: result_pb2.Timings) -> GenerateTimings:
    return GenerateTimings(
        preprocess_us=message.preprocess_us,
        queue_us=message.queue_us,
        time_to_first_token_us=message.time_to_first_token_us,
        time_per_output_token_us=message.time_per_output_token_us,
        total_us=message.total_us,
    )
