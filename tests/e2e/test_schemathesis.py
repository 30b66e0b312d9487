"""The published OpenAPI document against a suite of its own, which the requests leave in pieces."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.load import FIGURES
from tests.e2e.processes import Suite, environment, free_ports, tool

CONFIG = Path(__file__).with_name("schemathesis.toml")
RUN_S = 400
LEAST_OPERATIONS = 75
"""As many as there were when this was written, less a few: so that none is left out unseen."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Suite]:
    """A suite that nobody else needs."""
    started = Suite.start(tmp_path / "data", free_ports(), "--admin-port-base=0")
    yield started
    started.stop()


@pytest.mark.timeout(RUN_S + 200)
def test_no_request_finds_a_fault(own: Suite, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(tool("schemathesis"), f"--config-file={CONFIG}", "run", f"{own.http}/openapi.json"),
            *("--phases=examples,coverage,fuzzing", "--no-color"),
        ],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    cases = re.search(r"(\d+) generated", done.stdout)
    assert tested, done.stdout[-2000:]
    assert cases, done.stdout[-2000:]
    assert int(tested[1]) >= LEAST_OPERATIONS
    FIGURES.append(f"schemathesis: {cases[1]} requests of {tested[1]} operations, no fault")
    # It is in pieces, but lives: nothing crashed, and nothing is held.
    assert httpx.get(f"{own.http}/health/live", trust_env=False).status_code == 200
    for name in ("gateway", "registry", "classifier", "generator"):
        failed = [line for line in own.log(name).splitlines() if '"level": "error"' in line]
        assert not failed, json.loads(failed[0])
