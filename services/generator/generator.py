"""One language model at work: prompt to tokens, admission, a place, the engine, text.

Knows no wire.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, replace

from services.generator import constraints, metering, schemas
from services.generator.engine import Engine, Sampling, Tokens
from services.generator.fairness import Entry
from services.generator.generation import Asked, Choice, Generation, Interrupted, Prompt
from services.generator.outbox import Delta, Outbox
from services.generator.slots import Slots
from services.generator.text import Detokenizer, PieceReader, StopFilter
from services.generator.tools import MISTRAL, CallReader, written_out
from services.inference.manifest import Manifest
from services.runtime import metrics
from services.runtime.admission import Admission, Cost, Permit, hide, show
from services.runtime.errors import (
    DeadlineExpired,
    GristmillError,
    InvalidRequest,
    UnsupportedField,
)


@dataclass(slots=True)
class _Reader:
    """What turns the tokens of one choice into its text."""

    text: Detokenizer | PieceReader
    stops: StopFilter
    calls: CallReader | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a generator does without being asked."""

    default_max_tokens: int = 512
    max_running: int = 64
    max_unsent_tokens: int = 4096
    """Generated and not read: beyond that a slow reader is cut off."""
    coalesce_s: float = 0.0
    """What comes within this of the last message goes into one; 0: each step is sent."""


