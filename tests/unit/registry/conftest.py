"""A registry in parts for each test; the schema is built once."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.database import Database
from tests.unit.registry.parts import MANIFEST, Parts, by, opened


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the present schema."""
    path = tmp_path_factory.mktemp("registry") / "registry.db"

    async def build() -> None:
        database = Database(path)
        await database.migrate()
        await database.close()

    asyncio.run(build())
    return path


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory, template: Path) -> Path:
    """The folder of a model with two ready versions, one uploading, and its alias `live`."""
    root = tmp_path_factory.mktemp("stock") / "registry"

    async def build() -> None:
        async with opened(root, template=template) as made:
            await made.model()
            await made.ready(weights=b"1", metrics={"accuracy": 0.9})
            await made.ready(weights=b"2", metrics={"accuracy": 0.8})
            await made.version({"model.yaml": MANIFEST, "model.onnx": b"1"})
            live = "models/m/aliases/live"
            await made.models.set_alias(by(), live, 1, None, "", dry=False)

    asyncio.run(build())
    return root


@pytest.fixture
async def stocked(tmp_path: Path, stock: Path) -> AsyncIterator[Parts]:
    """A copy of the stock."""
    shutil.copytree(stock, tmp_path / "registry")
    async with opened(tmp_path / "registry") as found:
        yield found


@pytest.fixture
async def parts(tmp_path: Path, template: Path) -> AsyncIterator[Parts]:
    """An empty registry."""
    async with opened(tmp_path / "registry", template=template) as found:
        yield found
