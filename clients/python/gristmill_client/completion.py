"""What goes into a generation and what comes out, as plain values; knows no wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
Role = Literal["system", "user", "assistant", "tool"]


class FunctionCall(TypedDict):
    """A tool call to put into the history: its id, the tool's name, its arguments as JSON text."""

    id: str
    name: str
    arguments_json: str


class Message(TypedDict, total=False):
    """One message of a chat. `tool_call_id` belongs to role "tool", `tool_calls` to "assistant"."""

    role: Required[Role]
    content: str
    name: str
    tool_calls: Sequence[FunctionCall]
    tool_call_id: str


class Tool(TypedDict, total=False):
    """A function that the model may call; `parameters` is the JSON Schema of its arguments."""

    name: Required[str]
    description: str
    parameters: Mapping[str, Any]


class TurnOptions(TypedDict, total=False):
    """The keyword arguments of `Conversation.say`, all optional; every other call has them too.

    `max_tokens`: most tokens of each answer; left out, what the context leaves. The sampling fields
    are those of gristmill.generator.v1.SamplingParams with its bounds; a field that the engine
    cannot honour is refused (`InvalidRequest`, UNSUPPORTED_FIELD), never ignored. `stop`: a text or
    up to 16. `logprobs`: how many likeliest tokens to report at each place (0 to 20). At most one
    of `json_schema` (a mapping, or JSON text), `json_object`, `regex` and `choices` constrains the
    output. `priority`: 1 (most urgent) to 9, 0 is the server's default.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    seed: int | None
    logprobs: int | None
    logit_bias: Mapping[int, float]
    ignore_eos: bool
    json_schema: Mapping[str, Any] | str | None
    json_object: bool
    regex: str | None
    choices: Sequence[str]
    priority: int


class ConversationOptions(TurnOptions, total=False):
    """The keyword arguments of `converse`: TurnOptions, for all turns, and these.

    `version` or `alias` choose among the model's versions; neither: its traffic policy, else
    "live". `tools`: what the model may call in chat messages.
    """

    version: int | None
    alias: str | None
    tools: Sequence[Tool]


class GenerateOptions(ConversationOptions, total=False):
    """The keyword arguments of `generate`, `stream` and `chat`: ConversationOptions and these.

    `n`: answers to draw (1 to 16; not for `stream`). `tool_choice`: "auto", "none", "required" or a
    tool's name; belongs to chat messages, as `tools` does.
    """

    n: int | None
    tool_choice: str | None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written. `cached_tokens` of the prompt were found in the prefix cache."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class GenerateTimings:
    """Where the time of one prompt went, in microseconds from the arrival of the call."""

    preprocess_us: int
    queue_us: int
    time_to_first_token_us: int
    time_per_output_token_us: int
    total_us: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token, its bytes (perhaps part of a character) and its natural log probability.

    `top` holds the likeliest tokens at this place, best first.
    """

    token_id: int
    text: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the model; its arguments are JSON text."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `stop_match` is the stop string that ended it, "" where none did."""

    index: int
    text: str
    finish_reason: FinishReason | None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    stop_match: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answers to one prompt; `text`, `finish_reason`, `tool_calls` are the first answer's."""

    text: str
    finish_reason: FinishReason | None
    usage: Usage
    timings: GenerateTimings
    model: str
    version: int
    choices: tuple[Choice, ...] = ()

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return self.choices[0].tool_calls if self.choices else ()
