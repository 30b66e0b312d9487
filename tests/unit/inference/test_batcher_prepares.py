"""What is formed ahead is moved to the device while another batch is computed there."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from numpy.typing import NDArray

from services.inference.backends.fake import FakeBackend
from tests.harness import SOON_S, soon
from tests.unit.inference.fakes import Device, echoes, rig

Arrays = Mapping[str, NDArray[Any]]


class Moved(dict[str, NDArray[Any]]):
    """Inputs that were moved."""


class Moving:
    """An instance that says what was moved and what it ran."""

    def __init__(self, device: Device, *, fails: bool = False) -> None:
        self._inner = FakeBackend(device).instance()
        self._fails = fails
        self.log: list[tuple[str, list[float]]] = []

    def prepare(self, inputs: Arrays) -> Arrays:
        """Remember; refuse where told."""
        self.log.append(("moved", inputs["features"][:, 0].tolist()))
        if self._fails:
            raise ValueError("cannot be moved")
        return Moved(inputs)

    def run(self, inputs: Arrays) -> Arrays:
        """Remember whether it was moved."""
        name = "ran moved" if isinstance(inputs, Moved) else "ran"
        self.log.append((name, inputs["features"][:, 0].tolist()))
        return self._inner.run(inputs)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_batch_formed_ahead_is_moved_while_another_runs(*, fails: bool) -> None:
    device = Device(held=True)
    instance = Moving(device, fails=fails)
    async with rig(made=[instance], max_batch_size=2) as r:
        first = await r.begin(1)
        await device.entered()
        second = await r.begin(2, 3)
        async with asyncio.timeout(SOON_S):
            while len(instance.log) < 2:
                await asyncio.sleep(0)
        assert instance.log == [("ran", [1.0]), ("moved", [2.0, 3.0])], "moved while the first runs"
        device.open()
        assert (echoes(await soon(first)), echoes(await soon(second))) == ([1], [2, 3])
        assert instance.log[-1] == ("ran" if fails else "ran moved", [2.0, 3.0])
