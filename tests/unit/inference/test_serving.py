"""Versions come, take over, drain and go, with a `fetch` and a `start` that the test holds."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from services.inference.loaded import Key, Loaded, Wanted
from services.inference.manifest import FILE_NAME, SCHEMA, Manifest
from services.inference.serving import Serving
from services.runtime.catalog import Catalog, VersionEntry
from services.runtime.errors import (
    Draining,
    FailedPrecondition,
    GristmillError,
    InvalidRequest,
    ModelAmbiguous,
    ModelNotReady,
    NotFound,
    UpstreamUnavailable,
)
from tests.harness import SOON_S, metric, soon


@dataclass(eq=False)
class Runner:
    """What a version runs on; closing may be held."""

    key: Key
    may_close: asyncio.Event = field(default_factory=asyncio.Event)
    closed: int = 0

    def __post_init__(self) -> None:
        self.may_close.set()

    async def close(self) -> None:
        """Finish what is in hand."""
        await self.may_close.wait()
        self.closed += 1


class World:
    """A registry's catalog, a serving set that follows it, and what it was told to do."""

    def __init__(self, folder: Path, only: frozenset[str] = frozenset()) -> None:
        self._folder = folder
        (folder / FILE_NAME).write_text(
            f"schema: {SCHEMA}\nname: m\ntask: classification\nfiles: {{model: m.onnx}}\n"
        )
        self.catalog = Catalog(1)
        self.fetched: list[Key] = []
        self.runners: dict[Key, Runner] = {}
        self.broken: dict[Key, Exception] = {}
        self.gates: dict[Key, asyncio.Event] = {}
        self.health: dict[str, bool] = {}
        self.versions: dict[str, bool] = {}
        self.serving: Serving[Runner] = Serving(
            "classification", self._fetch, self._start, only, self._on_health
        )

    async def _fetch(self, entry: VersionEntry) -> Path:
        self.fetched.append((entry.model, entry.version))
        return self._folder

    async def _start(self, entry: VersionEntry, manifest: Manifest, folder: Path) -> Runner:
        key = (entry.model, entry.version)
        if gate := self.gates.get(key):
            await gate.wait()
        if error := self.broken.get(key):
            raise error
        self.runners[key] = Runner(key)
        return self.runners[key]

    def _on_health(self, model: str, serving: bool | None) -> None:
        told = self.versions if "/versions/" in model else self.health
        if serving is None:
            told.pop(model)
        else:
            told[model] = serving

    def hold(self, model: str, version: int) -> asyncio.Event:
        """Loading this version waits for the event."""
        self.gates[(model, version)] = asyncio.Event()
        return self.gates[(model, version)]

    def knows(self, model: str, *versions: int, task: str = "classification") -> None:
        """The registry has these versions."""
        self.catalog.set_model(model, task, archived=False)
        for version in versions:
            entry = VersionEntry(model, version, f"{model}{version}", ())
            self.catalog.set_version(entry, servable=True)

    async def points(self, model: str, version: int | None, alias: str = "live") -> None:
        """An alias moves, and the serving set hears of it."""
        if version is not None:
            self.knows(model, version)
        self.catalog.set_alias(model, alias, version)
        await self.serving.update(self.catalog)

    async def live(self, model: str, version: int) -> None:
        """A version is live and answers."""
        await self.points(model, version)
        await self.until(model, version, "ready")

    def state(self, model: str, version: int) -> str:
        """Where a version stands; empty where it is not here."""
        for one in self.serving.models():
            if one.key == (model, version):
                return one.state
        return ""

    async def until(self, model: str, version: int, state: str) -> None:
        """Wait for a version to stand somewhere."""
        async with asyncio.timeout(SOON_S):
            while self.state(model, version) != state:
                await asyncio.sleep(0)

    def answers(self, model: str = "", version: int = 0, alias: str = "") -> int:
        """The version that would answer now."""
        with self.serving.use(Wanted(model, version, alias)) as loaded:
            assert loaded.runner is not None
            assert not loaded.runner.closed
            return loaded.entry.version

    def refusal(self, model: str = "", version: int = 0, alias: str = "") -> GristmillError:
        """Why nothing answers now."""
        with pytest.raises(GristmillError) as raised:
            self.answers(model, version, alias)
        return raised.value


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """A serving set that follows an empty catalog."""
    return World(tmp_path)


