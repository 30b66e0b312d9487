"""A hub on loopback, and a real S3 server."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.registry.config import RegistryConfig
from services.registry.store import Author
from tests import s3
from tests.unit.registry_sources.hub import Hub, serving
from tests.unit.registry_sources.imports import Imports, config, opened


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A repository with a large file, kept as LFS does, and two small ones."""
    monkeypatch.setenv("HF_TOKEN", "the-token-of-whoever-runs-the-tests")
    files = {
        "model.safetensors": bytes(range(256)) * 4096,
        "config.json": b'{"model_type": "bert"}',
        "README.md": b"# Tiny\n",
    }
    with serving(Hub(files, {"model.safetensors"})) as found:
        yield found


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.S3]:
    """One S3 server for all tests."""
    with s3.running(tmp_path_factory.mktemp("s3")) as found:
        yield found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a file grows."""
    return tmp_path / "target"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a registry that has one empty model."""
    root = tmp_path_factory.mktemp("imports")

    async def build() -> None:
        async with opened(config(root, {})) as made:
            await made.registry.models.create_model(
                Author("ann", ""), "m", "classification", "", {}, dry=False
            )

    asyncio.run(build())
    return root / "registry"


@pytest.fixture
def settings(hub: Hub, tmp_path: Path) -> RegistryConfig:
    """A registry that may import from the hub."""
    return config(tmp_path, {"hub": {"kind": "huggingface", "endpoint": hub.endpoint}})


@pytest.fixture
async def imports(settings: RegistryConfig, template: Path) -> AsyncIterator[Imports]:
    """It, with nothing running beside it."""
    async with opened(settings, template) as found:
        yield found