class Generator:
    """A version of a language model, ready to answer."""

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        admission: Admission,
        threads: ThreadPoolExecutor,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.manifest = manifest
        self.engine = engine
        self.admission = admission
        self.limits = limits or Limits()
        self.slots = Slots(self.limits.max_running, clock)
        self._threads = threads
        self._clock = clock
        show(manifest.name, admission)
        metering.show(manifest.name, engine, self.slots)

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
        if prompt.messages is None:
            return self.engine.tokenizer.encode(prompt.text or "")
        template = self.engine.tokenizer.template
        if template is None:
            raise UnsupportedField.field(f"{path}.chat", "the model has no chat template")
        tools = prompt.toolbox.tools if prompt.toolbox and prompt.toolbox.choice != "none" else ()
        try:
            if template.knows_tools:
                text = template.render(prompt.messages, [tool.described() for tool in tools])
            else:
                text = template.render(written_out(prompt.messages, tools))
        except InvalidRequest as error:
            raise InvalidRequest.field(f"{path}.chat", error.message) from error
        return self.engine.tokenizer.encode(text)

    async def prepare(
        self, prompt: Prompt, asked: Asked, path: str = "prompt"
    ) -> tuple[Generation, Sampling]:
        """The prompt as tokens, within the context, with what that leaves for the answer."""
        started = self._clock()
        sampling = self._checked(prompt, asked, path)
        ids = await self.encode(prompt, path)
        generation = Generation(ids, self._clock() - started, asked.arrived, toolbox=prompt.toolbox)
        room = self.max_context_tokens - len(ids)
        if not ids:
            raise InvalidRequest.field(path, "has no tokens")
        if room < 1 or (asked.max_tokens is not None and asked.max_tokens > room):
            raise InvalidRequest.field(
                "params.max_tokens" if room >= 1 else path,
                f"{len(ids)} prompt tokens and {asked.max_tokens or 1} more do not fit "
                f"the context of {self.max_context_tokens}",
            )
        limit = asked.max_tokens or min(room, self.limits.default_max_tokens)
        self._check_cache(len(ids), limit, path)
        return generation, replace(sampling, max_tokens=limit)

    def check(self, sampling: Sampling) -> None:
        """Refuse by field what is malformed, too large, or more than this engine can do."""
        if sampling.constraint is not None:
            constraints.check(sampling.constraint, "params.constraint")
        self.engine.capabilities.check(sampling, self.engine.name)
        vocabulary = self.engine.tokenizer.vocabulary
        for token, _ in sampling.logit_bias:
            if token >= vocabulary:
                said = f"names token {token}; the vocabulary has {vocabulary} tokens"
                raise InvalidRequest.field("params.logit_bias", said)

    def _checked(self, prompt: Prompt, asked: Asked, path: str) -> Sampling:
        """How tokens are chosen, a tool that must be called included."""
        sampling, toolbox = asked.sampling, prompt.toolbox
        if toolbox is None:
            return sampling
        for index, tool in enumerate(toolbox.tools):
            if tool.parameters:
                where = f"{path}.chat.tools[{index}].parameters_json_schema"
                schemas.check(tool.parameters, where)
        if not toolbox.forced:
            return sampling
        if sampling.constraint is not None:
            said = "cannot be had together with a tool that must be called"
            raise InvalidRequest.field("params.constraint", said)
        constraint = toolbox.constraint()
        schemas.check(constraint.value, f"{path}.chat.tools")
        forced = replace(sampling, constraint=constraint)
        self.engine.capabilities.check(forced, self.engine.name)
        return forced

    def _check_cache(self, prompt: int, limit: int, path: str) -> None:
        capacity = self.engine.capacity_tokens
        if capacity and prompt + limit > capacity:
            raise InvalidRequest.field(
                path if prompt >= capacity else "params.max_tokens",
                f"{prompt} prompt tokens and {limit} more do not fit the key-value cache of "
                f"{capacity} tokens",
            )

    def admit(self, generation: Generation, sampling: Sampling, asked: Asked) -> Permit:
        """A permit for all the choices of a prompt."""
        tokens = len(generation.prompt)
        work = float((tokens + sampling.max_tokens) * asked.n)
        entry = Entry(asked.identity, asked.priority, work)
        # Before its first token a caller has nothing; what comes after is its own choice.
        wait_s = self.slots.predicted_wait_s(entry) + self.slots.predicted_first_s(tokens)
        cost = Cost(asked.n, tokens * asked.n, work)
        try:
            return self.admission.admit(
                asked.identity, asked.deadline, cost, wait_s, self.slots.drain_s
            )
        except GristmillError as error:
            metrics.REJECTED.labels(self.manifest.name, error.reason_given).inc()
            raise

    async def stream(
        self, generation: Generation, sampling: Sampling, asked: Asked, permit: Permit
    ) -> AsyncIterator[Delta]:
        """Deltas of all choices; when it ends, `generation` is complete."""
        generation.choices = [Choice(index) for index in range(asked.n)]
        outbox = Outbox(asked.n, self.limits.max_unsent_tokens)
        generation.on_interrupt = lambda: outbox.fail(Interrupted())
        if generation.interrupted:
            outbox.fail(Interrupted())
        # Choices with one seed would all be the same answer.
        seed = secrets.randbits(31) if sampling.seed is None else sampling.seed
        tasks = [
            asyncio.create_task(
                self._choice(
                    choice,
                    generation,
                    replace(sampling, seed=(seed + choice.index) % 2**63),
                    asked,
                    permit,
                    outbox,
                )
            )
            for choice in generation.choices
        ]
        late = DeadlineExpired("the deadline passed before the answer was complete")
        remaining_s = max(0.0, asked.deadline.remaining(self._clock()))
        timer = asyncio.get_running_loop().call_later(remaining_s, outbox.fail, late)
        error = ""
        try:
            while deltas := await outbox.take():
                if asked.deadline.expired(self._clock()):
                    raise late
                for delta in deltas:
                    yield delta
                if self.limits.coalesce_s:
                    await asyncio.sleep(self.limits.coalesce_s)
        except GristmillError as failed:
            error = failed.reason_given
            raise
        finally:
            timer.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            generation.total_s = self._clock() - generation.started
            metering.measure(self.manifest.name, generation, error)

    async def _choice(
        self,
        choice: Choice,
        generation: Generation,
        sampling: Sampling,
        asked: Asked,
        permit: Permit,
        outbox: Outbox,
    ) -> None:
        """Follow one choice to its end."""
        work = float(len(generation.prompt) + sampling.max_tokens)
        try:
            reader = self._reader(generation, asked)
            async with self.slots.one(Entry(asked.identity, asked.priority, work)):
                began = self._clock()
                generation.queue_s = generation.queue_s or began - generation.started
                async with aclosing(
                    self.engine.submit(generation.prompt, sampling, permit)  # type: ignore[type-var]
                ) as steps:
                    async for tokens in steps:
                        if not choice.ids:
                            self._began(generation, tokens, began)
                        delta = self._advance(choice, tokens, reader, sampling)
                        if delta.text:
                            outbox.put(delta)
                        if choice.finish is not None:
                            break
        except Exception as error:
            outbox.end(error)
        else:
            outbox.end()

    def _reader(self, generation: Generation, asked: Asked) -> _Reader:
        tools = generation.toolbox
        calls = None
        if tools is not None and tools.choice != "none":
            template = self.engine.tokenizer.template
            mistral = template is not None and MISTRAL in template.source
            calls = CallReader(whole=tools.forced, mistral=mistral)
        tokenizer = self.engine.tokenizer
        text = (
            Detokenizer(tokenizer.decode)
            if tokenizer.pieces is None
            else PieceReader(tokenizer.pieces)
        )
        return _Reader(text, StopFilter(asked.stop), calls)

    def _began(self, generation: Generation, tokens: Tokens, began: float) -> None:
        """The first tokens of a choice have come."""
        now = self._clock()
        self.slots.first_token(len(generation.prompt), now - began)
        generation.cached = max(generation.cached, tokens.cached)
        if not generation.first_token_s:
            generation.first_token_s = now - generation.started

    def _advance(
        self, choice: Choice, tokens: Tokens, reader: _Reader, sampling: Sampling
    ) -> Delta:
        """Take in what one step gave; the delta has the tokens since the last that had text."""
        eos = self.engine.tokenizer.eos_ids
        ended = bool(tokens.ids) and tokens.finish == "stop" and tokens.ids[-1] in eos
        ids = list(tokens.ids[:-1] if ended else tokens.ids)
        choice.ids += ids
        if sampling.logprobs is not None:
            choice.logprobs += tokens.logprobs[: len(ids)]
            choice.top += [tuple(top[: sampling.logprobs]) for top in tokens.top[: len(ids)]]
        text, stops = reader.text, reader.stops
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
        if reader.calls is not None:
            fresh = self._read_calls(choice, reader.calls, fresh)
        choice.text += fresh
        if not fresh:
            return Delta(choice.index, "", ())
        sent, choice.sent = choice.sent, len(choice.ids)
        return Delta(
            choice.index,
            fresh,
            tuple(choice.ids[sent:]),
            tuple(choice.logprobs[sent:]),
            tuple(choice.top[sent:]),
        )

    def _read_calls(self, choice: Choice, calls: CallReader, fresh: str) -> str:
        """The text without the calls in it."""
        fresh = calls.push(fresh)
        if choice.finish is not None:
            fresh += calls.flush()
            choice.calls = calls.calls
            if calls.calls and choice.finish == "stop":
                choice.finish = "tool_calls"
        return fresh

    async def close(self) -> None:
        """End the engine."""
        hide(self.manifest.name, self.admission)
        metering.hide(self.manifest.name, self.engine, self.slots)
        await self.engine.close()
