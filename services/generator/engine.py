"""What an engine is: prompts as token ids in, tokens out as they come. Knows no wire, no text."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from services.runtime.admission import Permit

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
    logprobs: bool = False
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one step gave one prompt."""

    ids: Sequence[int]
    logprobs: Sequence[float] = ()
    finish: Finish | None = None
    """Set on the last."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine holds now."""

    running: int = 0
    cache_usage: float = 0.0
    """Share of the key-value cache in use, from 0 to 1."""
    steps: int = 0
    orphaned_steps: int = 0
    """Steps in which the engine still held an aborted prompt after the step that ends it."""


class Tokenizer(Protocol):
    """The text side of a model."""

    eos_ids: frozenset[int]
    vocabulary: int
    """Every token id is below this."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text as it is."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special ones left out; a character's missing bytes too."""
        ...

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """A conversation in the model's own template, ready for the answer."""
        ...


class Engine(Protocol):
    """A language model that batches continuously."""

    name: str
    device: str
    stats: Stats

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
    """What every engine can be told."""

    kv_cache_gib: int = 1
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 512
    extra: dict[str, str] = field(default_factory=dict)
