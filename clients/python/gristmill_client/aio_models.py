"""The registry as the async client shows it: the twin of models.py, with the same names."""

from __future__ import annotations

import builtins
from collections.abc import Iterable, Mapping
from pathlib import Path

from gristmill_client import _registry_flows as flows
from gristmill_client._aio_pointing import AsyncPointing
from gristmill_client._aio_streams import AsyncWatch
from gristmill_client._aio_working import AsyncWorking
from gristmill_client._pull import pull
from gristmill_client._push import CHECK_TIMEOUT_S, OnCheck, Told, push, repair
from gristmill_client._tally import OnProgress
from gristmill_client._watch import WatchState
from gristmill_client.resources import Model, Task, Version


class AsyncModels(AsyncPointing, AsyncWorking):
    """Models, versions and aliases, awaiting; arguments, results and errors are those of Models."""

    async def list(
        self,
        filter: str = "",  # noqa: A002  # the contract's name
        order_by: str = "",
    ) -> builtins.list[Model]:
        """As Models.list. RPC ListModels."""
        return await self._session.run(flows.list_models(filter, order_by))

    async def get(self, name: str) -> Model:
        """As Models.get. RPC GetModel."""
        return await self._session.run(flows.get_model(name))

    async def batch_get(self, names: Iterable[str]) -> builtins.list[Model]:
        """As Models.batch_get. RPC BatchGetModels."""
        return await self._session.run(flows.batch_get(names))

    async def versions(
        self,
        name: str,
        filter: str = "",  # noqa: A002
        order_by: str = "",
    ) -> builtins.list[Version]:
        """As Models.versions. RPC ListModelVersions."""
        return await self._session.run(flows.list_versions(name, filter, order_by))

    async def version(self, name: str, version: int) -> Version:
        """As Models.version. RPC GetModelVersion."""
        return await self._session.run(flows.get_version(name, version))

    async def batch_get_versions(self, refs: Iterable[tuple[str, int]]) -> builtins.list[Version]:
        """As Models.batch_get_versions. RPC BatchGetModelVersions."""
        return await self._session.run(flows.batch_get_versions(refs))

    async def update(
        self,
        name: str,
        version: int | None = None,
        *,
        description: str | None = None,
        labels: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> Model | Version:
        """As Models.update. RPCs UpdateModelVersion, UpdateModel."""
        return await self._session.run(flows.update(name, version, description, labels, metrics))

    async def archive(self, name: str, version: int | None = None) -> Model | Version:
        """As Models.archive. RPCs ArchiveModelVersion, ArchiveModel."""
        return await self._session.run(flows.archive(name, version, restore=False))

    async def restore(self, name: str, version: int | None = None) -> Model | Version:
        """As Models.restore. RPCs ArchiveModelVersion, ArchiveModel."""
        return await self._session.run(flows.archive(name, version, restore=True))

    async def delete(self, name: str, version: int | None = None, *, force: bool = False) -> None:
        """As Models.delete. RPCs DeleteModelVersion, DeleteModel."""
        await self._session.run(flows.delete(name, version, force))

    async def push(
        self,
        path: str | Path,
        *,
        name: str | None = None,
        task: Task | None = None,
        alias: str | None = None,
        timeout: float = CHECK_TIMEOUT_S,
        on_progress: OnProgress | None = None,
        on_check: OnCheck | None = None,
    ) -> Version:
        """As Models.push, with the same RPCs."""
        told = Told(on_progress, on_check, timeout)
        return await self._session.run(push(path, name, task, alias, told))

    async def repair(
        self,
        path: str | Path,
        name: str,
        version: int,
        *,
        timeout: float = CHECK_TIMEOUT_S,
        on_progress: OnProgress | None = None,
        on_check: OnCheck | None = None,
    ) -> Version:
        """As Models.repair, with the same RPCs."""
        told = Told(on_progress, on_check, timeout)
        return await self._session.run(repair(path, name, version, told))

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
