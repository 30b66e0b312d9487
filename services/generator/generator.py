"""One language model at work: prompt to tokens, admission, engine, text. Knows no wire."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from services.generator.engine import Engine, Sampling, Tokens
from services.generator.text import Detokenizer, StopFilter
from services.inference.manifest import Manifest
from services.runtime import metrics
from services.runtime.admission import Admission, Cost, Permit
from services.runtime.deadline import Deadline
from services.runtime.errors import DeadlineExpired, GristmillError, InvalidRequest

T = TypeVar("T")
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to continue: exactly one of the three."""

    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    ids: tuple[int, ...] | None = None


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


@dataclass(frozen=True, slots=True)
class Delta:
    """More text of one choice."""

    index: int
    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()


@dataclass(slots=True)
class Choice:
    """One answer, as far as it has come."""

    index: int
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_match: str = ""
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
    choices: list[Choice] = field(default_factory=list)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated, over all choices."""
        return sum(len(choice.ids) for choice in self.choices)

    @property
    def per_token_s(self) -> float:
        """Mean time between tokens after the first; 0 with fewer than two."""
        longest = max((len(choice.ids) for choice in self.choices), default=0)
        return (self.total_s - self.first_token_s) / (longest - 1) if longest > 1 else 0.0


class Generator:
    """A version of a language model, ready to answer."""

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        admission: Admission,
        threads: ThreadPoolExecutor,
        default_max_tokens: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.manifest = manifest
        self.engine = engine
        self.admission = admission
        self._threads = threads
        self._default_max_tokens = default_max_tokens
        self._clock = clock
        # Not `self`: the metrics live as long as the process, the model need not.
        name = manifest.name
        metrics.QUEUE_ITEMS.labels(name).set_function(lambda: admission.items)
        metrics.QUEUE_LIMIT.labels(name).set(admission.limits.max_items)
        metrics.GEN_RUNNING.labels(name).set_function(lambda: engine.stats.running)
        metrics.GEN_CACHE.labels(name).set_function(lambda: engine.stats.cache_usage)
        metrics.GEN_ORPHANED.labels(name).set_function(lambda: engine.stats.orphaned_steps)

    @property
    def max_context_tokens(self) -> int:
        """The longest prompt and answer together."""
        return self.manifest.limits.max_context_tokens

    async def encode(self, prompt: Prompt, path: str = "prompt") -> list[int]:
        """The token ids of a prompt, the template's own included; `path` names it in errors."""
        if prompt.ids is not None:
            self._check_ids(prompt.ids, path)
            return list(prompt.ids)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._encode, prompt, path)

    def _check_ids(self, ids: tuple[int, ...], path: str) -> None:
        """An engine would look up a token that it does not have beyond the end of its table."""
        size = self.engine.tokenizer.vocabulary
        for index, token in enumerate(ids):
            if token >= size:
                raise InvalidRequest.field(
                    f"{path}.tokens.ids[{index}]", f"is {token}; the vocabulary has {size} tokens"
                )

    def _encode(self, prompt: Prompt, path: str) -> list[int]:
        if prompt.messages is not None:
            try:
                text = self.engine.tokenizer.render(prompt.messages)
            except RuntimeError as error:
                raise InvalidRequest.field(
                    f"{path}.chat", "the model's chat template refuses it"
                ) from error
            return self.engine.tokenizer.encode(text)
        return self.engine.tokenizer.encode(prompt.text or "")

    async def prepare(
        self, prompt: Prompt, asked: Asked, path: str = "prompt"
    ) -> tuple[Generation, Sampling]:
        """The prompt as tokens, within the context, with what that leaves for the answer."""
        started = self._clock()
        ids = await self.encode(prompt, path)
        generation = Generation(ids, self._clock() - started, asked.arrived)
        room = self.max_context_tokens - len(ids)
        if not ids:
            raise InvalidRequest.field(path, "has no tokens")
        if room < 1 or (asked.max_tokens is not None and asked.max_tokens > room):
            raise InvalidRequest.field(
                "params.max_tokens" if room >= 1 else path,
                f"{len(ids)} prompt tokens and {asked.max_tokens or 1} more do not fit "
                f"the context of {self.max_context_tokens}",
            )
        limit = asked.max_tokens or min(room, self._default_max_tokens)
        return generation, replace(asked.sampling, max_tokens=limit)

    def admit(self, generation: Generation, sampling: Sampling, asked: Asked) -> Permit:
        """A permit for all the choices of a prompt."""
        tokens = len(generation.prompt)
        cost = Cost(asked.n, tokens * asked.n, float((tokens + sampling.max_tokens) * asked.n))
        try:
            return self.admission.admit(asked.identity, asked.deadline, cost)
        except GristmillError as error:
            metrics.REJECTED.labels(self.manifest.name, error.reason_given).inc()
            raise

    async def stream(
        self, generation: Generation, sampling: Sampling, asked: Asked, permit: Permit
    ) -> AsyncIterator[Delta]:
        """Deltas of all choices; when it ends, `generation` is complete."""
        generation.queue_s = self._clock() - generation.started
        generation.choices = [Choice(index) for index in range(asked.n)]
        deltas: asyncio.Queue[Delta | BaseException | None] = asyncio.Queue()
        # Choices with one seed would all be the same answer.
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        tasks = [
            asyncio.create_task(
                self._choice(
                    choice,
                    generation,
                    replace(sampling, seed=seed + choice.index),
                    asked,
                    permit,
                    deltas,
                )
            )
            for choice in generation.choices
        ]
        left = len(tasks)
        try:
            while left:
                one = await self._within(asked.deadline, deltas.get())
                if isinstance(one, BaseException):
                    raise one
                if one is None:
                    left -= 1
                else:
                    yield one
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            generation.total_s = self._clock() - generation.started
            self._measure(generation)

    async def _within(self, deadline: Deadline, waiting: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(max(0.0, deadline.remaining(self._clock()))):
                return await waiting
        except TimeoutError:
            raise DeadlineExpired("the deadline passed before the answer was complete") from None

    async def _choice(
        self,
        choice: Choice,
        generation: Generation,
        sampling: Sampling,
        asked: Asked,
        permit: Permit,
        deltas: "asyncio.Queue[Delta | BaseException | None]",
    ) -> None:
        """Follow one choice to its end."""
        text = Detokenizer(self.engine.tokenizer.decode)
        stops = StopFilter(asked.stop)
        try:
            async with aclosing(
                self.engine.submit(generation.prompt, sampling, permit)  # type: ignore[type-var]
            ) as steps:
                async for tokens in steps:
                    if not generation.first_token_s:
                        generation.first_token_s = self._clock() - generation.started
                    delta = self._advance(choice, tokens, text, stops, sampling)
                    if delta.text:
                        deltas.put_nowait(delta)
                    if choice.finish is not None:
                        break
        except Exception as error:
            deltas.put_nowait(error)
        else:
            deltas.put_nowait(None)

    def _advance(
        self,
        choice: Choice,
        tokens: Tokens,
        text: Detokenizer,
        stops: StopFilter,
        sampling: Sampling,
    ) -> Delta:
        """Take in what one step gave; the delta has the tokens since the last that had text."""
        eos = self.engine.tokenizer.eos_ids
        ended = bool(tokens.ids) and tokens.finish == "stop" and tokens.ids[-1] in eos
        ids = list(tokens.ids[:-1] if ended else tokens.ids)
        choice.ids += ids
        if sampling.logprobs:
            choice.logprobs += tokens.logprobs[: len(ids)]
        fresh = stops.push(text.push(ids) if ids else "")
        if tokens.finish is not None and not stops.matched:
            fresh += stops.push(text.flush())
            fresh += "" if stops.matched else stops.flush()
        if stops.matched:
            choice.finish, choice.stop_match = "stop", stops.matched
        elif tokens.finish is not None:
            choice.finish = tokens.finish
            if tokens.finish == "stop" and ids and ids[-1] in sampling.stop_token_ids:
                choice.stop_match = str(ids[-1])
        choice.text += fresh
        if not fresh:
            return Delta(choice.index, "", ())
        sent, choice.sent = choice.sent, len(choice.ids)
        return Delta(choice.index, fresh, tuple(choice.ids[sent:]), tuple(choice.logprobs[sent:]))

    def _measure(self, generation: Generation) -> None:
        name = self.manifest.name
        metrics.GEN_TOKENS.labels(name, "prompt").inc(len(generation.prompt))
        metrics.GEN_TOKENS.labels(name, "completion").inc(generation.completion_tokens)
        if generation.first_token_s:
            metrics.GEN_FIRST_TOKEN.labels(name).observe(generation.first_token_s)
        if generation.per_token_s:
            metrics.GEN_PER_TOKEN.labels(name).observe(generation.per_token_s)
        complete = all(choice.finish for choice in generation.choices)
        metrics.GEN_DURATION.labels(name, "" if complete else "incomplete").observe(
            generation.total_s
        )

    async def close(self) -> None:
        """End the engine."""
        await self.engine.close()
