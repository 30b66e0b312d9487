"""grpc.health.v1: Check, a Watch that stays open, and List; per service and per model.

"" is the process, a service's full name is that service, "models/{m}" is a model.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from services.runtime import standard
from services.runtime.errors import MODEL_NOT_LOADED, Draining, NotFound
from services.runtime.interceptors import Handler

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = 0, 1, 2, 3


class Health:
    """The statuses of this process and who watches them."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {"": NOT_SERVING}
        self._watchers: set[asyncio.Event] = set()
        self._draining = False

    def set(self, name: str, *, serving: bool) -> None:
        """Change one status; during a drain nothing turns SERVING any more."""
        self._statuses[name] = SERVING if serving and not self._draining else NOT_SERVING
        self._notify()

    def model(self, model: str, serving: bool | None) -> None:
        """Change the status of a model; None: it is not known here any more."""
        if serving is None:
            self.remove(f"models/{model}")
        else:
            self.set(f"models/{model}", serving=serving)

    def remove(self, name: str) -> None:
        """Forget a status: the model is not served here any more."""
        self._statuses.pop(name, None)
        self._notify()

    def drain(self) -> None:
        """Turn everything NOT_SERVING for good and end the watches."""
        self._draining = True
        for name in self._statuses:
            self._statuses[name] = NOT_SERVING
        self._notify()

    def status(self, name: str) -> int | None:
        """The status of a name; None where there is no such name."""
        return self._statuses.get(name)

    def statuses(self) -> dict[str, int]:
        """All of them."""
        return dict(self._statuses)

    async def watch(self, name: str) -> AsyncIterator[int]:
        """The status now, then each change, until the drain."""
        changed = asyncio.Event()
        self._watchers.add(changed)
        sent: int | None = None
        try:
            while True:
                changed.clear()
                # Read together: a drain that begins while the reader is slow is told too.
                status, last = self._statuses.get(name, SERVICE_UNKNOWN), self._draining
                if status != sent:
                    sent = status
                    yield status
                if last:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def _notify(self) -> None:
        for watcher in self._watchers:
            watcher.set()


class HealthServicer:
    """The wire side of `Health`."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC method names
        """The status of one name; NOT_FOUND where there is no such name."""
        status = self._health.status(request.service)
        if status is None:
            raise NotFound(f"unknown service {request.service!r}", reason=MODEL_NOT_LOADED)
        return standard.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The status of one name, now and whenever it changes."""
        async for status in self._health.watch(request.service):
            yield standard.HealthCheckResponse(status=status)
        raise Draining("this server is shutting down")

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Every name and its status."""
        response = standard.HealthListResponse()
        for name, status in self._health.statuses().items():
            response.statuses[name].status = status
        return response


def handlers(health: Health) -> dict[str, Handler]:
    """The method handlers of grpc.health.v1.Health."""
    servicer = HealthServicer(health)
    out = standard.HealthCheckResponse.SerializeToString
    check = standard.HealthCheckRequest.FromString
    return {
        "Check": grpc.unary_unary_rpc_method_handler(servicer.Check, check, out),
        "Watch": grpc.unary_stream_rpc_method_handler(servicer.Watch, check, out),
        "List": grpc.unary_unary_rpc_method_handler(
            servicer.List,
            standard.HealthListRequest.FromString,
            standard.HealthListResponse.SerializeToString,
        ),
    }
