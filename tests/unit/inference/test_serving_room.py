"""A serving set that makes room: the old version goes first where both do not fit, calls wait."""

import asyncio
import time
from pathlib import Path

import pytest

from services.inference.loaded import Wanted
from services.inference.serving import Serving
from services.runtime.deadline import Deadline
from services.runtime.errors import InvalidRequest, ModelNotReady, NotFound
from tests.harness import SOON_S, soon
from tests.unit.inference import test_serving_memory

LIVE = Wanted("m")


class World(test_serving_memory.World):
    """The same, where a version may take the place of the one that it replaces."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.serving = Serving(
            "classification",
            self._folder_of,
            self._start,
            on_health=self._hears,
            budget=self.budget,
            make_room=True,
        )


@pytest.fixture
async def world(tmp_path: Path) -> World:
    """A serving set with a hundred MiB."""
    return World(tmp_path)


def within(seconds: float) -> Deadline:
    """A deadline so far from now."""
    return Deadline(time.monotonic() + seconds)


async def test_what_fits_beside_the_old_one_is_loaded_beside_it(world: World) -> None:
    await world.sized("m", 1, 40)
    await world.until("m", 1, "ready")
    gate = world.hold("m", 2)
    await world.sized("m", 2, 60)
    await world.until_held(100)
    assert world.state("m", 1) == "ready"
    with await world.serving.ready(LIVE, within(SOON_S)) as used:
        assert used.key == ("m", 1)
    gate.set()
    await world.until("m", 2, "ready")


async def test_what_does_not_fit_drains_the_old_one_and_calls_wait_for_the_new(
    world: World,
) -> None:
    await world.sized("m", 1, 60)
    await world.until("m", 1, "ready")
    gate = world.hold("m", 2)
    with world.serving.use(LIVE) as old:
        await world.sized("m", 2, 60)
        await world.until("m", 1, "draining")
        waiting = asyncio.ensure_future(world.serving.ready(LIVE, within(SOON_S)))
        anyone = asyncio.ensure_future(world.serving.ready(Wanted(), within(SOON_S)))
        assert old.runner is not None
        assert not old.runner.closed
    await world.until_held(60)
    assert not waiting.done()
    assert not anyone.done()
    gate.set()
    for found in (await soon(waiting), await soon(anyone)):
        assert found.loaded.key == ("m", 2)
    assert world.state("m", 1) == ""


async def test_a_call_waits_no_longer_than_it_has(world: World) -> None:
    await world.sized("m", 1, 60)
    await world.until("m", 1, "ready")
    world.hold("m", 2)
    await world.sized("m", 2, 60)
    await world.until_fetched("m", 2)
    await world.until("m", 1, "")
    with pytest.raises(ModelNotReady) as refused:
        await soon(world.serving.ready(LIVE, within(0.02)))
    assert refused.value.metadata == {"state": "loading"}


async def test_when_the_new_one_fails_nobody_waits_on(world: World) -> None:
    await world.sized("m", 1, 60)
    await world.until("m", 1, "ready")
    gate = world.hold("m", 2)
    world.broken["m", 2] = InvalidRequest("broken")
    await world.sized("m", 2, 60)
    await world.until("m", 1, "")
    waiting = asyncio.ensure_future(world.serving.ready(LIVE, within(SOON_S)))
    gate.set()
    with pytest.raises(ModelNotReady) as refused:
        await soon(waiting)
    assert refused.value.metadata == {"state": "failed"}
    await world.points("m", 1)
    await world.until("m", 1, "ready")


async def test_other_models_and_what_aliases_need_are_never_moved(world: World) -> None:
    await world.sized("other", 1, 50)
    await world.until("other", 1, "ready")
    await world.sized("m", 1, 40)
    await world.until("m", 1, "ready")
    await world.points("m", 1, "stable")
    await world.sized("m", 2, 60)
    await world.until("m", 2, "failed")
    assert world.state("other", 1) == world.state("m", 1) == "ready"


async def test_what_is_nowhere_is_not_waited_for(world: World) -> None:
    await world.sized("m", 1, 60)
    await world.until("m", 1, "ready")
    world.hold("m", 2)
    await world.sized("m", 2, 60)
    await world.until("m", 1, "")
    with pytest.raises(NotFound):
        await soon(world.serving.ready(Wanted("x"), within(SOON_S)))