async def settled() -> None:
    """Let whatever can happen without further news happen."""
    for _ in range(50):
        await asyncio.sleep(0)


# Load and switch.


async def test_what_is_live_is_loaded_and_answers(world: World) -> None:
    world.knows("m", 1, 2)
    await world.live("m", 2)
    assert world.answers("m") == world.answers("m", 2) == world.answers("m", alias="live") == 2
    assert world.fetched == [("m", 2)]
    (loaded,) = world.serving.models()
    assert (loaded.state, loaded.reason) == ("ready", "")
    assert loaded.ready_time is not None
    assert world.serving.aliases_of(("m", 2)) == ["live"]


async def test_a_version_takes_over_only_when_it_is_ready(world: World) -> None:
    await world.live("m", 1)
    gate = world.hold("m", 2)
    await world.points("m", 2)
    await world.until("m", 2, "loading")
    await settled()
    assert world.answers("m") == 1
    assert world.serving.aliases_of(("m", 2)) == []
    assert isinstance(world.refusal("m", 2), ModelNotReady)
    gate.set()
    await world.until("m", 2, "ready")
    assert world.answers("m") == 2
    await world.until("m", 1, "")
    assert world.runners["m", 1].closed == 1


async def test_a_bad_version_never_takes_over(world: World) -> None:
    await world.live("m", 1)
    world.broken["m", 2] = InvalidRequest("no such operator")
    await world.points("m", 2)
    await world.until("m", 2, "failed")
    await settled()
    assert world.answers("m") == 1
    assert world.runners["m", 1].closed == 0
    (bad,) = [one for one in world.serving.models() if one.state == "failed"]
    assert (bad.entry.version, bad.reason) == (2, "no such operator")
    assert world.refusal("m", 2).metadata == {"state": "failed"}
    assert world.health["m"] is True


async def test_files_that_the_registry_did_not_send_are_asked_for_again(world: World) -> None:
    world.serving._retry_s = 0.0
    world.broken["m", 1] = UpstreamUnavailable("the registry did not send model.onnx")
    await world.points("m", 1)
    await world.until("m", 1, "failed")
    assert world.serving.synced.is_set()
    del world.broken["m", 1]
    await world.until("m", 1, "ready")
    assert world.answers("m") == 1


async def test_what_is_wrong_with_a_model_itself_is_not_tried_again(world: World) -> None:
    world.serving._retry_s = 0.0
    world.broken["m", 1] = InvalidRequest("no such operator")
    await world.points("m", 1)
    await world.until("m", 1, "failed")
    del world.broken["m", 1]
    await settled()
    assert world.state("m", 1) == "failed"


async def test_a_failure_in_words_that_are_not_ours_is_told_by_its_kind(world: World) -> None:
    world.broken["m", 1] = RuntimeError("/secret/path is bad")
    await world.points("m", 1)
    await world.until("m", 1, "failed")
    assert [one.reason for one in world.serving.models()] == ["RuntimeError"]


async def test_a_bad_version_is_forgotten_when_nothing_points_to_it(world: World) -> None:
    await world.live("m", 1)
    world.broken["m", 2] = UpstreamUnavailable("away")
    await world.points("m", 2)
    await world.until("m", 2, "failed")
    await world.points("m", 1)
    assert world.state("m", 2) == ""
    del world.broken["m", 2]
    await world.live("m", 2)
    assert world.answers("m") == 2


async def test_aliases_mean_what_they_point_to_now(world: World) -> None:
    await world.live("m", 1)
    await world.points("m", 2, "canary")
    await world.until("m", 2, "ready")
    assert (world.answers("m"), world.answers("m", alias="canary")) == (1, 2)
    await world.points("m", 2)
    assert world.answers("m") == 2
    await world.until("m", 1, "")
    assert world.serving.aliases_of(("m", 2)) == ["canary", "live"]
    await world.points("m", None, "canary")
    assert world.refusal("m", alias="canary").reason_given == "ALIAS_NOT_FOUND"
    assert world.answers("m") == 2


async def test_two_aliases_of_one_version_load_it_once(world: World) -> None:
    world.knows("m", 1)
    world.catalog.set_alias("m", "canary", 1)
    await world.live("m", 1)
    await world.serving.update(world.catalog)
    assert world.fetched == [("m", 1)]


