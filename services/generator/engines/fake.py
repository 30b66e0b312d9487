"""An engine that repeats its prompt, one token a step: for tests, in the tree as an equal.

Steps happen when the test says so (`step`), so time plays no part.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from services.generator.engine import Capabilities, Finish, Sampling, Stats, Tokens
from services.runtime.admission import Permit
from services.templates.chat import ChatTemplate

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""Contents in a row."""


class FakeTokenizer:
    """A token is a character; 0 ends."""

    eos_ids = frozenset({0})
    vocabulary = 0x110000
    template: ChatTemplate | None = ChatTemplate(TEMPLATE, {})
    pieces = None

    def encode(self, text: str) -> list[int]:
        """Code points."""
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """Characters."""
        return "".join(chr(token) for token in ids if token)

    def piece(self, token: int) -> bytes:
        """The character."""
        return chr(token).encode(errors="replace")


class FakeEngine:
    """Answers a prompt with the prompt, then stops; at the token that ends, before that."""

    name = "fake"
    device = "cpu"
    capabilities = Capabilities(cached_tokens=True, crash_alone=True)

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.capacity_tokens = 0
        self.stats = Stats()
        self.running: dict[int, asyncio.Queue[Tokens]] = {}
        self._left: dict[int, list[int]] = {}
        self._stops: dict[int, frozenset[int]] = {}
        self._seen: list[list[int]] = []
        self.aborted: list[int] = []
        self._next = 0
        self.submitted = asyncio.Event()
        self.changed = asyncio.Event()

    async def submit(
        self, prompt: Sequence[int], sampling: Sampling, permit: Permit
    ) -> AsyncIterator[Tokens]:
        """One token of the prompt for each step."""
        self._next += 1
        key = self._next
        self.running[key] = asyncio.Queue()
        self._left[key] = [*prompt[: sampling.max_tokens]]
        ends = frozenset() if sampling.ignore_eos else self.tokenizer.eos_ids
        self._stops[key] = ends | set(sampling.stop_token_ids)
        cached = max((_common(prompt, seen) for seen in self._seen), default=0)
        self._seen = [*self._seen[-99:], list(prompt)]
        self.submitted.set()
        finished = False
        try:
            while not finished:
                tokens = await self.running[key].get()
                finished = tokens.finish is not None
                yield replace(tokens, cached=cached)
        finally:
            del self.running[key], self._left[key], self._stops[key]
            if not finished:
                self.aborted.append(key)
            self.changed.set()

    def step(self) -> None:
        """Give each prompt its next token."""
        for key, queue in self.running.items():
            left = self._left[key]
            if left:
                token = left.pop(0)
                ended = token in self._stops[key]
                left[:] = [] if ended else left
                finish: Finish | None = "stop" if ended else None if left else "length"
                queue.put_nowait(Tokens([token], [-0.5], finish))
        self.stats = Stats(running=len(self.running), steps=self.stats.steps + 1)

    async def close(self) -> None:
        """Nothing to give up."""


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with; the last of a prompt is always computed."""
    most = min(len(one) - 1, len(other))
    return next((i for i in range(most) if one[i] != other[i]), most)
