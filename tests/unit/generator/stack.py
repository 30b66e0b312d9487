"""A generator over an engine that a test controls, alone or in a serving set; knows no wire."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from services.generator.engine import Engine, Sampling, Tokens
from services.generator.engines.fake import FakeEngine
from services.generator.generation import Asked, Choice, Generation, Prompt
from services.generator.generator import Generator
from services.generator.generator import Limits as OwnLimits
from services.generator.outbox import Delta
from services.inference.manifest import Manifest
from services.inference.serving import Serving
from services.runtime.admission import Admission, Limits, Permit
from services.runtime.catalog import Catalog, VersionEntry
from services.runtime.deadline import Deadline
from tests.harness import SOON_S, soon

T = TypeVar("T")
Step = Tokens | BaseException
NAME = "parrot"
CONTEXT = 64
ROOMY = Limits(max_items=1000, max_bytes=10**9)


class ScriptedEngine(FakeEngine):
    """Gives each prompt what the test wrote for it; then, unless that was the last, nothing."""

    def __init__(self, *scripts: Sequence[Step]) -> None:
        super().__init__()
        self._scripts = list(scripts)
        self.samplings: list[Sampling] = []
        self.closed = False

    async def submit(
        self, prompt: Sequence[int], sampling: Sampling, permit: Permit
    ) -> AsyncIterator[Tokens]:
        """The next script."""
        key = len(self.samplings)
        self.samplings.append(sampling)
        self.running[key] = asyncio.Queue()
        finished = False
        try:
            for step in self._scripts[key % len(self._scripts)]:
                # A real step takes a while: others run meanwhile.
                await asyncio.sleep(0)
                if isinstance(step, BaseException):
                    finished = True
                    raise step
                finished = step.finish is not None
                yield step
            await asyncio.Event().wait()
        finally:
            del self.running[key]
            if not finished:
                self.aborted.append(key)
            self.changed.set()

    async def close(self) -> None:
        """Note it."""
        self.closed = True


def ids(text: str) -> list[int]:
    """The fake tokenizer's ids."""
    return [ord(character) for character in text]


def said(text: str, finish: str | None = None, logprob: float = -0.5) -> Tokens:
    """One step that gives these characters."""
    return Tokens(ids(text), [logprob] * len(text), finish)  # type: ignore[arg-type]  # a literal


def script(text: str, finish: str = "length") -> list[Step]:
    """One character a step."""
    return [said(c, finish if i == len(text) - 1 else None) for i, c in enumerate(text)]


def manifest(context: int = CONTEXT) -> str:
    """The `model.yaml` of a language model."""
    return (
        f"{{schema: gristmill.dev/model/v1, name: {NAME}, task: generation, engine: openvino-genai,"
        f" files: {{model: m.gguf}}, limits: {{max_context_tokens: {context}}}}}"
    )


@contextmanager
def generator(
    engine: Engine,
    *,
    context: int = CONTEXT,
    default_max_tokens: int = 512,
    limits: Limits = ROOMY,
    clock: Callable[[], float] | None = None,
    **more: Any,
) -> Iterator[Generator]:
    """A generator over `engine`."""
    time = clock or asyncio.get_running_loop().time
    with ThreadPoolExecutor(1) as threads:
        admission = Admission(limits, time)
        own = OwnLimits(default_max_tokens, **more)
        yield Generator(Manifest.parse(manifest(context)), engine, admission, threads, own, time)


async def serving(runner: Generator, folder: Path, version: int = 3) -> Serving[Generator]:
    """A serving set that has loaded this generator as the `live` version of its model."""
    (folder / "model.yaml").write_text(manifest(), encoding="utf-8")

    async def fetch(entry: VersionEntry) -> Path:
        return folder

    async def start(entry: VersionEntry, read: Manifest, folder: Path) -> Generator:
        return runner

    catalog = Catalog(1)
    catalog.set_model(NAME, "generation", archived=False)
    catalog.set_version(VersionEntry(NAME, version, "ab" * 32, ()), servable=True)
    catalog.set_alias(NAME, "live", version)
    found: Serving[Generator] = Serving("generation", fetch, start)
    await found.update(catalog)
    await soon(found.synced.wait())
    return found


def asked(clock: Callable[[], float] | None = None, **more: Any) -> Asked:
    """What a caller wants: plenty of time, unless the test says otherwise."""
    now = clock() if clock else asyncio.get_running_loop().time()
    given = {
        "identity": "ann",
        "deadline": Deadline(now + SOON_S),
        "arrived": now,
        "sampling": Sampling(0),
        **more,
    }
    return Asked(**given)


async def answer(
    runner: Generator, prompt: Prompt | str, wants: Asked, into: list[Delta] | None = None
) -> Generation:
    """One prompt through all the steps, as the servicer takes it; deltas go to `into`."""
    given = Prompt(text=prompt) if isinstance(prompt, str) else prompt
    generation, sampling = await runner.prepare(given, wants)
    deltas: list[Delta] = [] if into is None else into
    with runner.admit(generation, sampling, wants) as permit:
        stream = runner.stream(generation, sampling, wants, permit)
        async with aclosing(stream) as found:  # type: ignore[type-var]  # a generator, typed wider
            async for delta in found:
                deltas.append(delta)  # what came before a failure is wanted
    return generation


async def driven(engine: FakeEngine, work: Awaitable[T]) -> T:
    """Step the engine until the work is done."""
    task = asyncio.ensure_future(work)
    async with asyncio.timeout(SOON_S):
        while not task.done():
            engine.step()
            await asyncio.sleep(0)
    return await task


async def until(true: Callable[[], object]) -> None:
    """Let others run until it is so."""
    async with asyncio.timeout(SOON_S):
        while not true():  # what is waited for has no event
            await asyncio.sleep(0)


def text_of(deltas: Sequence[Delta], index: int = 0) -> str:
    """The deltas of one choice, joined."""
    return "".join(delta.text for delta in deltas if delta.index == index)


def only(generation: Generation) -> Choice:
    """The one choice."""
    (choice,) = generation.choices
    return choice