async def test_an_alias_that_moves_during_the_load_wins(world: World) -> None:
    await world.live("m", 1)
    gate = world.hold("m", 2)
    await world.points("m", 2)
    await world.live("m", 3)
    gate.set()
    await world.until("m", 2, "")
    assert world.answers("m") == 3
    assert world.runners["m", 2].closed == 1


# What is served at all.


async def test_only_models_of_the_task_with_a_live_alias_are_served(world: World) -> None:
    world.knows("llm", 1, task="generation")
    world.catalog.set_alias("llm", "live", 1)
    await world.points("m", 1, "canary")
    await world.live("other", 1)
    assert world.fetched == [("other", 1)]
    assert world.refusal("llm").reason_given == "WRONG_TASK"
    assert isinstance(world.refusal("llm"), FailedPrecondition)


async def test_a_list_of_models_narrows_and_widens_what_is_served(tmp_path: Path) -> None:
    world = World(tmp_path, frozenset({"m"}))
    await world.points("other", 1)
    await world.points("m", 1, "canary")
    await world.until("m", 1, "ready")
    assert world.fetched == [("m", 1)]
    assert world.answers("m", alias="canary") == 1


async def test_a_model_that_is_archived_or_deleted_drains(world: World) -> None:
    await world.live("a", 1)
    await world.live("b", 1)
    world.catalog.set_model("a", "classification", archived=True)
    await world.serving.update(world.catalog)
    await world.until("a", 1, "")
    world.catalog.remove_model("b")
    await world.serving.update(world.catalog)
    await world.until("b", 1, "")
    assert world.health == {}
    assert world.refusal("b").reason_given == "MODEL_NOT_FOUND"


# References.


async def test_no_name_means_the_only_model(world: World) -> None:
    assert isinstance(world.refusal(), ModelNotReady)
    await world.live("m", 1)
    assert world.answers() == 1
    await world.live("another", 1)
    error = world.refusal()
    assert isinstance(error, ModelAmbiguous)
    assert error.metadata == {"models": "another,m"}
    assert "another, m" in error.message


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        (Wanted("nobody"), "MODEL_NOT_FOUND"),
        (Wanted("m", alias="nowhere"), "ALIAS_NOT_FOUND"),
        (Wanted("m", 2), "MODEL_NOT_LOADED"),
    ],
)
async def test_what_is_not_here_says_why(world: World, wanted: Wanted, reason: str) -> None:
    world.knows("m", 1, 2)
    await world.live("m", 1)
    error = world.refusal(wanted.model, wanted.version, wanted.alias)
    assert isinstance(error, NotFound)
    assert error.reason_given == reason


# Draining.


async def test_a_version_in_use_is_not_closed(world: World) -> None:
    await world.live("m", 1)
    with world.serving.use(Wanted("m")) as old, world.serving.use(Wanted("m")):
        await world.live("m", 2)
        await world.until("m", 1, "draining")
        await settled()
        assert old.runner is not None
        assert not old.runner.closed
        assert world.answers("m") == 2
        assert world.refusal("m", 1).reason_given == "MODEL_NOT_LOADED"
    await world.until("m", 1, "")
    assert world.runners["m", 1].closed == 1


async def test_a_user_that_fails_is_a_user_that_left(world: World) -> None:
    await world.live("m", 1)
    with pytest.raises(RuntimeError), world.serving.use(Wanted("m")):
        raise RuntimeError
    await world.live("m", 2)
    await world.until("m", 1, "")


async def test_close_ends_every_runner_and_refuses(world: World) -> None:
    await world.live("m", 1)
    await world.live("n", 1)
    gate = world.hold("n", 2)
    await world.points("n", 2)
    await soon(world.serving.close())
    assert [runner.closed for runner in world.runners.values()] == [1, 1]
    assert not gate.is_set()
    assert isinstance(world.refusal("x"), Draining)
    await world.points("m", 2)
    assert world.state("m", 2) == ""


# By hand.


async def test_a_version_loaded_by_hand_stays_without_an_alias(world: World) -> None:
    world.knows("m", 1, 2)
    await world.live("m", 2)
    loaded = await soon(world.serving.load(Wanted("m", 1)))
    assert (loaded.state, loaded.entry.version) == ("ready", 1)
    await world.serving.update(world.catalog)
    await settled()
    assert (world.answers("m"), world.answers("m", 1)) == (2, 1)
    again = await soon(world.serving.load(Wanted("m", 1)))
    assert again is loaded
    assert world.fetched == [("m", 2), ("m", 1)]


