"""A version that only watches: what it sees, what is counted of it, and that no caller can tell."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.classifier.answers import Answer, Asked
from services.classifier.shadow import MOST_ITEMS, Shadows
from services.inference.backend import Instance
from services.inference.cache import Cache
from services.inference.cache.keys import Keys
from services.inference.cache.memory import Memory
from services.inference.items import TextItem
from services.inference.loaded import Loaded, Wanted
from services.inference.scoring import Choice
from services.runtime.admission import Limits
from services.runtime.catalog import VersionEntry
from services.runtime.deadline import Deadline
from services.runtime.errors import (
    BackendFailed,
    DeadlineExpired,
    GristmillError,
    InvalidRequest,
    Overloaded,
    QuotaExceeded,
)
from services.runtime.traffic import Split
from tests.harness import SOON_S, metric, soon
from tests.unit.classifier.models import FIRST_TOKEN, IDS, EchoBackend, World, text_item
from tests.unit.inference.fakes import Device

OUTCOMES = ("agree", "disagree", "failed", "dropped")
Gives = Callable[[int], Sequence[float]]


class Told(EchoBackend):
    """Answers the number of each text as the test says, on a device that the test holds."""

    def __init__(self, device: Device) -> None:
        super().__init__(IDS, device)
        self.gives: Gives = lambda number: (0.75, 0.25)

    def instance(self) -> Instance:
        """One more executor."""
        return _Told(self, super().instance())


class _Told:
    def __init__(self, backend: Told, inner: Instance) -> None:
        self._backend = backend
        self._inner = inner

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        self._inner.run(inputs)
        numbers = [int(first) - FIRST_TOKEN for first in inputs["input_ids"][:, 0]]
        return {"probabilities": np.array([self._backend.gives(number) for number in numbers])}


@dataclass
class Watched:
    """A model whose version 1 answers and whose version 2 watches."""

    world: World
    main: Device
    shadow: Device
    model: str = "m"
    _before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = self._now()

    def gives(self, version: int, gives: Gives) -> None:
        """What a version answers from now on."""
        backend = self.world.made[self.model, version]
        assert isinstance(backend, Told)
        backend.gives = gives

    async def call(self, *numbers: int, wanted: Wanted | None = None, **asked: Any) -> list[Answer]:
        """A call with these items, which a policy decides unless told otherwise."""
        return await self.ask([text_item(number) for number in numbers], wanted, **asked)

    async def ask(
        self,
        items: Sequence[Any],
        wanted: Wanted | None = None,
        on_answer: Any = None,
        **asked: Any,
    ) -> list[Answer]:
        """The same with any items."""
        with self.world.traffic.use(wanted or Wanted(self.model)) as target:
            return await soon(target.classify(items, _asked(**asked), on_answer))

    async def done(self) -> dict[str, float]:
        """What has been counted, once nothing is under way."""
        async with asyncio.timeout(SOON_S):
            while tasks := self.world.traffic._shadows._tasks:
                await asyncio.wait(set(tasks))
        return self.counted

    @property
    def counted(self) -> dict[str, float]:
        """What the metrics say of this test, as far as it is something."""
        now = self._now()
        return {name: now[name] - was for name, was in self._before.items() if now[name] != was}

    @property
    def seen(self) -> list[int]:
        """The numbers that the shadow computed."""
        return [int(value) - FIRST_TOKEN for value in self.shadow.computed]

    def _now(self) -> dict[str, float]:
        of = {"model": self.model, "version": "2"}
        found = {o: metric("gristmill_shadow_items_total", **of, outcome=o) for o in OUTCOMES}
        for part in ("count", "sum"):
            found[f"difference {part}"] = metric(f"gristmill_shadow_difference_{part}", **of)
        return found


def _asked(**more: Any) -> Asked:
    return Asked("me", Deadline.after(60.0), 5, more.pop("choice", Choice()), **more)


def only(version: int) -> Split:
    """A share of all calls."""
    return Split(version, "", 1)


async def watched(folder: Path, **how: Any) -> Watched:
    """The two versions, ready, and the policy that has the second one watch the first."""
    world = World(folder, shadows=True, **how)
    main, shadow = Device(), Device()
    world.made = {("m", 1): Told(main), ("m", 2): Told(shadow)}
    await world.add("m", 1)
    world.knows("m", 2)
    await world.policy(only(1), shadow_version=2)
    await world.tried("m", 2)
    return Watched(world, main, shadow)


@pytest.fixture
async def m(tmp_path: Path) -> AsyncIterator[Watched]:
    """A model that is watched."""
    found = await watched(tmp_path)
    yield found
    await end(found)


async def end(found: Watched) -> None:
    """Let everything go."""
    for device in (found.main, found.shadow):
        device.open()
    await soon(found.world.traffic.close())
    await soon(found.world.close())


# What it sees.


async def test_it_sees_what_a_policy_gives_to_another(m: Watched) -> None:
    await m.call(1, 2, 3)
    await m.call(4, wanted=Wanted())  # the only model, and its policy
    assert await m.done() == {"agree": 4, "difference count": 4}
    assert m.seen == [1, 2, 3, 4]
    assert [int(value) - FIRST_TOKEN for value in m.main.computed] == m.seen


@pytest.mark.parametrize(
    "wanted", [Wanted("m", version=1), Wanted("m", alias="live"), Wanted("m", version=2)]
)
async def test_it_sees_nothing_of_calls_that_name_what_they_want(
    m: Watched, wanted: Wanted
) -> None:
    await m.call(1, wanted=wanted)
    assert await m.done() == {}
    assert len(m.seen) == (wanted.version == 2)


async def test_it_does_not_watch_itself(m: Watched) -> None:
    """A version may have a share and watch the others."""
    await m.world.policy(only(2), shadow_version=2)
    await m.call(1)
    assert await m.done() == {}
    assert m.seen == [1]


async def test_without_a_policy_or_without_a_shadow_nobody_watches(m: Watched) -> None:
    await m.world.policy(only(1))
    await m.call(1)
    await m.world.policy()
    await m.call(2)
    assert await m.done() == {}
    assert m.seen == []


async def test_it_sees_what_a_stream_was_told(m: Watched) -> None:
    told: list[int] = []
    await m.ask([text_item(1), text_item(2)], on_answer=lambda index, _: told.append(index))
    assert await m.done() == {"agree": 2, "difference count": 2}
    assert sorted(told) == [0, 1]


async def test_it_sees_no_call_that_failed_as_a_whole(m: Watched) -> None:
    with pytest.raises(GristmillError):
        await m.call(1, choice=Choice(1, threshold=0.5))  # not for a single-label model
    assert await m.done() == {}
    assert m.seen == []


async def test_it_sees_no_call_whose_caller_left(m: Watched) -> None:
    m.main.held = True
    leaves = asyncio.ensure_future(m.call(1))
    await m.main.entered()
    leaves.cancel()
    await asyncio.wait([leaves])
    m.main.open()
    assert await m.done() == {}
    assert m.seen == []


async def test_it_computes_for_itself_what_was_answered_from_the_cache(tmp_path: Path) -> None:
    cache = Cache(Keys(b"a secret of 16 bytes or more"), Memory(2**20))
    m = await watched(tmp_path, cache=cache)
    try:
        (one,) = await m.call(7)
        (other,) = await m.call(7)
        assert (one.cached, other.cached) == (False, True)
        assert await m.done() == {"agree": 2, "difference count": 2}
        assert m.seen == [7, 7]
        assert [int(value) - FIRST_TOKEN for value in m.main.computed] == [7]
    finally:
        await end(m)


# What the caller notices: nothing.


async def test_a_caller_does_not_wait_for_it(m: Watched) -> None:
    m.shadow.held = True
    for number in range(3):
        (answer,) = await m.call(number)
        assert answer.error is None
        assert [label.label for label in answer.labels] == ["first"]
    assert m.counted == {}
    m.shadow.open()
    assert await m.done() == {"agree": 3, "difference count": 3}


async def test_a_caller_is_not_told_what_it_says(m: Watched) -> None:
    m.gives(2, lambda number: (0.0, 1.0))
    (answer,) = await m.call(1, return_probabilities=True)
    await m.done()
    assert [(label.label, label.score) for label in answer.labels] == [("first", 0.75)]
    assert answer.probabilities is not None
    assert answer.probabilities.tolist() == [0.75, 0.25]


async def test_a_caller_does_not_hear_that_it_fails(m: Watched) -> None:
    m.shadow.bad = {FIRST_TOKEN + 2.0}
    answers = await m.call(1, 2, 3)
    assert [answer.error for answer in answers] == [None] * 3
    assert await m.done() == {"agree": 2, "failed": 1, "difference count": 2}


async def test_a_full_shadow_is_left_out(tmp_path: Path) -> None:
    m = await watched(tmp_path, limits=Limits(max_items=2, max_bytes=2**30))
    try:
        m.shadow.held = True
        await m.call(1)
        await m.shadow.entered()
        await m.call(2)
        for number in (3, 4):
            (answer,) = await m.call(number)
            assert answer.error is None
        async with asyncio.timeout(SOON_S):
            while m.counted != {"dropped": 2}:
                await asyncio.sleep(0)
        m.shadow.open()
        assert await m.done() == {"agree": 2, "dropped": 2, "difference count": 2}
    finally:
        await end(m)


async def test_whoever_calls_it_by_name_goes_before_what_it_watches(m: Watched) -> None:
    m.shadow.held = True
    await m.call(0)
    await m.shadow.entered()
    for number in (1, 2, 3):
        await m.call(number)
    for _ in range(20):
        await asyncio.sleep(0)  # the copies are in its queue
    asked = asyncio.ensure_future(m.call(9, wanted=Wanted("m", version=2)))
    for _ in range(20):
        await asyncio.sleep(0)
    m.shadow.open()
    await soon(asked)
    await m.done()
    assert m.shadow.batches[1][0] - FIRST_TOKEN == 9


# What is counted.


@pytest.mark.parametrize(
    ("theirs", "outcome", "difference"),
    [
        ((0.75, 0.25), "agree", 0.0),
        ((0.5, 0.5), "agree", 0.25),
        ((0.625, 0.375), "agree", 0.125),
        ((0.25, 0.75), "disagree", 0.5),
        ((0.0, 1.0), "disagree", 0.75),
        ((1.0, 0.25), "agree", 0.25),
        ((0.75, 0.5), "agree", 0.25),
    ],
)
async def test_best_labels_are_compared_and_all_probabilities(
    m: Watched, theirs: tuple[float, ...], outcome: str, difference: float
) -> None:
    m.gives(2, lambda number: theirs)
    await m.call(1, 2)
    expected = {outcome: 2, "difference count": 2, "difference sum": 2 * difference}
    assert await m.done() == {name: value for name, value in expected.items() if value}


async def test_the_best_label_counts_whatever_the_caller_asked_for(m: Watched) -> None:
    m.gives(2, lambda number: (0.7, 0.3))
    for asked in ({"choice": Choice(2)}, {"return_probabilities": True}, {"raw": True}):
        await m.call(1, **asked)
    found = await m.done()
    assert (found["agree"], found["difference count"]) == (3, 3)


async def test_each_item_is_held_against_its_own(m: Watched) -> None:
    for version, off in ((1, 0), (2, 1)):
        m.gives(version, lambda number, off=off: (0.9, 0.1) if number % 3 > off else (0.1, 0.9))
    await m.call(*range(6))
    found = await m.done()
    # 0 and 3 are the second label to both, 2 and 5 the first, 1 and 4 the first to one only.
    assert (found["agree"], found["disagree"]) == (4, 2)


async def test_an_item_that_failed_itself_agrees_with_one_that_fails_too(m: Watched) -> None:
    m.main.bad = {FIRST_TOKEN + 1.0, FIRST_TOKEN + 2.0}
    m.shadow.bad = {FIRST_TOKEN + 2.0, FIRST_TOKEN + 3.0}
    refused = InvalidRequest("an item's own error")
    answers = await m.ask([text_item(0), text_item(1), text_item(2), text_item(3), refused])
    assert [answer.error is None for answer in answers] == [True, False, False, True, False]
    # 0: both answer; 1: only the shadow does; 2 and the refused one: neither; 3: only we do.
    assert await m.done() == {"agree": 3, "disagree": 1, "failed": 1, "difference count": 1}


async def test_versions_with_other_labels_are_compared_by_label(tmp_path: Path) -> None:
    world = World(tmp_path, shadows=True)
    main, shadow = Device(), Device()
    world.made = {("m", 1): Told(main), ("m", 2): Told(shadow)}
    await world.add("m", 1, output={"labels": ["first", "second"]})
    world.declare("m", output={"labels": ["second", "first"]})
    world.knows("m", 2)
    await world.policy(only(1), shadow_version=2)
    await world.tried("m", 2)
    m = Watched(world, main, shadow)
    try:
        m.gives(2, lambda number: (0.25, 0.75) if number else (0.75, 0.25))
        await m.call(0, 1, 1)
        assert await m.done() == {"agree": 2, "disagree": 1}, "and no difference is made of them"
    finally:
        await end(m)


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome"),
    [(math.nan, math.nan, "agree"), (0.5, math.nan, "failed"), (math.nan, 0.5, "disagree")],
)
async def test_an_answer_that_is_no_number_is_one_item_that_failed(
    m: Watched, ours: float, theirs: float, outcome: str
) -> None:
    """It is counted once, and the items after it are compared all the same."""
    for version, odd in ((1, ours), (2, theirs)):
        m.gives(version, lambda number, odd=odd: (0.5, odd) if number == 1 else (0.75, 0.25))
    await m.call(0, 1, 2)
    found = await m.done()
    expected = {"agree": 2.0, "difference count": 2.0}
    expected[outcome] = expected.get(outcome, 0) + 1
    assert found == expected


async def test_raw_outputs_without_probabilities_are_no_failure(tmp_path: Path) -> None:
    """A model that only the Open Inference Protocol asks gives whatever it gives, to both."""
    m = await watched(tmp_path)

    class Numbers(Told):
        def instance(self) -> Instance:
            inner = super().instance()

            class Renamed:
                def run(self, inputs: Any) -> Any:
                    found = inner.run(inputs)["probabilities"]
                    return {"one": found, "other": found}

            return Renamed()

    world = m.world
    for version, device, shadow in ((3, m.main, 0), (4, m.shadow, 4)):
        world.made["m", version] = Numbers(device)
        world.knows("m", version)
        await world.policy(only(3), shadow_version=shadow)
        await world.tried("m", version)
    try:
        m.shadow.bad = {FIRST_TOKEN + 2.0}
        answers = await m.call(1, 2, raw=True)
        assert [answer.outputs.keys() for answer in answers] == [{"one", "other"}] * 2
        await m.done()
        of = {"model": "m", "version": "4"}
        found = {o: metric("gristmill_shadow_items_total", **of, outcome=o) for o in OUTCOMES}
        assert found == {"agree": 1, "disagree": 0, "failed": 1, "dropped": 0}
        assert metric("gristmill_shadow_difference_count", **of) == 0
    finally:
        await end(m)


# Loading and letting go.


def states(m: Watched) -> dict[int, str]:
    """Where each version stands."""
    return {one.entry.version: one.state for one in m.world.serving.models()}


async def until(m: Watched, **wanted: str) -> None:
    """Wait until versions stand so; what is not named is not there."""
    expected = {int(name[1:]): state for name, state in wanted.items()}
    async with asyncio.timeout(SOON_S):
        while states(m) != expected:
            await asyncio.sleep(0)


async def test_it_is_loaded_because_the_policy_points_to_it_and_stays(m: Watched) -> None:
    assert states(m) == {1: "ready", 2: "ready"}
    await m.world.serving.update(m.world.catalog)
    await m.call(1)
    await m.done()
    assert states(m) == {1: "ready", 2: "ready"}
    assert ("m", 2) in m.world.runners


async def test_a_service_that_compares_nothing_does_not_load_it(tmp_path: Path) -> None:
    """As the generator."""
    world = World(tmp_path)
    world.made = {("m", 2): Told(Device())}
    await world.add("m", 1)
    world.knows("m", 2)
    await world.policy(only(1), shadow_version=2)
    for _ in range(20):
        await asyncio.sleep(0)
    try:
        assert [one.key for one in world.serving.models()] == [("m", 1)]
        await world.add("m", 2, "canary")
        with world.traffic.use(Wanted("m")) as target:
            await soon(target.classify([text_item(1)], _asked()))
        assert not world.traffic._shadows._tasks, "nor compares it where it is there"
    finally:
        await soon(world.close())


async def test_a_shadow_that_the_registry_does_not_have_is_nobody(m: Watched) -> None:
    await m.world.policy(only(1), shadow_version=9)
    (answer,) = await m.call(1)
    assert answer.error is None
    assert await m.done() == {}


async def test_a_shadow_that_is_not_ready_is_not_waited_for(tmp_path: Path) -> None:
    world = World(tmp_path, shadows=True)
    main = Device()
    world.made = {("m", 1): Told(main)}
    await world.add("m", 1)
    world.manifests["m"]["files"] = {"nothing": "m.onnx"}
    world.knows("m", 2)
    await world.policy(only(1), shadow_version=2)
    m = Watched(world, main, Device())
    try:
        for _ in range(5):
            (answer,) = await m.call(1)
            assert answer.error is None
        await world.tried("m", 2)
        (answer,) = await m.call(1)
        assert answer.error is None
        assert await m.done() == {}
    finally:
        await end(m)


async def test_it_is_let_go_of_when_nobody_points_to_it(m: Watched) -> None:
    await m.world.policy(only(1))
    await until(m, v1="ready")
    assert m.world.made["m", 2].closed.is_set()


async def test_it_is_not_closed_while_it_computes(m: Watched) -> None:
    m.shadow.held = True
    await m.call(1)
    await m.shadow.entered()
    await m.world.policy(only(1))
    await until(m, v1="ready", v2="draining")
    for _ in range(20):
        await asyncio.sleep(0)
    assert not m.world.made["m", 2].closed.is_set()
    (answer,) = await m.call(2)
    assert answer.error is None, "it takes no more, and nobody minds"
    m.shadow.open()
    assert await m.done() == {"agree": 1, "difference count": 1}
    await until(m, v1="ready")
    assert m.world.made["m", 2].closed.is_set()


async def test_what_it_watched_may_go_before_it_is_done(m: Watched) -> None:
    m.shadow.held = True
    await m.call(1)
    await m.shadow.entered()
    await m.world.add("m", 3)
    await m.world.policy(only(3), shadow_version=2)
    await until(m, v2="ready", v3="ready")
    assert m.world.made["m", 1].closed.is_set()
    m.shadow.open()
    assert await m.done() == {"agree": 1, "difference count": 1}


async def test_the_end_does_not_wait_for_it(m: Watched) -> None:
    m.shadow.held = True
    await m.call(1, 2)
    await m.shadow.entered()
    await soon(m.world.traffic.close())
    assert await m.done() == {}


# The copies themselves, of a version that does what a test says.


class Runner:
    """As much of a classifier as is asked: it may wait, raise, or answer."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.asked: list[tuple[Sequence[Any], Asked]] = []

    async def classify(self, items: Sequence[Any], asked: Asked) -> list[Answer]:
        """Answer nothing in particular."""
        self.asked.append((items, asked))
        await self.may_go.wait()
        if self.error:
            raise self.error
        return [Answer() for _ in items]


