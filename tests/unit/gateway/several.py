"""A gateway before several processes of the same services, which a test scripts and counts."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import grpc
import httpx
from gristmill.classifier.v1 import classifier_service_pb2 as classifier_pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as classifier_rpc
from gristmill.generator.v1 import generator_service_pb2 as generator_pb
from gristmill.generator.v1 import generator_service_pb2_grpc as generator_rpc
from gristmill.registry.v1 import model_pb2
from gristmill.registry.v1 import registry_service_pb2 as registry_pb
from gristmill.registry.v1 import registry_service_pb2_grpc as registry_rpc

from gateway.config import GatewayConfig
from gateway.server import HttpServer
from gateway.upstream import Upstream
from services.runtime.errors import Draining, ModelNotReady
from services.runtime.health import Health
from services.runtime.server import Service
from tests import harness
from tests.harness import SOON_S, soon

GET = ("GET", "/registry/v1/models/m", None)
LIST = ("GET", "/registry/v1/models", None)
GENERATE = ("POST", "/generator/v1/generate", {"prompts": [{"text": {"text": "x"}}]})
CLASSIFY_STREAM = (
    "POST",
    "/classifier/v1/classify:stream",
    {"items": [{"text": {"text": "a"}}, {"text": {"text": "b"}}]},
)
Request = tuple[str, str, Any]
Script = Callable[[str, Any], Awaitable[None]]
Base: Any = type(
    "Base",
    (
        classifier_rpc.ClassifierServiceServicer,
        generator_rpc.GeneratorServiceServicer,
        registry_rpc.RegistryServiceServicer,
    ),
    {},
)


class Process(Base):  # type: ignore[misc]  # what is missing is UNIMPLEMENTED
    """A process with all three services: it notes each call and then does what the test says."""

    def __init__(self, does: Script | None = None) -> None:
        self.does = does
        self.calls: list[str] = []
        self.times_left: list[float] = []
        self.health = Health()
        self.port = 0
        self._running = AsyncExitStack()

    @property
    def target(self) -> str:
        """Where it listens, or did."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen; where it listened before, if it did."""
        service = Service(
            "harness",
            servicers=[
                (classifier_rpc.add_ClassifierServiceServicer_to_server, self),
                (generator_rpc.add_GeneratorServiceServicer_to_server, self),
                (registry_rpc.add_RegistryServiceServicer_to_server, self),
            ],
        )
        self.health = Health()
        serving = harness.serve(
            service, "grpcio", health=self.health, port=self.port, drain_grace_s=0.0
        )
        self.port = (await self._running.enter_async_context(serving)).server.port

    async def stop(self) -> None:
        """Listen no more."""
        await self._running.aclose()

    async def _called(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.times_left.append(context.time_remaining())
        if self.does is not None:
            await self.does(name, context)

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC names
        """Repeatable by its own account."""
        await self._called("GetModel", context)
        return registry_pb.GetModelResponse(model=model_pb2.Model(name=request.name))

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Another one."""
        await self._called("ListModels", context)
        return registry_pb.ListModelsResponse()

    async def CreateModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Repeatable with a request id."""
        await self._called("CreateModel", context)
        return registry_pb.CreateModelResponse(model=request.model)

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not repeatable."""
        await self._called("Generate", context)
        return generator_pb.GenerateResponse(model="m")

    async def ClassifyStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """One message for each item; what the test does comes before each."""
        for index in range(len(request.items)):
            await self._called(f"ClassifyStream[{index}]", context)
            yield classifier_pb.ClassifyStreamResponse(index=index)

    async def ClassifyBidi(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Fails before the first message, or echoes the ids."""
        await self._called("ClassifyBidi", context)
        async for request in requests:
            for item in request.items:
                yield harness.bidi_response(item.id)


async def bare(name: str, context: Any) -> None:
    """As a proxy or a dying process answers: UNAVAILABLE without a word of ours."""
    await context.abort(grpc.StatusCode.UNAVAILABLE, "connection reset")


def refusing(error: Callable[[], Exception]) -> Script:
    """A process that refuses everything before it begins, in the words of the contract."""

    async def refuse(name: str, context: Any) -> None:
        raise error()

    return refuse


def draining() -> Exception:
    """What a process says that shuts down."""
    return Draining("this server is shutting down")


def loading() -> Exception:
    """What a process says whose model is not there yet."""
    return ModelNotReady("the model is loading", retry_after_s=6.2)


def failing(*names: str, first: int = 10**9) -> Script:
    """A process whose `first` calls of these names fail as if nothing had been reached."""
    left = dict.fromkeys(names, first)

    async def fail(name: str, context: Any) -> None:
        if left.get(name, 0):
            left[name] -= 1
            await bare(name, context)

    return fail


@asynccontextmanager
async def processes(*does: Script | None) -> AsyncIterator[list[Process]]:
    """So many processes, running."""
    started = [Process(script) for script in does]
    try:
        for one in started:
            await one.start()
        yield started
    finally:
        for one in started:
            await one.stop()


@contextmanager
def dead_address() -> Iterator[str]:
    """An address that refuses connections and that nobody else takes."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@asynccontextmanager
async def silent_address() -> AsyncIterator[str]:
    """An address that takes connections and never says a word, as a stopped process does."""
    writers = []

    def take(_: Any, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


class Before:
    """The gateway and a client of it."""

    def __init__(self, gateway: HttpServer, client: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self._client = client

    def upstream(self, name: str = "registry") -> Upstream:
        """What the gateway knows of a service."""
        return self.gateway.gateway.calls.upstreams[name]

    async def ask(self, request: Request = GET, **more: Any) -> httpx.Response:
        """One request."""
        method, path, body = request
        return await soon(self._client.request(method, path, json=body, **more))


@asynccontextmanager
async def before(*addresses: str, **config: Any) -> AsyncIterator[Before]:
    """A gateway before the processes at these addresses."""
    named = dict.fromkeys(("registry", "classifier", "generator"), ",".join(addresses))
    given = {"port": 0, "admin_port": -1, "drain_grace_s": 5.0, **named, **config}
    gateway = HttpServer(GatewayConfig(**given))
    await gateway.start()
    base = f"http://127.0.0.1:{gateway.port}"
    async with httpx.AsyncClient(base_url=base, timeout=SOON_S, trust_env=False) as client:
        try:
            yield Before(gateway, client)
        finally:
            await soon(gateway.drain())


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what has no event."""
    async with asyncio.timeout(SOON_S):
        while not holds():
            await asyncio.sleep(0.01)
