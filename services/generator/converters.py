"""Messages to prompts and generations to messages: the only place that knows both."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gristmill.generator.v1 import (
    generator_service_pb2,
    loaded_model_pb2,
    prompt_pb2,
    result_pb2,
    sampling_params_pb2,
)
from gristmill.registry.v1 import model_pb2

from services.generator.constraints import Constraint
from services.generator.engine import Sampling, Tokenizer, Top
from services.generator.generation import Choice, Generation, Prompt
from services.generator.generator import Generator
from services.generator.outbox import Delta
from services.generator.tools import Call, Tool, Toolbox
from services.inference.loaded import Loaded, Wanted
from services.runtime.errors import InvalidRequest, ModelNotReady

ROLES = {
    prompt_pb2.ROLE_SYSTEM: "system",
    prompt_pb2.ROLE_USER: "user",
    prompt_pb2.ROLE_ASSISTANT: "assistant",
    prompt_pb2.ROLE_TOOL: "tool",
}
FINISH = {
    None: result_pb2.FINISH_REASON_UNSPECIFIED,
    "stop": result_pb2.FINISH_REASON_STOP,
    "length": result_pb2.FINISH_REASON_LENGTH,
    "tool_calls": result_pb2.FINISH_REASON_TOOL_CALLS,
    "cancelled": result_pb2.FINISH_REASON_CANCELLED,
}


def wanted(ref: model_pb2.ModelRef, metadata: Mapping[str, str] | None = None) -> Wanted:
    """What a model reference asks for."""
    return Wanted(ref.model, ref.version, ref.alias, metadata or {})


def prompt_in(message: prompt_pb2.Prompt, path: str) -> Prompt:
    """The prompt, or the error that is its own."""
    content = message.WhichOneof("content")
    if content == "text":
        return Prompt(text=message.text.text)
    if content == "tokens":
        return Prompt(ids=tuple(message.tokens.ids))
    if content == "chat":
        return Prompt(
            messages=messages_in(message.chat.messages, f"{path}.chat.messages"),
            toolbox=toolbox_in(message.chat, f"{path}.chat"),
        )
    raise InvalidRequest.field(f"{path}.content", "is required")


def messages_in(
    messages: Iterable[prompt_pb2.ChatMessage], path: str
) -> tuple[dict[str, Any], ...]:
    """Messages as chat templates know them."""
    return tuple(_message_in(one, f"{path}[{i}]") for i, one in enumerate(messages))


def _message_in(message: prompt_pb2.ChatMessage, path: str) -> dict[str, Any]:
    if message.role not in ROLES:
        raise InvalidRequest.field(f"{path}.role", f"{message.role} is not known")
    role = ROLES[message.role]
    if message.tool_calls and role != "assistant":
        raise InvalidRequest.field(f"{path}.tool_calls", "only an assistant calls tools")
    if message.tool_call_id and role != "tool":
        raise InvalidRequest.field(f"{path}.tool_call_id", "only a tool answers a call")
    found: dict[str, Any] = {"role": role, "content": message.content}
    if message.name:
        found["name"] = message.name
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            _call_in(call, f"{path}.tool_calls[{i}]") for i, call in enumerate(message.tool_calls)
        ]
    return found


def _call_in(call: prompt_pb2.ToolCall, path: str) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments_json or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest.field(f"{path}.arguments_json", f"is no JSON: {error}") from error
    function = {"name": call.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


def toolbox_in(chat: prompt_pb2.ChatPrompt, path: str) -> Toolbox | None:
    """The tools of a chat, and which must be called; None where it has none."""
    tools = tools_in(chat.tools, f"{path}.tools")
    choice = chat.tool_choice
    kind = choice.WhichOneof("choice")
    must = kind is not None and (kind == "name" or bool(getattr(choice, kind)))
    if not tools:
        if must and kind != "none":
            raise InvalidRequest.field(f"{path}.tool_choice", "there are no tools to choose from")
        return None
    if not must:
        return Toolbox(tools)
    if kind == "none":
        return Toolbox(tools, "none")
    if kind == "name" and choice.name not in {tool.name for tool in tools}:
        raise InvalidRequest.field(f"{path}.tool_choice.name", "is none of the tools")
    return Toolbox(tools, "required", choice.name if kind == "name" else "")


def tools_in(tools: Iterable[prompt_pb2.Tool], path: str) -> tuple[Tool, ...]:
    """Tools, each of a name of its own."""
    found = tuple(Tool(one.name, one.description, one.parameters_json_schema) for one in tools)
    if len({tool.name for tool in found}) != len(found):
        raise InvalidRequest.field(path, "names a tool twice")
    return found


def sampling_in(params: sampling_params_pb2.SamplingParams) -> Sampling:
    """How tokens are chosen."""

    def given(name: str) -> Any:
        return getattr(params, name) if params.HasField(name) else None  # type: ignore[arg-type]

    seed = given("seed")
    return Sampling(
        max_tokens=0,
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_p=given("top_p"),
        top_k=given("top_k"),
        min_p=given("min_p"),
        presence_penalty=given("presence_penalty"),
        frequency_penalty=given("frequency_penalty"),
        repetition_penalty=given("repetition_penalty"),
        stop_token_ids=tuple(params.stop_token_ids),
        seed=None if seed is None else seed % 2**63,
        logprobs=given("logprobs"),
        logit_bias=tuple(sorted(params.logit_bias.items())),
        ignore_eos=params.ignore_eos,
        constraint=_constraint_in(params.constraint) if params.HasField("constraint") else None,
    )


def _constraint_in(message: sampling_params_pb2.OutputConstraint) -> Constraint:
    kind = message.WhichOneof("constraint")
    if kind == "json_schema":
        return Constraint("json_schema", message.json_schema)
    if kind == "regex":
        return Constraint("regex", message.regex)
    if kind == "choices":
        return Constraint("choices", choices=tuple(message.choices.choices))
    if kind == "json_object" and message.json_object:
        return Constraint("json_object")
    raise InvalidRequest.field("params.constraint.constraint", "is required")


def call_in(call: Call) -> dict[str, Any]:
    """A call of the model's own, as chat templates know it."""
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    return {"id": call.id, "type": "function", "function": function}


