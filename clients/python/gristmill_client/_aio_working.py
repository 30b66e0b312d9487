"""Long work, as the async client shows it: the twin of _models_working.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gristmill_client import _operation_flows as operations
from gristmill_client import _work_flows as flows
from gristmill_client._aio_session import AsyncSession
from gristmill_client.operations import AsyncOperation, aio_bound
from gristmill_client.resources import Conversion, Profile, Source, Task, Version


class AsyncWorking:
    """Arguments, results and errors are those of Working."""

    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def evaluate(
        self,
        name: str,
        version: int | str | None = None,
        *,
        data: str,
        data_version: int | str | None = None,
        metric_prefix: str = "",
    ) -> AsyncOperation[Version]:
        """As Models.evaluate. RPC EvaluateModelVersion."""
        flow = flows.evaluate(name, version, data, data_version, metric_prefix)
        return aio_bound(await self._session.run(flow), self._session)

    async def convert(
        self,
        name: str,
        version: int | str | None = None,
        *,
        to: Conversion,
        max_difference: float | None = None,
    ) -> AsyncOperation[Version]:
        """As Models.convert. RPC ConvertModelVersion."""
        flow = flows.convert(name, version, to, max_difference)
        return aio_bound(await self._session.run(flow), self._session)

    async def profile(
        self,
        name: str,
        version: int | str | None = None,
        *,
        batch_sizes: Sequence[int] = (),
        lengths: Sequence[int] = (),
    ) -> AsyncOperation[Profile]:
        """As Models.profile. RPC ProfileModelVersion."""
        flow = flows.profile(name, version, batch_sizes, lengths)
        return aio_bound(await self._session.run(flow), self._session)

    async def profiles(self, name: str, version: int | str | None = None) -> list[Profile]:
        """As Models.profiles. RPC GetModelVersionProfile."""
        return await self._session.run(flows.profiles(name, version))

    async def import_(
        self, name: str, source: str, path: str, revision: str = "", *, task: Task | None = None
    ) -> AsyncOperation[Version]:
        """As Models.import_. RPCs GetModel, CreateModel, ImportModel."""
        flow = flows.import_model(name, source, path, revision, task)
        return aio_bound(await self._session.run(flow), self._session)

    async def sources(self) -> list[Source]:
        """As Models.sources. RPC ListSources."""
        return await self._session.run(flows.sources())

    async def operation(self, name: str) -> AsyncOperation[Any]:
        """As Models.operation. RPC google.longrunning.Operations/GetOperation."""
        return aio_bound(await self._session.run(operations.get(name)), self._session)

    async def list_operations(self, done: bool | None = None) -> list[AsyncOperation[Any]]:
        """As Models.list_operations. RPC google.longrunning.Operations/ListOperations."""
        found = await self._session.run(operations.listed(done))
        return [aio_bound(state, self._session) for state in found]