async def test_loading_by_hand_follows_an_alias(world: World) -> None:
    world.knows("m", 1, 2)
    world.catalog.set_alias("m", "canary", 2)
    await world.live("m", 1)
    assert (await soon(world.serving.load(Wanted("m")))).entry.version == 1
    assert (await soon(world.serving.load(Wanted("m", alias="canary")))).entry.version == 2


async def test_what_cannot_be_loaded_by_hand_says_why(world: World) -> None:
    world.knows("m", 1)
    world.knows("llm", 1, task="generation")
    await world.serving.update(world.catalog)
    world.broken["m", 1] = InvalidRequest("no such operator")
    with pytest.raises(ModelNotReady, match="no such operator"):
        await soon(world.serving.load(Wanted("m", 1)))
    for wanted, reason in (
        (Wanted("nobody"), "MODEL_NOT_FOUND"),
        (Wanted("m", 9), "VERSION_NOT_FOUND"),
        (Wanted("llm", 1), "WRONG_TASK"),
    ):
        with pytest.raises(GristmillError) as raised:
            await soon(world.serving.load(wanted))
        assert raised.value.reason_given == reason
    del world.broken["m", 1]
    assert (await soon(world.serving.load(Wanted("m", 1)))).state == "ready"


async def test_two_who_load_the_same_load_it_once(world: World) -> None:
    world.knows("m", 1)
    await world.serving.update(world.catalog)
    both = asyncio.gather(*(world.serving.load(Wanted("m", 1)) for _ in range(2)))
    first, second = await soon(both)
    assert first is second
    assert world.fetched == [("m", 1)]


async def test_who_gives_up_loading_leaves_no_half_loaded_version(world: World) -> None:
    world.knows("m", 1)
    await world.serving.update(world.catalog)
    gate = world.hold("m", 1)
    task = asyncio.ensure_future(world.serving.load(Wanted("m", 1)))
    await world.until("m", 1, "loading")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    gate.set()
    assert (await soon(world.serving.load(Wanted("m", 1)))).state == "ready"
    assert world.fetched == [("m", 1)]


async def test_unloaded_by_hand_it_stays_so_until_loaded_by_hand(world: World) -> None:
    await world.live("m", 1)
    await soon(world.serving.unload(Wanted("m")))
    assert world.state("m", 1) == "unloaded"
    assert world.runners["m", 1].closed == 1
    assert world.refusal("m").reason_given == "MODEL_NOT_LOADED"
    assert world.health == {"m": False}
    await world.serving.update(world.catalog)
    await settled()
    assert world.state("m", 1) == "unloaded"
    await soon(world.serving.load(Wanted("m")))
    assert world.answers("m") == 1


async def test_a_model_unloaded_by_hand_gets_no_new_version_either(world: World) -> None:
    await world.live("m", 1)
    await soon(world.serving.unload(Wanted("m")))
    await world.points("m", 2)
    await settled()
    assert world.fetched == [("m", 1)]
    assert world.refusal("m").reason_given == "MODEL_NOT_LOADED"
    assert (await soon(world.serving.load(Wanted("m")))).entry.version == 2
    await world.live("m", 3)
    assert world.answers("m") == 3


async def test_loaded_by_its_name_alone_all_that_points_into_a_model_is_back(
    world: World,
) -> None:
    await world.live("m", 1)
    await world.points("m", 2, "canary")
    await world.until("m", 2, "ready")
    await soon(world.serving.unload(Wanted("m")))
    await soon(world.serving.load(Wanted("m")))
    await world.serving.update(world.catalog)
    await world.until("m", 2, "ready")
    assert (world.answers("m"), world.answers("m", alias="canary")) == (1, 2)


async def test_what_was_loaded_again_by_hand_goes_when_its_alias_moves_on(world: World) -> None:
    await world.live("m", 1)
    await soon(world.serving.unload(Wanted("m")))
    await soon(world.serving.load(Wanted("m")))
    await world.live("m", 2)
    await world.until("m", 1, "")


