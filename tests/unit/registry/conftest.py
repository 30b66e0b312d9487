"""A registry in parts for each test, on either database; the schema is built once."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.registry.database import Database
from services.registry.tables import METADATA
from tests.postgres import Postgres, postgres
from tests.unit.registry.parts import MANIFEST, Parts, by, opened, weights

DATABASES = ("sqlite", "postgresql")


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    """A PostgreSQL server that need not survive a crash of the machine."""
    with postgres("fsync=off", "synchronous_commit=off", "full_page_writes=off") as found:
        yield found


@dataclass(frozen=True)
class Place:
    """Where a test's registry keeps its data."""

    root: Path
    database: str
    """A URL; empty for SQLite in the root."""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database with the present schema."""
    path = tmp_path_factory.mktemp("registry") / "registry.db"
    asyncio.run(_migrated(Database(path)))
    return path


@pytest.fixture(scope="session")
def pattern(server: Postgres) -> str:
    """The name of an empty PostgreSQL database with the present schema."""
    url = server.database()
    asyncio.run(_migrated(Database(url)))
    return url.rpartition("/")[2]


@pytest.fixture(scope="session")
def shared(server: Postgres, pattern: str) -> str:
    """A database that tests share, each finding it empty."""
    return server.database(pattern)


@pytest.fixture
def emptied(server: Postgres, shared: str) -> str:
    """The shared database, as it was at first: a database for each test takes longer than it."""
    tables = ", ".join(name for name in METADATA.tables if name != "registry")
    first = "revision = 0, compacted = 0, commit_time = '2000-01-01'"
    server.run(f"TRUNCATE {tables}; UPDATE registry SET {first}", shared.rpartition("/")[2])
    return shared


async def _migrated(database: Database) -> None:
    await database.migrate()
    await database.close()


@pytest.fixture(params=DATABASES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty registry's place, for each kind of database."""
    root = tmp_path / "registry"
    root.mkdir()
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("template"), root / "registry.db")
        return Place(root, "")
    url: str = request.getfixturevalue("emptied")
    return Place(root, url)


@pytest.fixture(scope="session", params=DATABASES)
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model with two ready versions, one uploading, and its alias `live`."""
    root = tmp_path_factory.mktemp("stock") / "registry"
    url = ""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("server")
        url = server.database(request.getfixturevalue("pattern"))

    async def build() -> None:
        async with opened(root, database=url) as made:
            await made.model()
            await made.ready(seed=b"1", metrics={"accuracy": 0.9})
            await made.ready(seed=b"2", metrics={"accuracy": 0.8})
            await made.version({"model.yaml": MANIFEST, "model.onnx": weights(b"1")})
            live = "models/m/aliases/live"
            await made.pointers.set_alias(by(), live, 1, None, "", dry=False)

    asyncio.run(build())
    return Place(root, url)


@pytest.fixture
def copied(tmp_path: Path, stock: Place, request: pytest.FixtureRequest) -> Place:
    """A copy of the stock, not opened."""
    shutil.copytree(stock.root, tmp_path / "registry")
    url = ""
    if stock.database:
        server: Postgres = request.getfixturevalue("server")
        url = server.database(stock.database.rpartition("/")[2])
    return Place(tmp_path / "registry", url)


@pytest.fixture
async def stocked(copied: Place) -> AsyncIterator[Parts]:
    """A copy of the stock."""
    async with opened(copied.root, database=copied.database) as found:
        yield found


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    """An empty registry."""
    async with opened(place.root, database=place.database) as found:
        yield found
