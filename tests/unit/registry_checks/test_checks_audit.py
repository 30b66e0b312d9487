"""Checking evil files runs nothing, connects to nothing, writes nothing: held by Python's audit."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.registry_checks.corpus import GOOD, Files, write
from tests.unit.registry_checks.evil import EVIL

ROOT = Path(__file__).parents[3]
AUDITED = "tests.unit.registry_checks.audited"


def case(folder: Path, files: Files, *, allow_pickle: bool = False) -> dict[str, Any]:
    folder.mkdir()
    paths = write(folder, files)
    return {"folder": str(folder), "paths": paths, "allow_pickle": allow_pickle}


def run(*arguments: str | Path, code: Sequence[str] = ("-m", AUDITED)) -> str:
    command = [sys.executable, *code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def audited(folder: Path, cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was seen while these were checked."""
    listed = folder / "cases.json"
    listed.write_text(json.dumps(cases), encoding="utf-8")
    found: dict[str, Any] = json.loads(run(listed))
    return found


def test_checking_runs_nothing(tmp_path: Path) -> None:
    cases = {
        name: case(tmp_path / f"evil{n}", evil.files, allow_pickle=evil.allow_pickle)
        for n, (name, evil) in enumerate(EVIL.items())
    }
    for n, (name, (_, files)) in enumerate(GOOD.items()):
        cases[f"good: {name}"] = case(tmp_path / f"good{n}", files)
    found = audited(tmp_path, cases)
    assert found["cases"].keys() == cases.keys()
    assert {name: seen["events"] for name, seen in found["cases"].items() if seen["events"]} == {}
    for name in EVIL:
        assert found["cases"][name]["rejections"], name
    assert found["templates"] > 10
    assert found["opened"] > len(cases)


WATCHED = """
import json, os, sys
from tests.unit.registry_checks import audited
watch = audited._Watch()
watch.begin({folder!r})
try:
    {act}
finally:
    watch.end()
print(json.dumps(watch.events))
"""


@pytest.mark.parametrize(
    "act",
    [
        "open('/etc/passwd')",
        "open({folder!r} + '/x', 'w')",
        "open({folder!r} + '/../x.txt')",
        "os.open({folder!r} + '/x', os.O_RDWR | os.O_CREAT)",
        "os.scandir('/')",
        "exec('1')",
        "eval('1')",
        "__import__('onnx')",
        "__import__('multiprocessing')",
        "os.system('true')",
        "__import__('_socket').socket()",
        "__import__('_pickle').loads(b'cos' + bytes([10]) + b'getcwd' + bytes([10]) + b'.')",
    ],
)
def test_the_watch_sees(act: str, tmp_path: Path) -> None:
    """A test of the test: each of these is against the rules."""
    folder = tmp_path / "version"
    folder.mkdir()
    (tmp_path / "x.txt").write_text("")
    script = WATCHED.format(folder=str(folder), act=act.format(folder=str(folder)))
    assert json.loads(run(code=("-c", script)))


def test_the_checks_need_no_model_library_and_no_wire() -> None:
    """What may parse on its own, or reach elsewhere, is not even there."""
    script = "import json, sys; import services.registry.checks; print(json.dumps([*sys.modules]))"
    loaded = {name.partition(".")[0] for name in json.loads(run(code=("-c", script)))}
    unwanted = {
        "grpc",
        "google",
        "gristmill",
        "onnx",
        "onnxruntime",
        "torch",
        "numpy",
        "tokenizers",
    }
    assert loaded & unwanted == set()
