"""The released tritonclient, unmodified and in an environment of its own, against a classifier."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from gristmill_client import Client

from tests.e2e.processes import CACHE, ROOT, Service, environment, free_ports, until
from tests.harness import TRANSPORTS

PYTHON = ROOT / ".venv-triton" / "bin" / "python"
SCRIPT = "tests.e2e.triton_calls"
MODELS = ("sentiment", "iris")
CALL_S = 150
NAMES = (
    "server",
    "models",
    "infer_text",
    "infer_tensors",
    "parameters",
    "mistakes",
    "async_infer",
    "client_timeout",
    "cancellation",
    "stream",
    "strict_stream",
    "cancelled_stream",
    "repository",
    "statistics",
    "caching",
    "with_asyncio",
)


@dataclass(frozen=True)
class Triton:
    """tritonclient, and where the classifier listens."""

    address: str

    def does(self, name: str) -> None:
        """One of the things that `triton_calls.py` does."""
        done = subprocess.run(
            [PYTHON, "-W", "error", "-m", SCRIPT, name, self.address],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=CALL_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A registry with the two models, and a classifier on each transport."""
    if not PYTHON.exists():
        pytest.fail("tritonclient is not there: run `make .venv-triton/.done`")
    folder, ports = (
        tmp_path_factory.mktemp("triton"),
        free_ports(dict.fromkeys(("r", *TRANSPORTS), 0)),
    )
    with ExitStack() as stack:

        def start(module: str, port: int, *arguments: str) -> Service:
            service = Service.start(module, port, folder, *arguments)
            stack.callback(service.end)
            return service

        registry = start("services.registry", ports["r"], f"--data-dir={folder / 'registry'}")
        until(lambda: "listening" in registry.log)
        with Client(registry=registry.address) as client:
            for model in MODELS:
                client.models.push(CACHE / "models" / model, alias="live")
        follow = f"--registry={registry.address}"
        found = {
            transport: start(
                "services.classifier",
                ports[transport],
                follow,
                f"--cache-dir={folder / transport}",
                f"--transport={transport}",
            )
            for transport in TRANSPORTS
        }
        for service in found.values():
            until(lambda service=service: "listening" in service.log or not service.running)
            assert service.running, service.log[-2000:]
            Triton(service.address).does("wait")
        yield {transport: service.address for transport, service in found.items()}


@pytest.fixture
def triton(addresses: dict[str, str], transport: str) -> Triton:
    """tritonclient for the classifier on one of the transports."""
    return Triton(addresses[transport])


@pytest.mark.parametrize("name", NAMES)
def test_tritonclient_works_unmodified(triton: Triton, name: str) -> None:
    triton.does(name)
