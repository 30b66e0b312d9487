"""What a stream of text has told so far, message by message; makes no call."""

from __future__ import annotations

from gristmill.generator.v1.generator_service_pb2 import (
    GenerateBidiResponse,
    GenerateStreamResponse,
)

from gristmill_client import _generate_messages as messages
from gristmill_client.completion import Choice, FinishReason, GenerateTimings, TokenLogprob, Usage


class TextSoFar:
    """The running result of a text stream.

    `text` joins the deltas received so far and is the whole answer once the stream has ended.
    `model`, `version` and `prompt_tokens` are known from the first delta on; `finish_reason`,
    `usage`, `timings` and `choice` (with tool calls and stop match) once the stream has ended by
    itself: they are None before, and stay None where it was closed or failed.
    """

    def __init__(self) -> None:
        self._deltas: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.model = ""
        self.version = 0
        self.prompt_tokens = 0
        self.choice: Choice | None = None
        self.usage: Usage | None = None
        self.timings: GenerateTimings | None = None

    @property
    def text(self) -> str:
        return "".join(self._deltas)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.choice.finish_reason if self.choice else None

    def _feed(self, message: GenerateStreamResponse | GenerateBidiResponse) -> str | None:
        """Takes a message; gives its text if it brought any."""
        match message.WhichOneof("event"):
            case "started":
                self.model = message.started.model
                self.version = message.started.version
                self.prompt_tokens = message.started.prompt_tokens
            case "delta":
                self._deltas.append(message.delta.text)
                self.token_ids.extend(message.delta.token_ids)
                self.logprobs.extend(messages.logprob(entry) for entry in message.delta.logprobs)
                return message.delta.text
            case "finished":
                self.choice = next((messages.choice(c) for c in message.finished.choices), None)
                self.usage = messages.usage(message.finished.usage)
                self.timings = messages.timings(message.finished.timings)
        return None
