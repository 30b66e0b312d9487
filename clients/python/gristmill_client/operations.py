"""Long work of the registry: what is known of it, and how to wait for it or end it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

from gristmill_client import _operation_flows as flows
from gristmill_client._aio_session import AsyncSession
from gristmill_client._operation_state import OperationState
from gristmill_client._session import Session

R = TypeVar("R")
OnOperation: TypeAlias = Callable[[OperationState[Any]], None]

__all__ = ["AsyncOperation", "OnOperation", "Operation", "OperationState"]


@dataclass(frozen=True, slots=True)
class Operation(OperationState[R], Generic[R]):
    """Long work as it stood when it was asked for; `refresh` asks again."""

    _session: Session = field(repr=False, compare=False, kw_only=True)

    def wait(self, timeout: float | None = None, on_progress: OnOperation | None = None) -> R:
        """Waits for the end and gives the result; raises the error that the work ended with.

        `timeout` in seconds, None: as long as it takes; when it is up DeadlineExceeded is raised
        and the work goes on. `on_progress` hears the state about once a second. A registry that
        restarts meanwhile is waited for. RPC google.longrunning.Operations/WaitOperation.
        """
        ended = self._session.run(flows.wait(self, timeout, on_progress))
        result: R = flows.result_of(ended)
        return result

    def refresh(self) -> Operation[R]:
        """The same work as it stands now. RPC google.longrunning.Operations/GetOperation."""
        return bound(self._session.run(flows.get(self.name)), self._session)

    def cancel(self) -> None:
        """Asks that the work end: `wait` then raises Cancelled, unless it was done before.

        RPC google.longrunning.Operations/CancelOperation.
        """
        self._session.run(flows.cancel(self.name))

    def delete(self) -> None:
        """Forgets work that has ended. RPC google.longrunning.Operations/DeleteOperation."""
        self._session.run(flows.delete(self.name))


@dataclass(frozen=True, slots=True)
class AsyncOperation(OperationState[R], Generic[R]):
    """The twin of Operation, awaiting; arguments, results and errors are the same."""

    _session: AsyncSession = field(repr=False, compare=False, kw_only=True)

    async def wait(self, timeout: float | None = None, on_progress: OnOperation | None = None) -> R:
        """As Operation.wait. RPC google.longrunning.Operations/WaitOperation."""
        ended = await self._session.run(flows.wait(self, timeout, on_progress))
        result: R = flows.result_of(ended)
        return result

    async def refresh(self) -> AsyncOperation[R]:
        """As Operation.refresh. RPC google.longrunning.Operations/GetOperation."""
        return aio_bound(await self._session.run(flows.get(self.name)), self._session)

    async def cancel(self) -> None:
        """As Operation.cancel. RPC google.longrunning.Operations/CancelOperation."""
        await self._session.run(flows.cancel(self.name))

    async def delete(self) -> None:
        """As Operation.delete. RPC google.longrunning.Operations/DeleteOperation."""
        await self._session.run(flows.delete(self.name))


def bound(state: OperationState[Any], session: Session) -> Operation[Any]:
    return Operation(*_values(state), _session=session)


def aio_bound(state: OperationState[Any], session: AsyncSession) -> AsyncOperation[Any]:
    return AsyncOperation(*_values(state), _session=session)


def _values(state: OperationState[Any]) -> list[Any]:
    return [getattr(state, part.name) for part in dataclasses.fields(OperationState)]
