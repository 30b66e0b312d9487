"""What tests of the importer share: a registry without a wire, over a folder, with a hub."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.registry.config import RegistryConfig
from services.registry.importer import Importer
from services.registry.jobs import OperationRecord
from services.registry.registry import Registry
from services.registry.resources import VersionRecord
from services.registry.store import Author
from tests.unit.registry_sources.hub import COMMIT, REPOSITORY

MODEL = "models/m"
SOON_S = 60.0


@dataclass
class Imports:
    """A registry, and the calls that tests make of it."""

    registry: Registry

    @property
    def staging(self) -> Path:
        """The folder of imports in hand."""
        return self.registry.config.data_dir / "imports"

    @property
    def staged(self) -> list[str]:
        """What lies in it, by its paths."""
        return sorted(str(p.relative_to(self.staging)) for p in self.staging.rglob("*"))

    def importer(self, **changed: Any) -> Importer:
        """One that the test runs itself, and that asks again at once."""
        return replace(self.registry.importer(), **{"backoff_s": (0.0,) * 3, **changed})

    async def begin(
        self, source: str = "hub", path: str = REPOSITORY, revision: str = COMMIT
    ) -> str:
        """Begin an import; gives the name of the operation."""
        request = {"source": source, "path": path, "revision": revision}
        author = Author("ann", "call-1")
        record = await self.registry.lifecycle.begin(author, "import", MODEL, request, dry=False)
        return record.name

    async def done(self, name: str) -> OperationRecord:
        """The operation when it has ended."""
        record = await self.registry.jobs.wait(name, SOON_S)
        assert record.state == "done", record
        return record

    async def tried(self, name: str, **changed: Any) -> OperationRecord:
        """The operation after one attempt."""
        assert await self.importer(**changed).once()
        return await self.registry.jobs.get(name)

    async def version(self, number: int = 1) -> VersionRecord:
        """A version of the model."""
        return await self.registry.store.version("m", number)


def config(root: Path, sources: dict[str, Any], **settings: Any) -> RegistryConfig:
    """The settings of a registry that loads no model."""
    return RegistryConfig(data_dir=root / "registry", worker="headers", sources=sources, **settings)


@asynccontextmanager
async def opened(settings: RegistryConfig, template: Path | None = None) -> AsyncIterator[Imports]:
    """A registry with nothing beside it: what runs, the test runs."""
    if template is not None:
        shutil.copytree(template, settings.data_dir)
    registry = Registry(settings)
    await registry.database.migrate()
    (settings.data_dir / "scratch").mkdir(exist_ok=True)
    try:
        yield Imports(registry)
    finally:
        await registry.close()


@asynccontextmanager
async def running(settings: RegistryConfig, template: Path | None = None) -> AsyncIterator[Imports]:
    """A registry as it is served."""
    if template is not None:
        shutil.copytree(template, settings.data_dir)
    registry = Registry(settings)
    await registry.open()
    try:
        yield Imports(registry)
    finally:
        await registry.close()
