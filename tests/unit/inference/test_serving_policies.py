"""A serving set under traffic policies: who gets which call while versions come and go."""

import asyncio
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.loaded import Wanted
from services.runtime import traffic
from services.runtime.catalog import Catalog, ModelEntry, PolicyEntry
from services.runtime.errors import InvalidRequest, ModelNotReady
from services.runtime.traffic import Split
from tests.harness import soon
from tests.unit.inference.test_serving import World, settled

DRAWS = 2000


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """A serving set that follows an empty catalog."""
    return World(tmp_path)


def to(version: int, weight: int = 1) -> Split:
    """A share for a version."""
    return Split(version, "", weight)


def over(alias: str, weight: int = 1) -> Split:
    """A share for an alias."""
    return Split(0, alias, weight)


async def policy(
    world: World, *splits: Split, sticky_key: str = "", shadow_version: int = 0, model: str = "m"
) -> None:
    """The traffic policy changes, and the serving set hears of it; no shares: it is gone."""
    found = PolicyEntry(splits, sticky_key, shadow_version) if splits else None
    world.catalog.set_policy(model, found)
    await world.serving.update(world.catalog)


def shares(world: World, draws: int = DRAWS) -> dict[int, float]:
    """Which part of the calls each version gets."""
    count = Counter(world.answers("m") for _ in range(draws))
    return {version: found / draws for version, found in count.items()}


def stuck(world: World, key: str, value: str) -> int:
    """The version that a call with this metadata gets."""
    with world.serving.use(Wanted("m", metadata={key: value})) as loaded:
        return loaded.entry.version


async def two(world: World) -> None:
    """Version 1 live, version 2 ready beside it."""
    await world.live("m", 1)
    await world.points("m", 2, "canary")
    await world.until("m", 2, "ready")


# Shares.


async def test_calls_are_split_by_weight(world: World) -> None:
    await two(world)
    await policy(world, to(1, 90), to(2, 10))
    found = shares(world)
    # Ten standard deviations: this fails once in 10^22 runs, and where the weights are ignored.
    assert abs(found[2] - 0.1) < 0.067
    await policy(world, to(1, 0), to(2, 7))
    assert shares(world, 100) == {2: 1.0}


async def test_a_call_that_names_what_it_wants_is_not_drawn(world: World) -> None:
    await two(world)
    await policy(world, to(2))
    assert world.answers("m") == world.answers() == 2
    assert world.answers("m", version=1) == 1
    assert world.answers("m", alias="live") == 1
    assert world.answers("m", alias="canary") == 2


async def test_one_caller_stays_on_one_version(world: World) -> None:
    await two(world)
    await policy(world, to(1, 50), to(2, 50), sticky_key="x-user")
    users = [f"user-{n}" for n in range(400)]
    first = {user: stuck(world, "x-user", user) for user in users}
    assert {user: stuck(world, "x-user", user) for user in users} == first
    assert 100 < sum(version == 1 for version in first.values()) < 300
    for user, version in first.items():
        drawn = traffic.pick((to(1, 50), to(2, 50)), traffic.draw("m", user))
        assert version == drawn + 1
    # Another key, or no value, is drawn by itself.
    assert len({stuck(world, "x-other", "user-1") for _ in range(200)}) == 2
    assert len({stuck(world, "x-user", "") for _ in range(200)}) == 2

    await policy(world, to(1, 60), to(2, 40), sticky_key="x-user")
    for user, before in first.items():
        assert stuck(world, "x-user", user) in (before, 1), "only towards the heavier share"


async def test_a_share_follows_its_alias(world: World) -> None:
    await two(world)
    await policy(world, over("canary"))
    assert world.answers("m") == 2
    gate = world.hold("m", 3)
    await world.points("m", 3, "canary")
    await settled()
    assert world.answers("m") == 2, "its version is not ready yet"
    gate.set()
    await world.until("m", 3, "ready")
    assert world.answers("m") == 3
    await world.until("m", 2, "")


async def test_the_shadow_version_is_given_no_calls(world: World) -> None:
    await two(world)
    await policy(world, to(1), shadow_version=2)
    assert shares(world, 300) == {1: 1.0}


# Coming and going.


