"""The suite as processes: one for most tests, then its end, its second start, its death."""

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.load import FIGURES, Ended, load
from tests.e2e.processes import DEFAULT_PORTS, START_S, Suite, alive, free_ports, taken

# Each needs the one before it to have done its work.
STAGES = ("suite", "stopped", "again", "died", "services")
# The first test of a stage waits for a whole suite to stop and to start, perhaps slowly.
TEST_S = 300
ADMIN_PORTS = {f"admin {port}": port for port in range(9151, 9155)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests into the order of the stages, and give them time for what those do."""
    mine = [i for i, item in enumerate(items) if "e2e" in item.path.parts]
    for i in mine:
        if not any(items[i].iter_markers("timeout")):
            items[i].add_marker(pytest.mark.timeout(TEST_S))
    ordered = sorted((items[i] for i in mine), key=_stage)
    for place, item in zip(mine, ordered, strict=True):
        items[place] = item


def _stage(item: pytest.Item) -> int:
    used = getattr(item, "fixturenames", ())
    return max((STAGES.index(name) for name in used if name in STAGES), default=-1)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was measured; nothing depends on it."""
    for figure in FIGURES:
        terminalreporter.write_line(figure)


@pytest.fixture(scope="session")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The suite on free ports, with an empty data folder."""
    # Every request is logged, so that a test can tell what was accepted.
    logged = {"GRISTMILL_GATEWAY_LOG_SAMPLE_EVERY": "1"}
    data = tmp_path_factory.mktemp("suite") / "data"
    started = Suite.start(data, free_ports(), "--admin-port-base=0", **logged)
    FIGURES.append(f"first start: ready after {started.seconds:.1f} s")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def stopped(suite: Suite) -> Ended:
    """The suite after a SIGTERM in the middle of a generation and of many short requests."""
    ended = asyncio.run(_end_under_load(suite))
    FIGURES.append(f"SIGTERM to the suite: {ended.tally}")
    return ended


async def _end_under_load(suite: Suite) -> Ended:
    story = {"text": {"text": "Once upon a time"}}
    body = {"prompt": story, "params": {"maxTokens": 60, "ignoreEos": True}}
    items = {"model": {"model": "sentiment"}, "items": [{"text": {"text": "not bad"}}]}
    async with httpx.AsyncClient(base_url=suite.http, timeout=START_S, trust_env=False) as client:

        async def classify(request_id: str) -> None:
            headers = {"x-request-id": request_id}
            answer = await client.post("/classifier/v1/classify", json=items, headers=headers)
            answer.raise_for_status()

        streamed = ""
        async with load(classify) as work:
            await work.answers(20)
            url = "/generator/v1/generate:stream"
            async with client.stream("POST", url, json=body) as response:
                async for piece in response.aiter_text():
                    if "delta" in piece and "delta" not in streamed:
                        suite.signal(signal.SIGTERM)
                    streamed += piece
            status = await asyncio.to_thread(suite.wait)
    return Ended(status, alive(suite.below), suite, streamed, work.tally)


@pytest.fixture(scope="session")
def again(stopped: Ended) -> Iterator[Suite]:
    """The suite once more on the same data, on the ports that the README names."""
    busy = taken({**DEFAULT_PORTS, **ADMIN_PORTS})
    if busy:
        pytest.fail(f"the README's examples need the default ports; taken: {', '.join(busy)}")
    started = Suite.start(stopped.suite.data, DEFAULT_PORTS)
    FIGURES.append(f"second start: ready after {started.seconds:.1f} s")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def died(again: Suite) -> Ended:
    """The suite after one of its services was killed."""
    os.kill(again.child("services.classifier"), signal.SIGKILL)
    return Ended(again.wait(), alive(again.below), again)
