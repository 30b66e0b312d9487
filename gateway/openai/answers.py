"""Answers of ours as the OpenAI API has them: whole ones, chunks, errors. Sends nothing."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gristmill.generator.v1 import generator_service_pb2 as pb
from gristmill.generator.v1 import prompt_pb2, result_pb2

from gateway.errors import Answer

Json = dict[str, Any]
CHAT_KIND, TEXT_KIND = "chat.completion", "text_completion"
_FINISH = {
    result_pb2.FINISH_REASON_STOP: "stop",
    result_pb2.FINISH_REASON_LENGTH: "length",
    result_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    result_pb2.FINISH_REASON_CANCELLED: "stop",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}
# Where our contract has another name for what the caller sent.
_PARAMS = (
    ("params.constraint", "response_format"),
    ("params.", ""),
    ("prompt.chat.tools", "tools"),
    ("prompt.chat.tool_choice", "tool_choice"),
    ("prompt.chat.messages", "messages"),
    ("prompt.chat", "messages"),
    ("prompt.text", "prompt"),
    ("prompt.tokens", "prompt"),
    ("model.model", "model"),
)


@dataclass
class Envelope:
    """What all parts of an answer have in common."""

    kind: str
    id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    fingerprint: str = ""

    def began(self, started: pb.Started) -> None:
        """The version that answers is known."""
        self.fingerprint = f"{started.model}-v{started.version}"

    def of(self, choices: Sequence[Json], usage: Json | None, *, chunk: bool = False) -> Json:
        """An answer, or a chunk of one."""
        name = f"{self.kind}.chunk" if chunk and self.kind == CHAT_KIND else self.kind
        return {
            "id": self.id,
            "object": name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": list(choices),
            "usage": usage,
        }


def usage(messages: Iterable[result_pb2.Usage]) -> Json:
    """Tokens read and written, over all prompts."""
    prompt = cached = completion = 0
    for one in messages:
        prompt += one.prompt_tokens
        cached += one.cached_tokens
        completion += one.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


@dataclass
class Gathered:
    """One choice, as far as it has come."""

    text: str = ""
    logprobs: list[result_pb2.TokenLogprob] = field(default_factory=list)
    last: result_pb2.Choice | None = None

    def add(self, delta: pb.Delta) -> None:
        """More of it."""
        self.text += delta.text
        self.logprobs += delta.logprobs


def chat_choice(index: int, gathered: Gathered, *, logprobs: bool) -> Json:
    """A whole choice of a chat."""
    last = gathered.last or result_pb2.Choice()
    calls = [_call(call) for call in last.tool_calls]
    message: Json = {"role": "assistant", "content": gathered.text or None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    else:
        message["content"] = gathered.text
    return {
        "index": index,
        "message": message,
        "logprobs": {"content": _chat_logprobs(gathered.logprobs)} if logprobs else None,
        "finish_reason": _FINISH.get(last.finish_reason),
    }


def text_choice(index: int, gathered: Gathered, *, logprobs: bool) -> Json:
    """A whole choice of a completion."""
    last = gathered.last or result_pb2.Choice()
    return {
        "index": index,
        "text": gathered.text,
        "logprobs": _text_logprobs(gathered.logprobs, 0) if logprobs else None,
        "finish_reason": _FINISH.get(last.finish_reason),
    }


class ChatParts:
    """The choices of the chunks of a chat, message by message of ours."""

    def __init__(self, count: int) -> None:
        self._count = count

    def of(self, event: pb.GenerateStreamResponse) -> Iterator[Json]:
        """One for each chunk."""
        kind = event.WhichOneof("event")
        if kind == "started":
            for index in range(self._count):
                yield _piece(index, {"role": "assistant", "content": "", "refusal": None})
        elif kind == "delta":
            delta = event.delta
            logprobs = {"content": _chat_logprobs(delta.logprobs)} if delta.logprobs else None
            yield _piece(delta.index, {"content": delta.text}, logprobs=logprobs)
        elif kind == "finished":
            for choice in event.finished.choices:
                if choice.tool_calls:
                    calls = [{"index": i, **_call(one)} for i, one in enumerate(choice.tool_calls)]
                    yield _piece(choice.index, {"tool_calls": calls})
                yield _piece(choice.index, {}, finish=_FINISH.get(choice.finish_reason))


class TextParts:
    """The same for a completion, whose log probabilities say where in the text they stand."""

    def __init__(self) -> None:
        self._lengths: dict[int, int] = {}

    def of(self, event: pb.GenerateStreamResponse) -> Iterator[Json]:
        """One for each chunk."""
        kind = event.WhichOneof("event")
        if kind == "delta":
            delta = event.delta
            offset = self._lengths.get(delta.index, 0)
            self._lengths[delta.index] = offset + len(delta.text)
            logprobs = _text_logprobs(delta.logprobs, offset) if delta.logprobs else None
            yield _text_piece(delta.index, delta.text, logprobs)
        elif kind == "finished":
            for choice in event.finished.choices:
                yield _text_piece(choice.index, "", None, _FINISH.get(choice.finish_reason))


def _text_piece(index: int, text: str, logprobs: Json | None, finish: str | None = None) -> Json:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def _piece(
    index: int, delta: Json, logprobs: Json | None = None, finish: str | None = None
) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _call(call: prompt_pb2.ToolCall) -> Json:
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.id, "type": "function", "function": function}


def _chat_logprobs(entries: Iterable[result_pb2.TokenLogprob]) -> list[Json]:
    return [{**_token(one), "top_logprobs": [_token(top) for top in one.top]} for one in entries]


def _token(entry: result_pb2.TokenLogprob | result_pb2.TopLogprob) -> Json:
    text = entry.text.decode(errors="replace")
    return {"token": text, "logprob": entry.logprob, "bytes": list(entry.text)}


def _text_logprobs(entries: Iterable[result_pb2.TokenLogprob], offset: int) -> Json:
    found: Json = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in entries:
        text = one.text.decode(errors="replace")
        found["tokens"].append(text)
        found["token_logprobs"].append(one.logprob)
        top = {other.text.decode(errors="replace"): other.logprob for other in one.top}
        found["top_logprobs"].append(top or {text: one.logprob})
        found["text_offset"].append(offset)
        offset += len(text)
    return found


def error(answer: Answer) -> Json:
    """An error as its clients read it."""
    said = answer.body["error"]
    return {
        "error": {
            "message": said["message"],
            "type": _TYPES.get(answer.http, "server_error"),
            "param": _param(said["details"]),
            "code": _code(answer),
        }
    }


def _code(answer: Answer) -> str:
    return "model_not_found" if answer.reason == "MODEL_NOT_FOUND" else answer.reason.lower()


def _param(details: Sequence[Json]) -> str | None:
    for detail in details:
        for violation in detail.get("fieldViolations", ()):
            path = str(violation.get("field", ""))
            for ours, theirs in _PARAMS:
                if path.startswith(ours):
                    return (theirs + path.removeprefix(ours)).strip(".") or None
            return path or None
    return None
