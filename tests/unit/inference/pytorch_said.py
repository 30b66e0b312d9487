"""Has the steps of the PyTorch tests done by the environment that has torch. Knows no torch."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.unit.inference.pytorch_place import Place
from tests.unit.registry_worker.folders import REPOSITORY
from tests.unit.registry_worker.test_worker_torch import PYTHON


class Said:
    """What each step returned."""

    def __init__(self, at: Place, steps: dict[str, Any]) -> None:
        self.at = at
        self._steps = steps

    def __getitem__(self, step: str) -> Any:
        found = self._steps[step]
        assert "failed" not in found, found["failed"]
        return found


def by_torch(folder: Path, *steps: str) -> Said:
    """Do the steps, in one process."""
    assert PYTHON.is_file(), f"{PYTHON} is not there: run `make .venv-worker/.done` first"
    module = "tests.unit.inference.pytorch_side"
    ran = subprocess.run(
        [PYTHON, "-m", module, folder, *steps],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    # The steps' logs go before it.
    return Said(Place(folder), json.loads(ran.stdout.splitlines()[-1]))