def runner(loaded: Loaded[Generator]) -> Generator:
    """What answers for a version."""
    if loaded.runner is None:  # resolved versions are ready, and ready ones have a runner
        raise ModelNotReady("the model is not ready", metadata={"state": "loading"})
    return loaded.runner


def started_out(loaded: Loaded[Generator], generation: Generation) -> generator_service_pb2.Started:
    """The first message of an answer."""
    return generator_service_pb2.Started(
        model=loaded.entry.model,
        version=loaded.entry.version,
        prompt_tokens=len(generation.prompt),
    )


def generation_out(generation: Generation, tokenizer: Tokenizer) -> result_pb2.Generation:
    """A complete answer."""
    return result_pb2.Generation(
        choices=[choice_out(choice, tokenizer) for choice in generation.choices],
        usage=usage_out(generation),
        timings=timings_out(generation),
    )


def choice_out(choice: Choice, tokenizer: Tokenizer | None = None) -> result_pb2.Choice:
    """One answer; without a tokenizer, without what deltas carried already."""
    message = result_pb2.Choice(
        index=choice.index,
        finish_reason=FINISH[choice.finish],
        stop_match=choice.stop_match,
        tool_calls=[
            prompt_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments)
            for call in choice.calls
        ],
    )
    if tokenizer is not None:
        message.text = choice.text
        message.token_ids.extend(choice.ids)
        if choice.logprobs:
            message.logprobs.extend(_logprobs(choice.ids, choice.logprobs, choice.top, tokenizer))
    return message


def delta_out(delta: Delta, tokenizer: Tokenizer) -> generator_service_pb2.Delta:
    """More text of one choice."""
    message = generator_service_pb2.Delta(index=delta.index, text=delta.text, token_ids=delta.ids)
    if delta.logprobs:
        message.logprobs.extend(_logprobs(delta.ids, delta.logprobs, delta.top, tokenizer))
    return message


def _logprobs(
    ids: Sequence[int], values: Sequence[float], tops: Sequence[Top], tokenizer: Tokenizer
) -> list[result_pb2.TokenLogprob]:
    messages = [
        result_pb2.TokenLogprob(token_id=token, text=tokenizer.piece(token), logprob=value)
        for token, value in zip(ids, values, strict=False)
    ]
    for message, top in zip(messages, tops, strict=False):
        for token, value in top:
            message.top.add(token_id=token, text=tokenizer.piece(token), logprob=value)
    return messages


def finished_out(generation: Generation) -> generator_service_pb2.Finished:
    """The last message of a stream."""
    return generator_service_pb2.Finished(
        choices=[choice_out(choice) for choice in generation.choices],
        usage=usage_out(generation),
        timings=timings_out(generation),
    )


def usage_out(generation: Generation) -> result_pb2.Usage:
    """Tokens read and written."""
    return result_pb2.Usage(
        prompt_tokens=len(generation.prompt),
        cached_tokens=generation.cached,
        completion_tokens=generation.completion_tokens,
    )


def timings_out(generation: Generation) -> result_pb2.Timings:
    """Where the time went."""
    return result_pb2.Timings(
        preprocess_us=_us(generation.preprocess_s),
        queue_us=_us(generation.queue_s),
        time_to_first_token_us=_us(generation.first_token_s),
        time_per_output_token_us=_us(generation.per_token_s),
        total_us=_us(generation.total_s),
    )


def _us(seconds: float) -> int:
    return min(2**32 - 1, max(0, round(seconds * 1e6)))


def loaded_out(loaded: Loaded[Generator], aliases: list[str]) -> loaded_model_pb2.LoadedModel:
    """A version in this process."""
    message = loaded_model_pb2.LoadedModel(
        model=loaded.entry.model,
        version=loaded.entry.version,
        state=loaded_model_pb2.LoadState.Value(f"LOAD_STATE_{loaded.state.upper()}"),
        reason=loaded.reason,
        aliases=aliases,
        digest=loaded.entry.digest,
    )
    if loaded.ready_time is not None:
        message.ready_time.FromDatetime(loaded.ready_time)
    if loaded.runner is not None:
        message.engine = loaded.runner.engine.name
        message.device = loaded.runner.engine.device
        message.signature.max_tokens = loaded.runner.max_context_tokens
    return message
