"""What an engine is: prompts as token ids in, tokens out as they come. Knows no wire, no text."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from services.generator.constraints import Constraint, Kind
from services.runtime.admission import Permit
from services.runtime.errors import UnsupportedField
from services.templates.chat import ChatTemplate

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; None leaves the engine's own default."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    """How many of the likeliest tokens to tell of at each place; 0: only the chosen one."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    ignore_eos: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What of the contract an engine can do; the rest is refused by the field's name."""

    max_logprobs: int = 0
    """Most alternatives that it tells of; 0: only the chosen token."""
    logit_bias: bool = False
    min_p_of_one: bool = False
    constraints: frozenset[Kind] = frozenset()
    cached_tokens: bool = False
    """Whether it says how much of a prompt was in the prefix cache."""
    crash_alone: bool = False
    """Whether a prompt that only the engine finds bad fails by itself; else the engine may have to
    be started again, once for each such constraint."""

    def check(self, sampling: Sampling, engine: str) -> None:
        """Raise UnsupportedField for what `engine` cannot do."""
        if sampling.logprobs is not None and sampling.logprobs > self.max_logprobs:
            said = f"{engine} tells of at most {self.max_logprobs} besides the chosen token"
            raise UnsupportedField.field("params.logprobs", said)
        if sampling.logit_bias and not self.logit_bias:
            raise UnsupportedField.field("params.logit_bias", f"{engine} has none")
        if sampling.min_p is not None and sampling.min_p >= 1 and not self.min_p_of_one:
            raise UnsupportedField.field("params.min_p", f"{engine} takes less than 1")
        if sampling.constraint is not None and sampling.constraint.kind not in self.constraints:
            path = f"params.constraint.{sampling.constraint.kind}"
            raise UnsupportedField.field(path, f"{engine} has none")


Top = tuple[tuple[int, float], ...]
"""The likeliest tokens at a place with their log probabilities, best first."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one step gave one prompt."""

    ids: Sequence[int]
    logprobs: Sequence[float] = ()
    finish: Finish | None = None
    """Set on the last."""
    top: Sequence[Top] = ()
    cached: int = 0
    """Tokens of the prompt that were in the prefix cache, where the engine tells."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine holds now."""

    running: int = 0
    cache_usage: float = 0.0
    """Share of the key-value cache in use, from 0 to 1."""
    steps: int = 0
    orphaned_steps: int = 0
    """Steps in which the engine still held an aborted prompt after the step that ends it."""
    waiting: int = 0
    """Prompts that the engine has taken and not begun."""


class Tokenizer(Protocol):
    """The text side of a model."""

    eos_ids: frozenset[int]
    vocabulary: int
    """Every token id is below this."""
    template: ChatTemplate | None
    """The model's own; None where it has none."""
    pieces: Sequence[bytes] | None
    """By token, the bytes that it adds to a text, none for special ones; None where a text is more
    than its tokens one after the other."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special ones left out; a character's missing bytes too."""
        ...

    def piece(self, token: int) -> bytes:
        """What one token stands for, special ones too; may be a part of a character."""
        ...


class Engine(Protocol):
    """A language model that batches continuously."""

    name: str
    device: str
    stats: Stats
    capabilities: Capabilities
    capacity_tokens: int
    """Tokens that its key-value cache holds; 0: not known."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The text side of its model."""
        ...

    def submit(
        self, prompt: Sequence[int], sampling: Sampling, permit: Permit
    ) -> AsyncIterator[Tokens]:
        """Tokens until the last; closing the iterator aborts the prompt within one step."""
        ...

    async def close(self) -> None:
        """End the engine."""
        ...


@dataclass(slots=True)
class EngineSettings:
    """What every engine can be told; `extra` holds what only one of them knows."""

    kv_cache_gib: float = 1.0
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    max_context_tokens: int = 0
    """0: what the model says."""
    extra: Mapping[str, Any] = field(default_factory=dict)