async def test_a_policy_takes_over_only_when_all_that_it_gives_calls_to_is_ready(
    world: World,
) -> None:
    await world.live("m", 1)
    world.knows("m", 2)
    gate = world.hold("m", 2)
    await policy(world, to(1), to(2))
    await world.until("m", 2, "loading")
    await settled()
    assert shares(world, 100) == {1: 1.0}, "live serves meanwhile"
    gate.set()
    await world.until("m", 2, "ready")
    assert set(shares(world, 200)) == {1, 2}

    world.knows("m", 3)
    gate = world.hold("m", 3)
    await policy(world, to(3))
    await world.until("m", 3, "loading")
    await settled()
    assert set(shares(world, 200)) == {1, 2}, "the policy before it serves meanwhile"
    gate.set()
    await world.until("m", 3, "ready")
    assert shares(world, 100) == {3: 1.0}
    await world.until("m", 2, "")
    assert world.state("m", 1) == "ready", "live still points to it"


async def test_a_share_of_weight_zero_is_not_waited_for(world: World) -> None:
    await world.live("m", 1)
    await policy(world, to(1), to(2))
    world.knows("m", 2)
    world.hold("m", 2)
    await policy(world, to(1, 3), to(2, 0))
    await settled()
    assert shares(world, 50) == {1: 1.0}
    assert world.serving._pointers._policies["m"].splits[0].weight == 3


async def test_a_policy_with_a_version_that_does_not_load_never_takes_over(world: World) -> None:
    await two(world)
    await policy(world, to(2))
    world.knows("m", 3)
    world.broken["m", 3] = InvalidRequest("no such operator")
    await policy(world, to(1), to(3))
    await world.until("m", 3, "failed")
    await settled()
    assert shares(world, 100) == {2: 1.0}
    assert world.health["m"] is True


async def test_without_its_policy_a_model_serves_live_again(world: World) -> None:
    await world.live("m", 1)
    world.knows("m", 2)
    await policy(world, to(2))
    await world.until("m", 2, "ready")
    assert world.answers("m") == 2
    await policy(world)
    assert world.answers("m") == 1
    await world.until("m", 2, "")
    assert world.runners["m", 2].closed == 1


async def test_what_only_a_policy_names_is_loaded_and_drained_afterwards(world: World) -> None:
    world.knows("m", 1, 2)
    await policy(world, to(1), to(2, 0))
    for version in (1, 2):
        await world.until("m", version, "ready")
    assert sorted(world.fetched) == [("m", 1), ("m", 2)]
    assert shares(world, 50) == {1: 1.0}
    with world.serving.use(Wanted("m")):
        await policy(world, to(2))
        await world.until("m", 1, "draining")
        await settled()
        assert world.runners["m", 1].closed == 0
        assert world.answers("m") == 2
    await world.until("m", 1, "")
    await policy(world)
    await world.until("m", 2, "")
    assert isinstance(world.refusal("m"), Exception)
    assert world.health == {}


async def test_a_model_with_only_a_policy_says_that_it_is_on_its_way(world: World) -> None:
    world.knows("m", 1)
    gate = world.hold("m", 1)
    await policy(world, to(1))
    await world.until("m", 1, "loading")
    assert isinstance(world.refusal("m"), ModelNotReady)
    gate.set()
    await world.until("m", 1, "ready")
    assert world.answers("m") == world.answers() == 1


async def test_a_version_unloaded_by_hand_takes_its_policy_with_it(world: World) -> None:
    await two(world)
    await policy(world, to(2))
    await soon(world.serving.unload(Wanted("m", version=2)))
    assert world.answers("m") == 1
    await soon(world.serving.load(Wanted("m", version=2)))
    assert world.answers("m") == 2


async def test_what_is_wanted_back_while_it_drains_comes_back(world: World) -> None:
    """A roll-back while long calls still run on what is rolled back to."""
    await world.live("m", 1)
    with world.serving.use(Wanted("m")):
        await world.live("m", 2)
        await world.until("m", 1, "draining")
        await world.points("m", 1)
        await settled()
        assert world.answers("m") == 2, "meanwhile"
    await world.until("m", 1, "ready")
    assert world.answers("m") == 1
    assert world.fetched == [("m", 1), ("m", 2), ("m", 1)]
    await world.until("m", 2, "")


