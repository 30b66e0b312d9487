"""Sixteen writers on a registry that is killed: one linear history, with all that was acknowledged.

SQLite and PostgreSQL; the short form has 10 seeds for each, `make soak` 190 more.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.registry_load import Replica, round_of, stage
from tests.postgres import postgres
from tests.unit.registry.wire import RegistryProcess

CALLS, KILLS = 256, 2
SEEDS = [
    *range(5),
    *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(5, 100)),
]
"""On each database: 10 rounds in CI, 200 with the long form."""


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def process(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RegistryProcess]:
    """A registry that all rounds go on with, each on what the one before left."""
    folder: Path = tmp_path_factory.mktemp("linear")
    with ExitStack() as stack:
        flags = ["--worker=headers"]
        if request.param == "postgresql":
            # Nobody cuts the power here: what outlives the registry need not reach the disk.
            server = stack.enter_context(postgres("fsync=off", "full_page_writes=off"))
            flags.append(f"--database={server.database()}")
        found = RegistryProcess(folder, *flags)
        stack.callback(found.kill)
        yield found


@pytest.mark.parametrize("seed", SEEDS)
async def test_what_writers_were_told_is_one_linear_history(
    process: RegistryProcess, seed: int
) -> None:
    replica = Replica(process)
    try:
        if process.port:
            await replica.connect()
        else:
            await replica.start("native")
            await stage(await replica.wire)
        run = await round_of([replica], seed, calls=CALLS, kills=KILLS)
        run.judge()
        assert len(run.recorded.history) > CALLS // 8
        assert any(one.request for one in run.books.attempts)
    finally:
        await replica.disconnect()
