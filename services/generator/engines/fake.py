"""An engine that repeats its prompt, one token a step: for tests, in the tree as an equal.

Steps happen when the test says so (`step`), so time plays no part.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from services.generator.engine import Capabilities, Sampling, Stats, Tokens
from services.inference.templates.chat import ChatTemplate
from services.runtime.admission import Permit

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""Contents in a row."""


class FakeTokenizer:
    """A token is a character; 0 ends."""

    eos_ids = frozenset({0})
    vocabulary = 0x110000
    template: ChatTemplate | None = ChatTemplate(TEMPLATE, {})

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
    """Answers a prompt with the prompt, then stops."""

    name = "fake"
    device = "cpu"
    capabilities = Capabilities(max_logprobs=0, cached_tokens=True, crash_alone=True)
    capacity_tokens = 0

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.stats = Stats()
        self.running: dict[int, asyncio.Queue[Tokens]] = {}
        self._left: dict[int, list[int]] = {}
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
        self.submitted.set()
        finished = False
        try:
            while not finished:
                tokens = await self.running[key].get()
                finished = tokens.finish is not None
                yield tokens
        finally:
            del self.running[key], self._left[key]
            if not finished:
                self.aborted.append(key)
            self.changed.set()

    def step(self) -> None:
        """Give each prompt its next token."""
        for key, queue in self.running.items():
            left = self._left[key]
            if left:
                token = left.pop(0)
                queue.put_nowait(Tokens([token], [-0.5], None if left else "length"))
        self.stats = Stats(running=len(self.running), steps=self.stats.steps + 1)

    async def close(self) -> None:
        """Nothing to give up."""