@dataclass
class Copies:
    """Shadows of one version, and what was counted."""

    runner: Runner
    shadows: Shadows = field(default_factory=Shadows)
    loaded: Any = None
    _before: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.loaded = Loaded(VersionEntry("copied", 5, "d", ()), state="ready", runner=self.runner)
        self._before = self._now()

    def watch(self, count: int) -> None:
        """A call of so many items was answered."""
        items = [TextItem(str(number)) for number in range(count)]
        self.shadows.watch(self.loaded, items, [Answer() for _ in items])

    async def done(self) -> dict[str, float]:
        """What was counted."""
        async with asyncio.timeout(SOON_S):
            while tasks := self.shadows._tasks:
                await asyncio.wait(set(tasks))
        return self.counted

    @property
    def counted(self) -> dict[str, float]:
        """What was counted, as far as it is something."""
        now = self._now()
        return {name: now[name] - was for name, was in self._before.items() if now[name] != was}

    @staticmethod
    def _now() -> dict[str, float]:
        of = {"model": "copied", "version": "5"}
        return {o: metric("gristmill_shadow_items_total", **of, outcome=o) for o in OUTCOMES}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (Overloaded("full", retry_after_s=1.0), "dropped"),
        (QuotaExceeded("enough", retry_after_s=1.0), "dropped"),
        (DeadlineExpired("too late"), "failed"),
        (BackendFailed("no such operator"), "failed"),
        (InvalidRequest("not for this model"), "failed"),
        (RuntimeError("a bug"), "failed"),
    ],
)
async def test_whatever_it_raises_is_counted_for_each_item(error: Exception, outcome: str) -> None:
    copies = Copies(Runner(error))
    copies.watch(3)
    copies.watch(2)
    assert await copies.done() == {outcome: 5}
    copies.runner.error = None
    copies.watch(1)
    assert await copies.done() == {outcome: 5, "agree": 1}
    assert copies.loaded.users == 0