async def test_a_policy_that_comes_back_while_its_version_drains_is_followed(world: World) -> None:
    await world.live("m", 1)
    world.knows("m", 2)
    await policy(world, to(2))
    await world.until("m", 2, "ready")
    with world.serving.use(Wanted("m")):
        await policy(world)
        await world.until("m", 2, "draining")
        await policy(world, to(2))
        assert world.answers("m") == 1
    await world.until("m", 2, "ready")
    assert world.answers("m") == 2


@pytest.mark.parametrize("seed", range(6))
async def test_no_call_fails_whatever_the_policies_do(world: World, seed: int) -> None:
    """Versions load slowly and some are broken; live stays, so that there is always an answer."""
    rng = random.Random(seed)
    world.knows("m", 1, 2, 3, 4)
    world.broken["m", 4] = InvalidRequest("bad")
    await world.live("m", 1)
    calls = 0
    held: list[asyncio.Event] = []
    for _ in range(60):
        what = rng.randrange(5)
        if what == 0 and world.state("m", 3) == "":
            held.append(world.hold("m", 3))
        elif what == 1 and held:
            held.pop().set()
        elif what == 2:
            await policy(world)
        elif what == 3:
            await world.points("m", rng.randrange(1, 4))
        else:
            chosen = rng.sample((1, 2, 3, 4), rng.randrange(1, 4))
            await policy(world, *(to(v, rng.randrange(1, 5)) for v in chosen))
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
            assert world.answers("m") in (1, 2, 3)
            calls += 1
    for event in held:
        event.set()
    assert calls > 50


# What a follower writes down.

_SPLITS = st.lists(
    st.one_of(
        st.builds(to, st.integers(1, 2**31), st.integers(0, 10**6)),
        st.builds(over, st.sampled_from(["live", "canary"]), st.integers(0, 10**6)),
    ),
    min_size=1,
    max_size=4,
)
_POLICIES = st.none() | st.builds(
    PolicyEntry,
    _SPLITS.map(tuple),
    st.sampled_from(["", "x-user"]),
    st.integers(0, 5),
)


@given(_POLICIES)
@settings(max_examples=50, deadline=None)
def test_json_keeps_a_policy(found: PolicyEntry | None) -> None:
    catalog = Catalog(7, {"m": ModelEntry("classification", policy=found)})
    again = Catalog.from_json(json.loads(json.dumps(catalog.to_json())))
    assert again == catalog
    assert again.models["m"].policy == found


def test_a_catalog_from_before_there_were_policies_is_read() -> None:
    written = Catalog(7, {"m": ModelEntry("classification", aliases={"live": 1})}).to_json()
    del written["models"]["m"]["policy"]
    assert Catalog.from_json(written).models["m"] == ModelEntry(
        "classification", aliases={"live": 1}
    )


def test_a_policy_points_to_what_its_shares_mean() -> None:
    entry = ModelEntry("classification", aliases={"live": 1, "canary": 2})
    entry.policy = PolicyEntry((to(3), over("canary"), over("gone")), shadow_version=9)
    assert entry.policy.versions(entry.aliases) == [3, 2, 0]
    assert entry.pointed_at() == {1, 2, 3}


# Draws.

_WEIGHTS = st.lists(st.integers(0, 10**6), min_size=1, max_size=16).filter(any)


@given(_WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_a_draw_never_falls_on_a_share_of_nothing(weights: list[int], draw: float) -> None:
    splits = [to(n + 1, weight) for n, weight in enumerate(weights)]
    index = traffic.pick(splits, draw)
    assert weights[index]
    before = sum(weights[:index])
    assert before / sum(weights) <= draw + 1e-9
    assert draw < (before + weights[index]) / sum(weights) + 1e-9


@given(st.text(max_size=20), st.text(max_size=20))
def test_the_draw_of_a_value_is_fixed(model: str, value: str) -> None:
    model, value = (t.encode("utf-8", "replace").decode() for t in (model, value))
    found = traffic.draw(model, value)
    assert 0 <= found < 1
    assert traffic.draw(model, value) == found


async def test_loaded_by_its_name_alone_a_model_has_what_its_policy_needs(world: World) -> None:
    world.knows("m", 1, 2)
    await policy(world, to(1), to(2))
    for version in (1, 2):
        await world.until("m", version, "ready")
    await soon(world.serving.unload(Wanted("m")))
    await soon(world.serving.load(Wanted("m")))
    assert shares(world, 100).keys() == {1, 2}
