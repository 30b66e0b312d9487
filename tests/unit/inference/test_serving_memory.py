"""A serving set within a memory budget: what fits is loaded, what serves is never moved for it."""

import asyncio
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.inference.loaded import Key, Loaded, Use, Wanted
from services.inference.manifest import FILE_NAME, SCHEMA
from services.inference.memory import Budget
from services.inference.serving import Serving
from services.runtime.catalog import ArtifactEntry, VersionEntry
from services.runtime.errors import (
    GristmillError,
    InvalidRequest,
    ModelNotReady,
    UpstreamUnavailable,
)
from tests.harness import SOON_S, metric, soon
from tests.unit.inference import test_serving
from tests.unit.inference.test_serving import Runner, settled

MIB = 2**20
LIMIT = 100


class World(test_serving.World):
    """The same, with sizes in MiB and a budget of a hundred."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.budget = Budget(LIMIT * MIB)
        self.sizes: dict[Key, int] = {}
        self.declared: dict[Key, int] = {}
        self.told: list[tuple[str, bool | None]] = []
        self.serving: Serving[Runner] = Serving(
            "classification",
            self._folder_of,
            self._start,
            on_health=self._hears,
            budget=self.budget,
        )

    async def _folder_of(self, entry: VersionEntry) -> Path:
        await self._fetch(entry)
        folder = self._folder / f"{entry.model}-{entry.version}"
        folder.mkdir(exist_ok=True)
        size = self.declared.get((entry.model, entry.version), 0) * MIB
        (folder / FILE_NAME).write_text(
            f"schema: {SCHEMA}\nname: m\ntask: classification\nfiles: {{model: m.onnx}}\n"
            f"memory_bytes: {size}\n"
        )
        return folder

    def _hears(self, name: str, serving: bool | None) -> None:
        self.told.append((name, serving))
        self._on_health(name, serving)

    def knows(self, model: str, *versions: int, task: str = "classification") -> None:
        """The registry has these versions, each of two files that are half its size."""
        self.catalog.set_model(model, task, archived=False)
        for version in versions:
            half = self.sizes.get((model, version), 0) * MIB // 2
            files = tuple(ArtifactEntry(name, half, "") for name in ("a", "b"))
            entry = VersionEntry(model, version, f"{model}{version}", files)
            self.catalog.set_version(entry, servable=True)

    async def sized(self, model: str, version: int, size: int) -> None:
        """A version of so many MiB becomes live; nothing is waited for."""
        self.sizes[model, version] = size
        await self.points(model, version)

    async def gone(self, model: str) -> None:
        """The registry forgets a model."""
        self.catalog.remove_model(model)
        await self.serving.update(self.catalog)

    def loaded(self, model: str, version: int) -> Loaded[Runner]:
        """A version that is here."""
        (found,) = [one for one in self.serving.models() if one.key == (model, version)]
        return found

    @property
    def held(self) -> int:
        """MiB that are taken."""
        return self.budget.held_bytes // MIB

    async def until_held(self, size: int) -> None:
        """Wait until so many MiB are taken."""
        async with asyncio.timeout(SOON_S):
            while self.held != size:
                await asyncio.sleep(0)

    async def until_fetched(self, model: str, version: int, times: int = 1) -> None:
        """Wait until a version has been fetched so often."""
        async with asyncio.timeout(SOON_S):
            while self.fetched.count((model, version)) < times:
                await asyncio.sleep(0)

    async def rest(self) -> None:
        """Wait until nothing is on its way."""
        async with asyncio.timeout(SOON_S):
            while any(one.state in ("loading", "draining") for one in self.serving.models()):
                await asyncio.sleep(0)


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """A serving set that follows an empty catalog, with a hundred MiB."""
    return World(tmp_path)


# What counts.


async def test_a_version_takes_as_much_as_its_files(world: World) -> None:
    world.sizes["m", 1] = 60
    await world.live("m", 1)
    assert world.held == 60


async def test_the_manifest_knows_better(world: World) -> None:
    world.sizes["m", 1], world.declared["m", 1] = 60, 95
    await world.live("m", 1)
    assert world.held == 95


async def test_what_fits_together_is_loaded_together(world: World) -> None:
    for model, size in (("a", 40), ("b", 40), ("c", 20)):
        world.sizes[model, 1] = size
        await world.live(model, 1)
    assert world.held == LIMIT


async def test_it_is_taken_before_the_model_is_loaded(world: World) -> None:
    """Two that load at once do not both find the same memory free."""
    gate = world.hold("a", 1)
    await world.sized("a", 1, 60)
    await world.until_held(60)
    await world.sized("b", 1, 60)
    await world.until("b", 1, "failed")
    assert world.state("a", 1) == "loading"
    gate.set()
    await world.until("a", 1, "ready")
    assert world.held == 60


async def test_without_a_budget_everything_is_loaded(world: World) -> None:
    world.budget.limit_bytes = 0
    for model in "abc":
        world.sizes[model, 1] = 10 * LIMIT
        await world.live(model, 1)
    assert world.held == 30 * LIMIT


# What does not fit.


async def test_a_version_that_does_not_fit_fails_and_the_old_one_stays(world: World) -> None:
    await world.sized("m", 1, 60)
    await world.until("m", 1, "ready")
    failures = metric("gristmill_model_load_failures_total", model="m")
    await world.sized("m", 2, 50)
    await world.until("m", 2, "failed")
    await settled()
    reason = "needs 50.0 MiB; 60.0 of 100.0 MiB are taken by other versions"
    assert world.loaded("m", 2).reason == reason
    assert ("m", 2) not in world.runners, "it was never started"
    assert world.answers("m") == 1
    assert world.runners["m", 1].closed == 0
    assert world.held == 60
    assert world.health == {"m": True}
    assert metric("gristmill_model_load_failures_total", model="m") == failures + 1
    assert world.serving.synced.is_set(), "it has been tried"


async def test_who_loads_it_by_hand_hears_why(world: World) -> None:
    world.sizes["m", 2] = 101
    world.knows("m", 2)
    await world.serving.update(world.catalog)
    with pytest.raises(ModelNotReady, match=r"needs 101\.0 MiB; 0\.0 of 100\.0 MiB") as raised:
        await soon(world.serving.load(Wanted("m", 2)))
    assert raised.value.metadata == {"state": "failed"}


async def test_it_is_tried_again_when_memory_is_given_back(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    await world.sized("b", 1, 60)
    await world.until("b", 1, "failed")
    await soon(world.serving.unload(Wanted("a")))
    await world.until("b", 1, "ready")
    assert world.answers("b") == 1
    assert world.held == 60
    assert world.fetched.count(("b", 1)) == 2


async def test_all_that_wait_for_memory_are_tried_and_those_that_fit_stay(world: World) -> None:
    await world.sized("a", 1, 90)
    await world.until("a", 1, "ready")
    for model, size in (("b", 60), ("c", 101), ("d", 30)):
        await world.sized(model, 1, size)
        await world.until(model, 1, "failed")
    await world.gone("a")
    await world.rest()
    assert [world.state(model, 1) for model in "bcd"] == ["ready", "failed", "ready"]
    assert world.held == 90


async def test_what_failed_for_another_reason_is_not_tried_again(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    world.broken["b", 1] = InvalidRequest("no such operator")
    await world.sized("b", 1, 10)
    await world.until("b", 1, "failed")
    await world.gone("a")
    await world.rest()
    await settled()
    assert world.state("b", 1) == "failed"
    assert world.fetched.count(("b", 1)) == 1


async def test_what_is_no_longer_wanted_is_not_tried_again(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    await world.sized("b", 1, 60)
    await world.until("b", 1, "failed")
    await world.gone("b")
    assert world.state("b", 1) == ""
    await world.gone("a")
    await world.rest()
    await settled()
    assert world.fetched == [("a", 1), ("b", 1)]
    assert world.held == 0


async def test_one_that_is_tried_again_and_fails_is_tried_again_later(world: World) -> None:
    await world.sized("a", 1, 50)
    await world.live("a", 1)
    await world.sized("c", 1, 50)
    await world.live("c", 1)
    await world.sized("b", 1, 100)
    await world.until("b", 1, "failed")
    await world.gone("a")
    await world.until_fetched("b", 1, times=2)
    await world.until("b", 1, "failed")
    await world.gone("c")
    await world.until("b", 1, "ready")
    assert world.held == 100


# What drains is waited for.


async def test_a_version_waits_for_what_is_draining(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    with world.serving.use(Wanted("a")):
        await world.gone("a")
        await world.until("a", 1, "draining")
        await world.sized("b", 1, 60)
        await world.until("b", 1, "loading")
        await world.until_fetched("b", 1)
        await settled()
        assert world.state("b", 1) == "loading"
        assert world.held == 60, "it is not loaded beside what still answers"
    await world.until("b", 1, "ready")
    assert world.held == 60
    assert world.fetched.count(("b", 1)) == 1, "it waited, and was not tried again"


async def test_what_drains_keeps_its_memory_until_it_is_closed(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    world.runners["a", 1].may_close.clear()
    await world.gone("a")
    await world.until("a", 1, "draining")
    await settled()
    assert world.held == 60
    world.runners["a", 1].may_close.set()
    await world.until("a", 1, "")
    assert world.held == 0


async def test_waiting_in_vain_ends_in_the_reason(world: World) -> None:
    """What drained was not enough: what is left serves, so that nothing more comes."""
    await world.sized("a", 1, 30)
    await world.live("a", 1)
    await world.sized("c", 1, 60)
    await world.live("c", 1)
    with world.serving.use(Wanted("a")):
        await world.gone("a")
        await world.until("a", 1, "draining")
        await world.sized("b", 1, 50)
        await world.until("b", 1, "loading")
        await settled()
    await world.until("b", 1, "failed")
    assert world.loaded("b", 1).reason.startswith("needs 50.0 MiB; 60.0 of 100.0 MiB")
    assert world.answers("c") == 1


async def test_of_two_that_wait_for_the_same_one_gets_it(world: World) -> None:
    await world.sized("a", 1, 90)
    await world.live("a", 1)
    with world.serving.use(Wanted("a")):
        await world.gone("a")
        await world.until("a", 1, "draining")
        for model in "bc":
            await world.sized(model, 1, 60)
            await world.until(model, 1, "loading")
        await settled()
    await world.rest()
    assert sorted(world.state(model, 1) for model in "bc") == ["failed", "ready"]
    assert world.held == 60
    (ready,) = [model for model in "bc" if world.state(model, 1) == "ready"]
    (other,) = {"b", "c"} - {ready}
    await world.gone(ready)
    await world.until(other, 1, "ready")


# Giving back.


async def test_a_version_that_fails_to_start_gives_back_what_it_took(world: World) -> None:
    world.broken["a", 1] = InvalidRequest("no such operator")
    await world.sized("a", 1, 90)
    await world.until("a", 1, "failed")
    assert world.held == 0
    await world.sized("b", 1, 90)
    await world.until("b", 1, "ready")


async def test_a_start_that_fails_makes_room_for_who_waits(world: World) -> None:
    gate = world.hold("a", 1)
    world.broken["a", 1] = InvalidRequest("no such operator")
    await world.sized("a", 1, 90)
    await world.until_held(90)
    await world.sized("b", 1, 90)
    await world.until("b", 1, "failed")
    gate.set()
    await world.until("b", 1, "ready")
    assert world.held == 90


async def test_files_that_come_later_take_their_memory_then(world: World) -> None:
    world.serving._retry_s = 0.0
    world.broken["a", 1] = UpstreamUnavailable("the registry did not send m.onnx")
    await world.sized("a", 1, 90)
    await world.until("a", 1, "failed")
    assert world.held == 0
    del world.broken["a", 1]
    await world.until("a", 1, "ready")
    assert world.held == 90


async def test_unloading_by_hand_gives_back_what_was_held(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    await soon(world.serving.unload(Wanted("a")))
    assert world.held == 0
    assert metric("gristmill_model_memory_bytes") == 0
    await soon(world.serving.load(Wanted("a")))
    assert world.held == 60


async def test_a_switch_gives_back_what_the_old_one_held(world: World) -> None:
    await world.sized("m", 1, 40)
    await world.until("m", 1, "ready")
    await world.sized("m", 2, 50)
    await world.until("m", 2, "ready")
    await world.until("m", 1, "")
    assert world.held == 50
    assert metric("gristmill_model_memory_bytes") == 50 * MIB


async def test_closing_gives_everything_back(world: World) -> None:
    for model in "ab":
        await world.sized(model, 1, 40)
        await world.until(model, 1, "ready")
    await soon(world.serving.close())
    assert world.held == 0


async def test_the_gauge_says_what_is_held(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    assert metric("gristmill_model_memory_bytes") == 60 * MIB
    await soon(world.serving.close())
    assert metric("gristmill_model_memory_bytes") == 0


async def test_what_is_unloaded_while_it_starts_keeps_its_memory_until_it_is_closed(
    world: World,
) -> None:
    """The start cannot be stopped: what it loads is there until it has ended and is closed."""
    gate = world.hold("a", 1)
    await world.sized("a", 1, 90)
    await world.until_held(90)
    await soon(world.serving.unload(Wanted("a")))
    held = world.held
    gate.set()
    async with asyncio.timeout(SOON_S):
        while ("a", 1) not in world.runners or not world.runners["a", 1].closed:
            await asyncio.sleep(0)
    await settled()
    assert (held, world.held) == (90, 0)


async def test_what_is_unloaded_while_it_starts_and_loaded_again_holds_its_memory(
    world: World,
) -> None:
    gate = world.hold("a", 1)
    await world.sized("a", 1, 40)
    await world.until_held(40)
    await soon(world.serving.unload(Wanted("a")))
    before = world.held
    again = asyncio.ensure_future(world.serving.load(Wanted("a")))
    await world.until_held(before + 40)
    gate.set()
    assert (await soon(again)).state == "ready"
    await settled()
    assert world.held == 40


# Being tried again, as others see it.


async def test_loading_by_hand_waits_for_what_is_being_tried_again(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    await world.sized("b", 1, 60)
    await world.until("b", 1, "failed")
    gate = world.hold("b", 1)
    await soon(world.serving.unload(Wanted("a")))
    await world.until("b", 1, "loading")
    loading = asyncio.ensure_future(world.serving.load(Wanted("b")))
    await settled()
    gate.set()
    assert (await soon(loading)).state == "ready"


async def test_what_is_ready_after_all_has_no_reason(world: World) -> None:
    await world.sized("a", 1, 60)
    await world.until("a", 1, "ready")
    await world.sized("b", 1, 60)
    await world.until("b", 1, "failed")
    await soon(world.serving.unload(Wanted("a")))
    await world.until("b", 1, "ready")
    assert world.loaded("b", 1).reason == ""


# Health by version.


async def test_health_names_each_version(world: World) -> None:
    await world.sized("m", 1, 60)
    await world.until("m", 1, "ready")
    await world.sized("m", 2, 60)
    await world.until("m", 2, "failed")
    assert world.health == {"m": True}
    assert world.versions == {"m/versions/1": True, "m/versions/2": False}


async def test_health_forgets_a_version_that_is_gone(world: World) -> None:
    await world.sized("m", 1, 40)
    await world.until("m", 1, "ready")
    await world.sized("m", 2, 40)
    await world.until("m", 2, "ready")
    await world.until("m", 1, "")
    assert world.versions == {"m/versions/2": True}
    assert world.told.count(("m/versions/1", None)) == 1
    await world.gone("m")
    await world.until("m", 2, "")
    assert (world.health, world.versions) == ({}, {})


async def test_health_of_what_was_unloaded_by_hand_is_false(world: World) -> None:
    await world.sized("m", 1, 40)
    await world.until("m", 1, "ready")
    with world.serving.use(Wanted("m")):
        unloading = asyncio.ensure_future(world.serving.unload(Wanted("m", 1)))
        await world.until("m", 1, "draining")
        assert world.versions == {"m/versions/1": False}, "it takes no more while it drains"
    await soon(unloading)
    assert world.versions == {"m/versions/1": False}


async def test_a_version_that_loads_is_not_serving_yet(world: World) -> None:
    gate = world.hold("m", 1)
    await world.sized("m", 1, 40)
    assert world.versions == {"m/versions/1": False}
    gate.set()
    await world.until("m", 1, "ready")
    assert world.versions == {"m/versions/1": True}


# Whatever happens.


class Life:
    """Models that come, change, break and go while calls run."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.uses: list[Use[Runner]] = []
        self.version = 0

    async def step(self) -> None:
        """One thing happens, and then a little time passes."""
        model = self.rng.choice("abcde")
        steps: list[Any] = [self.comes, self.comes, self.comes, self.goes, self.call, self.end]
        await self.rng.choice(steps)(model)
        for _ in range(self.rng.randrange(30)):
            await asyncio.sleep(0)
            self.check()

    async def comes(self, model: str) -> None:
        """A new version is live, perhaps one that does not start."""
        self.version += 1
        if self.rng.random() < 0.2:
            self.world.broken[model, self.version] = InvalidRequest("bad")
        await self.world.sized(model, self.version, self.rng.choice([10, 30, 50, 90, 120]))

    async def goes(self, model: str) -> None:
        """The registry forgets a model."""
        await self.world.gone(model)

    async def call(self, model: str) -> None:
        """A call begins, where anything answers."""
        with suppress(GristmillError):
            self.uses.append(self.world.serving.use(Wanted(model)))
            self.uses[-1].__enter__()

    async def end(self, _: str = "") -> None:
        """A call ends."""
        if self.uses:
            self.uses.pop(self.rng.randrange(len(self.uses))).__exit__()

    async def rest(self) -> None:
        """All calls end, and everything settles."""
        while self.uses:
            await self.end()
        for _ in range(2):
            await self.world.rest()
            await settled()

    def check(self) -> int:
        """The budget holds, and all that is ready is in it; gives what that is together."""
        sizes, models = self.world.sizes, self.world.serving.models()
        ready = sum(sizes[one.key] for one in models if one.state == "ready")
        assert ready <= self.world.held <= LIMIT
        return ready


@pytest.mark.parametrize("seed", range(8))
async def test_the_budget_holds_and_nobody_is_forgotten(world: World, seed: int) -> None:
    """At rest all memory is that of what is ready, and only what cannot fit is out."""
    life = Life(world, seed)
    for _ in range(60):
        await life.step()
    await life.rest()
    assert life.check() == world.held
    models = world.serving.models()
    out = [one.key for one in models if one.state == "failed" and one.key not in world.broken]
    assert [key for key in out if world.sizes[key] <= LIMIT - world.held] == []
    here = {id(one.runner) for one in models}
    assert all(one.closed == (id(one) not in here) for one in world.runners.values())
    await soon(world.serving.close())
    assert world.held == 0