async def test_it_is_asked_last_and_for_itself() -> None:
    copies = Copies(Runner())
    copies.watch(1)
    await copies.done()
    ((_, asked),) = copies.runner.asked
    assert (asked.identity, asked.priority, asked.no_cache) == ("shadow", 9, True)
    assert 0 < asked.deadline.at - Deadline.after(0).at <= 30


async def test_no_more_than_so_many_items_are_under_way() -> None:
    copies = Copies(Runner())
    copies.runner.may_go.clear()
    copies.watch(MOST_ITEMS - 1)
    copies.watch(2)
    assert copies.counted == {"dropped": 2}
    copies.watch(1)
    copies.watch(1)
    assert copies.counted == {"dropped": 3}
    copies.runner.may_go.set()
    assert await copies.done() == {"agree": MOST_ITEMS, "dropped": 3}
    copies.watch(MOST_ITEMS)
    copies.watch(1)
    assert await copies.done() == {"agree": 2 * MOST_ITEMS, "dropped": 4}


async def test_a_message_that_never_fits_is_dropped() -> None:
    copies = Copies(Runner())
    copies.watch(MOST_ITEMS + 1)
    assert await copies.done() == {"dropped": MOST_ITEMS + 1}
    assert copies.runner.asked == []


async def test_all_that_fail_make_room_again() -> None:
    copies = Copies(Runner(RuntimeError()))
    for _ in range(3):
        copies.watch(MOST_ITEMS)
        await copies.done()
    assert copies.counted == {"failed": 3 * MOST_ITEMS}


async def test_it_is_held_while_it_is_asked() -> None:
    copies = Copies(Runner())
    copies.runner.may_go.clear()
    copies.watch(1)
    async with asyncio.timeout(SOON_S):
        while not copies.runner.asked:
            await asyncio.sleep(0)
    assert copies.loaded.users == 1
    await soon(copies.shadows.close())
    assert copies.loaded.users == 0
    assert copies.counted == {}
