"""Each engine once for all the tests of this folder: one takes a minute to start."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.generator.engine import Engine
from tests.engines.rig import NAMES, running


@pytest_asyncio.fixture(scope="session", loop_scope="session", params=NAMES)
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    """The engines in turn."""
    async with running(request.param) as one:
        yield one
