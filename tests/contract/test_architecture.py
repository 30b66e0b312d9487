"""The house rules that a machine can hold: files, imports, words. DESIGN.md section 1."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SERVICES = ("classifier", "generator", "registry")
WIRE = {"grpc", "grpc_health", "grpc_reflection", "gristmill", "google", "inference"}
EDGES = {
    "__main__.py",
    "artifacts.py",
    "bidi.py",
    "bounds.py",
    "conversation.py",
    "converters.py",
    "health.py",
    "interceptors.py",
    "operations.py",
    "pointer_calls.py",
    "probe.py",
    "readers.py",
    "registry.py",
    "registry_client.py",
    "remote.py",
    "requests.py",
    "server.py",
    "servicer.py",
    "standard.py",
    "status.py",
    "transports.py",
    "work_calls.py",
    "worker_calls.py",
}
NO_NAME = {"utils", "util", "common", "base", "helpers", "helper", "misc", "manager"}
# They run what they read.
UNSAFE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def modules(*folders: str) -> list[Path]:
    """Hand-written modules below folders of the repository."""
    found = [file for folder in folders for file in sorted((REPOSITORY / folder).rglob("*.py"))]
    assert found
    return [file for file in found if "generated" not in file.parts]


def named(file: Path) -> str:
    return str(file.relative_to(REPOSITORY))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), named(file))


def imports(file: Path) -> Iterator[str]:
    """Everything that a module imports, wherever in it."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(file)} has a relative import"
            yield node.module or ""
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            yield from _texts(node.args[:1])


def _imports_by_name(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name in ("import_module", "__import__")


def _texts(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_has_the_same_files(service: str) -> None:
    have = {file.name for file in (REPOSITORY / "services" / service).iterdir()}
    assert {"__init__.py", "__main__.py", "config.py", "servicer.py", "Dockerfile"} <= have


def test_the_gateway_is_laid_out_like_them() -> None:
    have = {file.name for file in (REPOSITORY / "gateway").iterdir()}
    assert {"__init__.py", "__main__.py", "config.py", "Dockerfile"} <= have


def test_no_module_has_a_name_that_says_nothing() -> None:
    every = modules("services", "gateway", "models", "clients/python", "deploy", "tests")
    found = [
        named(file)
        for file in every
        if NO_NAME & {*file.relative_to(REPOSITORY).with_suffix("").parts}
    ]
    assert not found


def test_only_edges_know_the_wire() -> None:
    found = [
        f"{named(file)}: {name}"
        for file in modules("services")
        for name in imports(file)
        if name.partition(".")[0] in WIRE and file.name not in EDGES and file.parent.name != "oip"
    ]
    assert not found


def test_every_edge_that_is_allowed_exists() -> None:
    assert {file.name for file in modules("services")} >= EDGES


def test_nothing_imports_what_runs_code_that_it_reads() -> None:
    found = [
        f"{named(file)}: {name}"
        for file in modules("services", "gateway", "models", "clients/python", "deploy")
        for name in imports(file)
        if name.partition(".")[0] in UNSAFE
    ]
    assert not found


def test_every_module_says_what_it_owns() -> None:
    every = modules("services", "gateway", "models", "clients/python", "deploy")
    silent = [named(file) for file in every if not (ast.get_docstring(tree(file)) or "").strip()]
    assert not silent


def test_dependencies_point_one_way() -> None:
    ran = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
