"""Messages to prompts and generations to messages: the only place that knows both."""

from collections.abc import Mapping

from gristmill.generator.v1 import (
    generator_service_pb2,
    loaded_model_pb2,
    prompt_pb2,
    result_pb2,
    sampling_params_pb2,
)
from gristmill.registry.v1 import model_pb2

from services.generator.engine import Sampling
from services.generator.generator import Choice, Delta, Generation, Generator, Prompt
from services.inference.loaded import Loaded, Wanted
from services.runtime.errors import InvalidRequest, UnsupportedField

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
        _refuse_tools(message.chat, ("tools", "tool_choice"), f"{path}.chat")
        return Prompt(
            messages=tuple(
                _message_in(one, f"{path}.chat.messages[{i}]")
                for i, one in enumerate(message.chat.messages)
            )
        )
    raise InvalidRequest.field(f"{path}.content", "is required")


def _message_in(message: prompt_pb2.ChatMessage, path: str) -> dict[str, str]:
    """One message as chat templates know them."""
    _refuse_tools(message, ("tool_calls", "tool_call_id"), path)
    if message.role not in ROLES:
        raise InvalidRequest.field(f"{path}.role", f"{message.role} is not known")
    found = {"role": ROLES[message.role], "content": message.content}
    return {**found, "name": message.name} if message.name else found


def _refuse_tools(
    message: prompt_pb2.ChatPrompt | prompt_pb2.ChatMessage, names: tuple[str, ...], path: str
) -> None:
    given = {field.name for field, _ in message.ListFields()}
    for name in names:
        if name in given:
            raise UnsupportedField.field(f"{path}.{name}", "no engine here takes tools yet")


def sampling_in(params: sampling_params_pb2.SamplingParams, engine: str) -> Sampling:
    """How tokens are chosen; a field that the engine cannot honour is refused by name."""

    def given(name: str) -> float | None:
        return getattr(params, name) if params.HasField(name) else None  # type: ignore[arg-type]

    if params.logit_bias:
        raise UnsupportedField.field("params.logit_bias", f"{engine} has none")
    if params.HasField("constraint"):
        raise UnsupportedField.field("params.constraint", "is not built yet")
    if params.logprobs:
        raise UnsupportedField.field(
            "params.logprobs", f"{engine} gives only the chosen token's: 0"
        )
    if params.min_p >= 1:
        raise UnsupportedField.field("params.min_p", f"{engine} takes less than 1")
    top_k = given("top_k")
    seed = given("seed")
    return Sampling(
        max_tokens=0,
        temperature=params.temperature if params.HasField("temperature") else 1.0,
        top_p=given("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=given("min_p"),
        presence_penalty=given("presence_penalty"),
        frequency_penalty=given("frequency_penalty"),
        repetition_penalty=given("repetition_penalty"),
        stop_token_ids=tuple(params.stop_token_ids),
        seed=None if seed is None else int(seed) % 2**63,
        logprobs=params.HasField("logprobs"),
        ignore_eos=params.ignore_eos,
    )


def generation_out(generation: Generation) -> result_pb2.Generation:
    """A complete answer."""
    return result_pb2.Generation(
        choices=[choice_out(choice, with_text=True) for choice in generation.choices],
        usage=usage_out(generation),
        timings=timings_out(generation),
    )


def choice_out(choice: Choice, *, with_text: bool) -> result_pb2.Choice:
    """One answer; without what deltas carried already, where they did."""
    message = result_pb2.Choice(
        index=choice.index,
        finish_reason=FINISH[choice.finish],
        stop_match=choice.stop_match,
    )
    if with_text:
        message.text = choice.text
        message.token_ids.extend(choice.ids)
        message.logprobs.extend(_logprobs(choice.ids, choice.logprobs))
    return message


def delta_out(delta: Delta, *, logprobs: bool) -> generator_service_pb2.Delta:
    """More text of one choice."""
    return generator_service_pb2.Delta(
        index=delta.index,
        text=delta.text,
        token_ids=delta.ids,
        logprobs=_logprobs(delta.ids, delta.logprobs) if logprobs else None,
    )


def _logprobs(
    ids: list[int] | tuple[int, ...], values: list[float] | tuple[float, ...]
) -> list[result_pb2.TokenLogprob]:
    pairs = zip(ids, values, strict=False)
    return [result_pb2.TokenLogprob(token_id=t, logprob=v) for t, v in pairs]


def finished_out(generation: Generation) -> generator_service_pb2.Finished:
    """The last message of a stream."""
    return generator_service_pb2.Finished(
        choices=[choice_out(choice, with_text=False) for choice in generation.choices],
        usage=usage_out(generation),
        timings=timings_out(generation),
    )


def usage_out(generation: Generation) -> result_pb2.Usage:
    """Tokens read and written."""
    return result_pb2.Usage(
        prompt_tokens=len(generation.prompt), completion_tokens=generation.completion_tokens
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
