"""A registry in parts for each test; the schema is built once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.registry.database import Database
from tests.unit.registry.parts import Parts, opened


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


@pytest.fixture
async def parts(tmp_path: Path, template: Path) -> AsyncIterator[Parts]:
    """An empty registry."""
    async with opened(tmp_path / "registry", template=template) as found:
        yield found
