"""A prompt on its way: what is asked, what has been answered. Knows no engine and no wire."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from services.generator.engine import Sampling, Top
from services.generator.tools import Call, Toolbox
from services.runtime.deadline import Deadline

FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]


class Interrupted(Exception):
    """The answer was ended before it was complete."""


def _nothing() -> None:
    """Nobody reads a stream yet."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue: exactly one of text, messages and ids."""

    text: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    ids: tuple[int, ...] | None = None
    toolbox: Toolbox | None = None
    """With messages: what the model may call."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller wants done with a prompt."""

    identity: str
    deadline: Deadline
    arrived: float
    sampling: Sampling
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    priority: int = 5


@dataclass(slots=True)
class Choice:
    """One answer, as far as it has come."""

    index: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_match: str = ""
    calls: list[Call] = field(default_factory=list)
    sent: int = 0
    """Tokens whose text has been sent."""


@dataclass(slots=True)
class Generation:
    """A prompt on its way: what has been read, written and measured."""

    prompt: list[int]
    preprocess_s: float
    started: float
    queue_s: float = 0.0
    first_token_s: float = 0.0
    total_s: float = 0.0
    cached: int = 0
    choices: list[Choice] = field(default_factory=list)
    toolbox: Toolbox | None = None
    interrupted: bool = False
    on_interrupt: Callable[[], None] = _nothing
    """What ends the stream that is being read."""

    def interrupt(self) -> None:
        """End the answer where it is, begun or not: whoever follows it hears Interrupted."""
        self.interrupted = True
        self.on_interrupt()

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, over all choices."""
        return sum(len(choice.ids) for choice in self.choices)

    @property
    def per_token_s(self) -> float:
        """Mean time between tokens after the first; 0 with fewer than two."""
        longest = max((len(choice.ids) for choice in self.choices), default=0)
        return (self.total_s - self.first_token_s) / (longest - 1) if longest > 1 else 0.0
