"""A gateway over real sockets: uvicorn in front, scripted servicers on grpc.aio behind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from gristmill.classifier.v1 import classifier_service_pb2_grpc as classifier_rpc
from gristmill.registry.v1 import model_pb2, registry_service_pb2
from gristmill.registry.v1 import registry_service_pb2_grpc as registry_rpc

from gateway.config import GatewayConfig
from gateway.server import HttpServer
from services.runtime.call import current_call
from services.runtime.server import Service
from tests import harness
from tests.harness import SOON_S, Scripted, Served, soon

BODY = {"items": [{"text": {"text": "good"}}]}
CLASSIFY = "/classifier/v1/classify"
STREAM = "/classifier/v1/classify:stream"
WATCH = "/registry/v1/watch"


class Registry(registry_rpc.RegistryServiceServicer):
    """A registry that echoes, and a watch that the test holds open."""

    def __init__(self) -> None:
        self.watching = asyncio.Event()
        self.watch_ended = asyncio.Event()

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC names
        """A model of the name asked for."""
        model = model_pb2.Model(name=request.name, latest_version=0)
        return registry_service_pb2.GetModelResponse(model=model)

    async def UpdateModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """What was sent, and the mask as its description."""
        request.model.description += "|" + ",".join(request.update_mask.paths)
        return registry_service_pb2.UpdateModelResponse(model=request.model)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """One message, then silence."""
        try:
            yield registry_service_pb2.WatchResponse(revision=request.after_revision)
            self.watching.set()
            await asyncio.Event().wait()
        finally:
            self.watch_ended.set()


@dataclass
class Stack:
    """A gateway, what is behind it, and a client in front."""

    gateway: HttpServer
    behind: Served
    client: httpx.AsyncClient
    registry: Registry
    calls: list[Any] = field(default_factory=list)

    async def classify(self, **more: Any) -> httpx.Response:
        """The plainest unary request."""
        return await soon(self.client.post(CLASSIFY, json=BODY, **more))


@asynccontextmanager
async def stack(
    unary: harness.Behaviour | None = None,
    stream: harness.Behaviour | None = None,
    bidi: harness.Behaviour | None = None,
    behind: dict[str, Any] | None = None,
    **config: Any,
) -> AsyncIterator[Stack]:
    """Run the whole of it; what the classifier does is the test's."""
    registry = Registry()  # type: ignore[abstract]  # what is missing is UNIMPLEMENTED
    calls: list[Any] = []

    async def noted(request: Any, context: Any) -> Any:
        calls.append((request, current_call(), context.time_remaining()))
        return await unary(request, context) if unary else None

    add = classifier_rpc.add_ClassifierServiceServicer_to_server
    service = Service(
        "harness",
        servicers=[
            (add, Scripted(unary=noted, stream=stream, bidi=bidi)),  # type: ignore[abstract]  # as above
            (registry_rpc.add_RegistryServiceServicer_to_server, registry),
        ],
    )
    async with harness.serve(service, "grpcio", **(behind or {})) as served:
        address = dict.fromkeys(("registry", "classifier", "generator"), served.target)
        given = {"port": 0, "admin_port": -1, "drain_grace_s": 5.0, **address, **config}
        gateway = HttpServer(GatewayConfig(**given))
        await gateway.start()
        base = f"http://127.0.0.1:{gateway.port}"
        async with httpx.AsyncClient(base_url=base, timeout=SOON_S, trust_env=False) as client:
            try:
                yield Stack(gateway, served, client, registry, calls)
            finally:
                await soon(gateway.drain())


def error_of(response: httpx.Response, status: int, reason: str) -> dict[str, Any]:
    """The error in a response, which must have the one shape."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"code", "status", "reason", "message", "details", "requestId"}
    assert error["code"] == status
    assert error["reason"] == reason
    assert error["requestId"] == response.headers["x-request-id"]
    return error


def events(text: str) -> list[str]:
    """The blocks of an event stream."""
    return [block for block in text.split("\n\n") if block]