async def test_a_version_unloaded_by_hand_leaves_the_others(world: World) -> None:
    await world.live("m", 1)
    await world.points("m", 2, "canary")
    await world.until("m", 2, "ready")
    await soon(world.serving.unload(Wanted("m", alias="canary")))
    assert world.state("m", 2) == "unloaded"
    assert world.answers("m") == 1
    await world.live("m", 3)
    assert world.answers("m") == 3


async def test_unloading_waits_for_users(world: World) -> None:
    await world.live("m", 1)
    with world.serving.use(Wanted("m")):
        unloading = asyncio.ensure_future(world.serving.unload(Wanted("m")))
        await world.until("m", 1, "draining")
        await settled()
        assert not unloading.done()
        assert world.runners["m", 1].closed == 0
    await soon(unloading)
    assert world.runners["m", 1].closed == 1


async def test_who_gives_up_unloading_does_not_stop_it(world: World) -> None:
    await world.live("m", 1)
    with world.serving.use(Wanted("m")):
        unloading = asyncio.ensure_future(world.serving.unload(Wanted("m")))
        await world.until("m", 1, "draining")
        unloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(unloading)
    await world.until("m", 1, "unloaded")
    assert world.runners["m", 1].closed == 1
    await soon(world.serving.load(Wanted("m")))
    assert world.answers("m") == 1


async def test_unloading_what_is_being_loaded_wins(world: World) -> None:
    await world.live("m", 1)
    gate = world.hold("m", 2)
    await world.points("m", 2)
    await world.until("m", 2, "loading")
    await soon(world.serving.unload(Wanted("m", 2)))
    gate.set()
    await settled()
    async with asyncio.timeout(SOON_S):
        while ("m", 2) not in world.runners or not world.runners["m", 2].closed:
            await asyncio.sleep(0)
    assert world.state("m", 2) == "unloaded"
    assert world.answers("m") == 1


async def test_what_is_not_here_cannot_be_unloaded(world: World) -> None:
    world.knows("m", 1)
    await world.live("m", 1)
    for wanted in (Wanted("nobody"), Wanted("m", 2), Wanted("m", alias="canary")):
        with pytest.raises(NotFound):
            await soon(world.serving.unload(wanted))
    assert world.answers("m") == 1


# What is told to others.


async def test_health_says_which_models_answer(world: World) -> None:
    gate = world.hold("m", 1)
    await world.points("m", 1)
    assert world.health == {"m": False}
    gate.set()
    await world.until("m", 1, "ready")
    assert world.health == {"m": True}
    world.broken["n", 1] = InvalidRequest("bad")
    await world.points("n", 1)
    await world.until("n", 1, "failed")
    assert world.health == {"m": True, "n": False}
    await world.points("m", None)
    await world.until("m", 1, "")
    assert world.health == {"n": False}


async def test_synced_means_that_each_was_tried(world: World) -> None:
    gate = world.hold("m", 1)
    world.broken["n", 1] = InvalidRequest("bad")
    world.knows("n", 1)
    world.catalog.set_alias("n", "live", 1)
    await world.points("m", 1)
    await world.until("n", 1, "failed")
    assert not world.serving.synced.is_set()
    gate.set()
    await soon(world.serving.synced.wait())
    assert world.state("m", 1) == "ready"


async def test_an_empty_registry_is_synced_at_once(world: World) -> None:
    await world.serving.update(world.catalog)
    assert world.serving.synced.is_set()


async def test_the_metrics_count_versions_by_state(world: World) -> None:
    await world.live("m", 1)
    world.broken["m", 2] = InvalidRequest("bad")
    await world.points("m", 2, "canary")
    await world.until("m", 2, "failed")
    states = ("loading", "ready", "draining", "failed", "unloaded")
    found = {state: metric("gristmill_model_versions", state=state) for state in states}
    assert found == {"loading": 0, "ready": 1, "draining": 0, "failed": 1, "unloaded": 0}


def test_versions_are_listed_by_model_and_number(tmp_path: Path) -> None:
    async def listed() -> Iterator[Loaded[Runner]]:
        world = World(tmp_path)
        for model, version in (("b", 10), ("b", 9), ("a", 2)):
            world.knows(model, version)
            await world.points(model, version, f"alias{version}")
            await world.live(model, version)
        return iter(world.serving.models())

    keys = [loaded.key for loaded in asyncio.run(listed())]
    assert keys == [("a", 2), ("b", 9), ("b", 10)]
