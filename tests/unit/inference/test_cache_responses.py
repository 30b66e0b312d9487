"""The cache as a classifier uses it: look up, compute what is missing once, keep, and share."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from services.inference.cache import Cache, Responses, Value
from services.inference.cache.flight import Outcome
from services.inference.cache.keys import Key, Keys
from services.inference.cache.memory import Memory
from services.inference.cache.responses import HERE_BYTES
from services.inference.cache.sharing import Settle
from services.inference.items import FeaturesItem, Item, TensorsItem, TextItem
from services.inference.scoring import Outputs
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    BackendFailed,
    DeadlineExpired,
    GristmillError,
    InvalidRequest,
    Overloaded,
)
from tests.harness import metric, soon

MOST = 2**20
LONG_S = 60.0
DIGEST = "d" * 64


@dataclass
class Replicas:
    """What replicas share, in this process."""

    values: dict[Key, Value] = field(default_factory=dict)
    lookups: list[int] = field(default_factory=list)
    gate: asyncio.Event | None = None
    within_s: float = 0.0

    async def lookup(self, keys: Sequence[Key], within_s: float) -> list[Value | None]:
        self.lookups.append(len(keys))
        self.within_s = within_s
        if self.gate is not None:
            await self.gate.wait()
        return [self.values.get(key) for key in keys]

    def store(self, key: Key, value: Value) -> None:
        self.values[key] = value

    async def close(self) -> None:
        """It holds nothing."""


@dataclass
class Model:
    """What a classifier does with a message: it answers a text with its length."""

    responses: Responses
    computed: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: GristmillError | None = None

    def __post_init__(self) -> None:
        self.gate.set()

    async def ask(
        self,
        *items: Item | GristmillError | str,
        identity: str = "me",
        priority: int = 5,
        within_s: float = LONG_S,
        refuse_longer: bool = False,
    ) -> list[float | GristmillError]:
        """What becomes of each item."""
        given = [TextItem(item) if isinstance(item, str) else item for item in items]
        outcomes: list[Outcome | None] = [
            item if isinstance(item, GristmillError) else None for item in given
        ]
        found = await self.responses.look_up(identity, given, refuse_longer=refuse_longer)
        for index, value in enumerate(found.values):
            outcomes[index] = value or outcomes[index]

        def told(index: int, outcome: Outcome) -> None:
            assert outcomes[index] is None, "told twice"
            outcomes[index] = outcome

        async def compute(indices: Sequence[int], settle: Settle) -> None:
            await self.gate.wait()
            if self.refusal:
                raise self.refusal
            for index in indices:
                outcome = self.answer(given[index])
                if settle(index, outcome):
                    told(index, outcome)

        deadline = Deadline.after(within_s)
        if found.missing:
            await self.responses.resolve(found, (priority, deadline.at), deadline, compute, told)
        return [number(outcome) for outcome in outcomes]

    def answer(self, item: Item | GristmillError) -> Outcome:
        if not isinstance(item, TextItem):
            return Value.of(Outputs({"p": np.zeros((1, 2), np.float32)}), 0)
        self.computed.append(item.text)
        if item.text == "bad":
            return InvalidRequest("bad")
        if item.text == "broken":
            return BackendFailed("broken")
        return Value.of(Outputs({"p": np.full((1, 2), len(item.text), np.float32)}), 0)

    async def begin(
        self, *items: str, **how: object
    ) -> "asyncio.Task[list[float | GristmillError]]":
        """Ask, as far as the gate."""
        task = asyncio.ensure_future(self.ask(*items, **how))
        for _ in range(10):
            await asyncio.sleep(0)
        return task


def number(outcome: Outcome | None) -> float | GristmillError:
    assert outcome is not None, "not told"
    return float(outcome.outputs["p"][0]) if isinstance(outcome, Value) else outcome


def made(remote: Replicas | None = None, name: str = "m", most: int = MOST) -> Model:
    cache = Cache(Keys(b"a secret of this test"), Memory(most), remote)
    return Model(cache.of(name, DIGEST))


@pytest.fixture
async def model() -> AsyncIterator[Model]:
    one = made()
    yield one
    assert one.responses.computing == 0


def counted(what: str, model: str, **labels: str) -> float:
    return metric(f"gristmill_cache_{what}_total", model=model, **labels)


async def test_an_equal_question_is_answered_without_the_model(model: Model) -> None:
    assert await model.ask("a", "bb") == [1, 2]
    assert await model.ask("bb", "ccc", "a") == [2, 3, 1]
    assert await model.ask("ccc") == [3]
    assert model.computed == ["a", "bb", "ccc"]


async def test_other_tenants_options_and_models_have_answers_of_their_own(model: Model) -> None:
    await model.ask("a")
    await model.ask("a", identity="you")
    await model.ask("a", refuse_longer=True)
    other = model.responses._cache.of("m", "e" * 64)
    await Model(other, model.computed).ask("a")
    assert model.computed == ["a"] * 4
    again = model.responses._cache.of("other name", DIGEST)
    assert await Model(again, model.computed).ask("a") == [1]
    assert model.computed == ["a"] * 4, "the same content by another name"


async def test_an_item_that_is_an_error_stays_one_and_is_not_missing(model: Model) -> None:
    error = InvalidRequest.field("content", "is required")
    assert await model.ask(error) == [error]
    assert await model.ask("a", error, "a") == [1, error, 1]
    assert await model.ask("a", error) == [1, error]
    assert model.computed == ["a"]


async def test_failures_are_not_kept(model: Model) -> None:
    for _ in range(2):
        first, second = await model.ask("bad", "broken")
        assert isinstance(first, InvalidRequest)
        assert isinstance(second, BackendFailed)
    assert model.computed == ["bad", "broken"] * 2


async def test_an_item_without_a_key_is_computed_each_time(model: Model) -> None:
    strange = TensorsItem({"x": np.zeros(2, dtype="<M8[s]")})
    assert await model.ask(strange, "a", strange) == [0, 1, 0]
    assert await model.ask(strange) == [0]
    assert len(model.responses._cache.memory) == 1


async def test_many_who_ask_at_once_compute_once(model: Model) -> None:
    model.gate.clear()
    before = counted("shared", "m")
    asking = [await model.begin("a", "bb") for _ in range(10)]
    model.gate.set()
    assert await soon(asyncio.gather(*asking)) == [[1, 2]] * 10
    assert model.computed == ["a", "bb"]
    assert counted("shared", "m") == before + 18


async def test_who_asks_between_the_answer_and_its_end_finds_it_kept(model: Model) -> None:
    """There is no gap between what is being computed and what is kept."""
    model.gate.clear()
    first = await model.begin("a")
    model.gate.set()
    while not first.done():
        assert await model.ask("a") == [1]
        await asyncio.sleep(0)
    assert model.computed == ["a"]


async def test_a_refusal_is_raised_to_whom_it_refuses(model: Model) -> None:
    model.gate.clear()
    first, second = await model.begin("a"), await model.begin("a")
    model.refusal = Overloaded("full")
    model.gate.set()
    with pytest.raises(Overloaded):
        await soon(first)
    with pytest.raises(Overloaded):
        await soon(second)
    model.refusal = None
    assert await model.ask("a") == [1]


async def test_a_caller_that_leaves_is_succeeded(model: Model) -> None:
    model.gate.clear()
    first, second = await model.begin("a"), await model.begin("a")
    first.cancel()
    model.gate.set()
    assert await soon(second) == [1]
    assert first.cancelled()


async def test_who_waits_ends_in_time(model: Model) -> None:
    model.gate.clear()
    first = await model.begin("a", within_s=0.05)
    second = await model.begin("a", within_s=0.1)
    with pytest.raises(DeadlineExpired):
        await soon(second)
    model.gate.set()
    assert await soon(first) == [1]


async def test_hits_and_misses_are_counted_by_item() -> None:
    model = made(Replicas(), "counted")
    await model.ask("a", "bb")
    await model.ask("a", "ccc", InvalidRequest("bad"))
    hits = [counted("hits", "counted", level=level) for level in ("memory", "redis")]
    misses = [counted("misses", "counted", level=level) for level in ("memory", "redis")]
    assert (hits, misses) == ([1, 0], [3, 3])
    memory = model.responses._cache.memory
    assert metric("gristmill_cache_bytes") == memory.bytes > 0
    assert metric("gristmill_cache_entries") == len(memory) == 3


async def test_what_a_replica_has_is_not_computed() -> None:
    shared = Replicas()
    one, other = made(shared), made(shared)
    await one.ask("a", "bb")
    assert await other.ask("bb", "ccc", "a") == [2, 3, 1]
    assert other.computed == ["ccc"]
    assert shared.lookups == [2, 3], "one lookup for a message"
    assert await other.ask("a", "bb", "ccc") == [1, 2, 3]
    assert shared.lookups == [2, 3], "what was found is kept here as well"
    assert 0 < shared.within_s <= LONG_S


async def test_what_memory_is_too_small_for_replicas_still_have() -> None:
    shared = Replicas()
    model = made(shared, most=0)
    assert await model.ask("a") == [1]
    assert await model.ask("a") == [1]
    assert model.computed == ["a"]


async def test_equal_questions_look_up_once_too() -> None:
    shared = Replicas(gate=asyncio.Event())
    model = made(shared)
    asking = [await model.begin("a", "a") for _ in range(5)]
    assert shared.gate is not None
    shared.gate.set()
    assert await soon(asyncio.gather(*asking)) == [[1, 1]] * 5
    assert (shared.lookups, model.computed) == ([1], ["a"])


async def test_who_leaves_while_it_looks_up_is_succeeded() -> None:
    shared = Replicas(gate=asyncio.Event())
    model = made(shared)
    first, second = await model.begin("a"), await model.begin("a")
    first.cancel()
    assert shared.gate is not None
    shared.gate.set()
    assert await soon(second) == [1]
    assert model.responses.computing == 0


class Threads(ThreadPoolExecutor):
    """One thread that counts what it is given."""

    def __init__(self) -> None:
        super().__init__(1)
        self.given = 0

    def submit(self, *args: Any, **more: Any) -> Any:
        self.given += 1
        return super().submit(*args, **more)


async def test_large_items_are_hashed_on_a_thread_to_the_same_keys() -> None:
    cache = Cache(Keys(b"a secret of this test"), Memory(MOST))
    with Threads() as threads:
        model = Model(cache.of("m", DIGEST, threads))
        large = "x" * (HERE_BYTES + 1)
        assert await model.ask("a", large) == [1, len(large)]
        assert await model.ask("a") == [1]
        assert threads.given == 1
        assert await model.ask(large) == [len(large)]
        assert threads.given == 2
        assert model.computed == ["a", large]
        await model.ask(large, refuse_longer=True)
        await model.ask(large, identity="you")
        assert model.computed == ["a", large, large, large]


async def test_looking_up_small_items_does_not_suspend() -> None:
    looking = made().responses.look_up("me", [FeaturesItem([1.0]), TextItem("a")])
    with pytest.raises(StopIteration):
        looking.send(None)
