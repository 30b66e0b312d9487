"""The registry as the async client shows it: the twin of models.py, with the same names."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from pathlib import Path

from gristmill_client import _registry_flows as flows
from gristmill_client._aio_session import AsyncSession
from gristmill_client._aio_streams import AsyncWatch
from gristmill_client._pull import pull
from gristmill_client._push import push
from gristmill_client._tally import OnProgress
from gristmill_client._watch import WatchState
from gristmill_client.resources import Alias, Model, Resolution, Task, Version


class AsyncModels:
    """Models, versions and aliases, awaiting; arguments, results and errors are those of Models."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def list(self, filter: str = "") -> builtins.list[Model]:  # noqa: A002  # the contract's name
        """As Models.list. RPC ListModels."""
        return await self._session.run(flows.list_models(filter))

    async def get(self, name: str) -> Model:
        """As Models.get. RPC GetModel."""
        return await self._session.run(flows.get_model(name))

    async def versions(self, name: str, filter: str = "") -> builtins.list[Version]:  # noqa: A002
        """As Models.versions. RPC ListModelVersions."""
        return await self._session.run(flows.list_versions(name, filter))

    async def version(self, name: str, version: int) -> Version:
        """As Models.version. RPC GetModelVersion."""
        return await self._session.run(flows.get_version(name, version))

    async def aliases(self, name: str) -> builtins.list[Alias]:
        """As Models.aliases. RPC ListAliases."""
        return await self._session.run(flows.list_aliases(name))

    async def resolve(
        self, name: str, *, version: int | None = None, alias: str | None = None
    ) -> Resolution:
        """As Models.resolve. RPC ResolveModel."""
        return await self._session.run(flows.resolve(name, version, alias))

    async def promote(self, name: str, version: int, alias: str = "live") -> Alias:
        """As Models.promote. RPC SetAlias."""
        return await self._session.run(flows.promote(name, version, alias))

    async def delete(self, name: str, version: int | None = None, *, force: bool = False) -> None:
        """As Models.delete. RPCs DeleteModelVersion, DeleteModel."""
        await self._session.run(flows.delete(name, version, force))

    async def push(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        alias: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Version:
        """As Models.push, with the same RPCs."""
        return await self._session.run(push(path, name, alias, on_progress))

    async def pull(
        self,
        name: str,
        to: str | Path,
        *,
        version: int | None = None,
        alias: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> Version:
        """As Models.pull. RPCs ResolveModel, DownloadArtifact."""
        return await self._session.run(pull(name, to, version, alias, on_progress))

    def watch(
        self,
        after_revision: int | None = None,
        *,
        names: Iterable[str] = (),
        task: Task | None = None,
    ) -> AsyncWatch:
        """As Models.watch, for `async for` and `async with`; needs no await itself. RPC Watch."""
        return AsyncWatch(self._session, WatchState(after_revision, names, task))
