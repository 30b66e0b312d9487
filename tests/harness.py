"""What tests of a running server share: a server in this process, a clock, the parts of an error.

Knows the runtime and the contract, no service.
"""

import asyncio
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from gristmill.classifier.v1 import classifier_service_pb2 as pb
from gristmill.classifier.v1 import classifier_service_pb2_grpc as rpc
from gristmill.classifier.v1 import item_pb2
from grpc_reflection.v1alpha import reflection_pb2
from prometheus_client import REGISTRY
from pydantic_settings import SettingsConfigDict

from services.runtime import standard
from services.runtime.config import ServerConfig
from services.runtime.health import Health
from services.runtime.server import Server, Service

TRANSPORTS = ("grpcio", "native")
CLASSIFY = "/gristmill.classifier.v1.ClassifierService/Classify"
# An upper bound on what should take milliseconds: a test that hangs fails here and says where.
SOON_S = 20.0

T = TypeVar("T")
DetailT = TypeVar("DetailT", bound=Message)
Behaviour = Callable[[Any, Any], Any]


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class HarnessConfig(ServerConfig):
    """The settings of a test server, out of reach of the machine's environment."""

    model_config = SettingsConfigDict(env_prefix="GRISTMILL_HARNESS_")


class Scripted(rpc.ClassifierServiceServicer):
    """A classifier that does what the test hands it; all three shapes of call."""

    def __init__(
        self,
        unary: Behaviour | None = None,
        stream: Behaviour | None = None,
        bidi: Behaviour | None = None,
    ) -> None:
        self._unary, self._stream, self._bidi = unary, stream, bidi

    async def Classify(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC names
        """Do what the test said, or answer."""
        answer = await self._unary(request, context) if self._unary else None
        return answer if answer is not None else pb.ClassifyResponse(model="m")

    async def ClassifyStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Do what the test said, or answer each item."""
        if self._stream:
            async with aclosing(self._stream(request, context)) as responses:
                async for response in responses:
                    yield response
            return
        for index in range(len(request.items)):
            yield pb.ClassifyStreamResponse(index=index)

    async def ClassifyBidi(self, requests: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Do what the test said, or echo the ids."""
        if self._bidi:
            async with aclosing(self._bidi(requests, context)) as responses:
                async for response in responses:
                    yield response
            return
        async for request in requests:
            for item in request.items:
                yield bidi_response(item.id)


def classifier(servicer: rpc.ClassifierServiceServicer, **more: Any) -> Service:
    """The service around a classifier servicer."""
    add = rpc.add_ClassifierServiceServicer_to_server
    return Service("harness", servicers=[(add, servicer)], **more)


def item(text: str = "x") -> item_pb2.Item:
    """One item."""
    return item_pb2.Item(text=item_pb2.Text(text=text))


def request(*texts: str, **fields: Any) -> pb.ClassifyRequest:
    """A request within the bounds of the contract."""
    return pb.ClassifyRequest(items=[item(text) for text in texts or ("x",)], **fields)


def stream_request(count: int = 1) -> pb.ClassifyStreamRequest:
    """A request for a server stream of `count` results."""
    return pb.ClassifyStreamRequest(items=[item()] * count)


def bidi_request(*ids: str) -> pb.ClassifyBidiRequest:
    """One message of a bidi stream."""
    return pb.ClassifyBidiRequest(items=[pb.BidiItem(id=name, item=item()) for name in ids])


def bidi_response(name: str = "", **fields: Any) -> pb.ClassifyBidiResponse:
    """One message of a bidi stream's answers."""
    return pb.ClassifyBidiResponse(results=[pb.BidiResult(id=name, **fields)])


@dataclass
class Served:
    """A server that listens, and a channel to it."""

    server: Server
    channel: Any
    _opened: list[Any] = field(default_factory=list)

    @property
    def target(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.server.port}"

    @property
    def stub(self) -> rpc.ClassifierServiceStub:
        """A classifier stub on the channel."""
        return rpc.ClassifierServiceStub(self.channel)

    def open(self, *options: tuple[str, Any], **more: Any) -> Any:
        """Another channel, on a connection of its own; closed with the server."""
        alone = (("grpc.use_local_subchannel_pool", 1), *options)
        self._opened.append(grpc.aio.insecure_channel(self.target, options=alone, **more))
        return self._opened[-1]

    async def idle(self) -> None:
        """Wait until the server has ended every call, on its own side too."""
        assert await self.server.interceptor.wait_idle(SOON_S), "calls are still in flight"

    async def close(self) -> None:
        """Close the channels, then drain where the test has not."""
        for channel in (*self._opened, self.channel):
            await channel.close()
        if not self.server.interceptor.draining:
            await self.server.drain()


@asynccontextmanager
async def serve(
    service: Service | rpc.ClassifierServiceServicer,
    transport: str,
    *,
    health: Health | None = None,
    linger: bool = False,
    **config: Any,
) -> AsyncIterator[Served]:
    """Run a server in this process on a free port of the loopback.

    It closes without lingering for the last answers, unless a test is about them.
    """
    if not isinstance(service, Service):
        service = classifier(service)
    given = {"admin_port": -1, "log_sample_every": 0, "drain_grace_s": 5.0, **config}
    settings = HarnessConfig(transport=transport, **given)
    server = Server(settings, service, health or Health())
    server.linger_s = server.linger_s if linger else 0.0
    await server.start()
    server.ready()
    served = Served(server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}"))
    try:
        yield served
    finally:
        await served.close()


async def soon(awaitable: Awaitable[T]) -> T:
    """Await what must come, and fail rather than hang where it does not."""
    async with asyncio.timeout(SOON_S):
        return await awaitable


async def failure(call: Awaitable[Any]) -> Any:
    """The error that a call must end with."""
    try:
        answer = await soon(call)
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"the call was answered: {answer!r}")


async def collect(responses: Any, into: list[Any] | None = None) -> list[Any]:
    """All messages of a stream, or of one made by calling; what came first is left in `into`.

    Where a server ends a stream while grpc.aio still writes to it, the status may be lost to the
    client's own "Internal error from Core": what can be made again is asked again then.
    """
    found = [] if into is None else into
    async with asyncio.timeout(SOON_S):
        while True:
            found.clear()
            try:
                async for response in responses() if callable(responses) else responses:
                    found.append(response)
            except grpc.aio.AioRpcError as error:
                if not callable(responses) or error.details() != "Internal error from Core":
                    raise
            else:
                return found


def metadata(error: Any) -> dict[str, str | bytes]:
    """The trailing metadata of a failed call."""
    return {key: value for key, value in error.trailing_metadata() or ()}  # noqa: C416  # not pairs


def status_of(error: Any) -> status_pb2.Status:
    """The google.rpc.Status that a failed call carries."""
    packed = metadata(error).get("grpc-status-details-bin", b"")
    assert isinstance(packed, bytes)
    return status_pb2.Status.FromString(packed)


def details(status: status_pb2.Status, kind: type[DetailT]) -> list[DetailT]:
    """The details of one kind in a status."""
    found = []
    for packed in status.details:
        detail = kind()
        if packed.Unpack(detail):
            found.append(detail)
    return found


def error_info(error: Any) -> error_details_pb2.ErrorInfo:
    """The one ErrorInfo of a failed call."""
    (info,) = details(status_of(error), error_details_pb2.ErrorInfo)
    return info


def reason(error: Any) -> str:
    """The reason that a failed call gives, of our domain."""
    info = error_info(error)
    assert info.domain == "gristmill"
    return info.reason


def metric(name: str, **labels: str) -> float:
    """The value of a metric of this process; 0 where it was never touched."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


def metric_sum(name: str, **labels: str) -> float:
    """The sum of a metric over the labels that are not given."""
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Reflection:
    """What a client learns from a server's reflection service alone, as grpcurl does."""

    def __init__(self, channel: Any, version: str = "v1", metadata: Any = None) -> None:
        self._metadata = metadata
        self._ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        self.pool = descriptor_pool.DescriptorPool()
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}

    async def ask(self, **question: Any) -> Any:
        """The answer to one question, on a stream of its own."""
        asked = reflection_pb2.ServerReflectionRequest(**question)
        (answer,) = await collect(self._ask(iter([asked]), metadata=self._metadata))
        return answer

    async def services(self) -> list[str]:
        """The names of the services."""
        answer = await self.ask(list_services="")
        return [service.name for service in answer.list_services_response.service]

    async def load(self, **question: Any) -> str:
        """Fetch a file and all that it imports into the pool; gives its name."""
        answer = await self.ask(**question)
        assert answer.HasField("file_descriptor_response"), answer
        packed = answer.file_descriptor_response.file_descriptor_proto
        found = [descriptor_pb2.FileDescriptorProto.FromString(one) for one in packed]
        new = {file.name: file for file in found if file.name not in self._files}
        self._files.update(new)
        for file in new.values():
            for needed in file.dependency:
                if needed not in self._files:
                    await self.load(file_by_filename=needed)
        for file in new.values():
            self._add(file)
        return found[0].name

    def _add(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        for needed in file.dependency:
            self._add(self._files[needed])
        self.pool.AddSerializedFile(file.SerializeToString())

    async def methods(self) -> dict[str, Any]:
        """The descriptor of every method of every service, by its path."""
        found = {}
        for name in await self.services():
            await self.load(file_containing_symbol=name)
            for method in self.pool.FindServiceByName(name).methods:
                found[f"/{name}/{method.name}"] = method
        return found


def health_stream(channel: Any, name: str = "") -> Any:
    """An open Watch of one name."""
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=standard.HealthCheckRequest.SerializeToString,
        response_deserializer=standard.HealthCheckResponse.FromString,
    )
    return watch(standard.HealthCheckRequest(service=name))


async def health_check(channel: Any, name: str = "") -> int:
    """The status of one name."""
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=standard.HealthCheckRequest.SerializeToString,
        response_deserializer=standard.HealthCheckResponse.FromString,
    )
    return int((await soon(check(standard.HealthCheckRequest(service=name)))).status)


async def health_list(channel: Any) -> dict[str, int]:
    """Every name and its status."""
    listing = channel.unary_unary(
        "/grpc.health.v1.Health/List",
        request_serializer=standard.HealthListRequest.SerializeToString,
        response_deserializer=standard.HealthListResponse.FromString,
    )
    answer = await soon(listing(standard.HealthListRequest()))
    return {name: entry.status for name, entry in answer.statuses.items()}


DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8


@dataclass(frozen=True)
class Frame:
    """One HTTP/2 frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


class RawHttp2:
    """An HTTP/2 client that sends what grpc's own refuses to, and shows the frames it gets."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.answers_pings = True

    @classmethod
    @asynccontextmanager
    async def connect(cls, port: int) -> AsyncIterator["RawHttp2"]:
        """A connection whose preface has been sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        raw = cls(reader, writer)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        raw.send(SETTINGS)
        try:
            yield raw
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def send(self, kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> None:
        """Send one frame."""
        length = struct.pack(">I", len(payload))[1:]
        self._writer.write(length + struct.pack(">BBI", kind, flags, stream) + payload)

    def call(
        self,
        path: str,
        headers: dict[bytes, bytes],
        message: Message | bytes,
        stream: int = 1,
        flag: int = 0,
    ) -> None:
        """Send a whole unary call; `flag` 1 says that the message is compressed."""
        fields = {
            b":method": b"POST",
            b":scheme": b"http",
            b":path": path.encode(),
            b":authority": b"localhost",
            b"content-type": b"application/grpc",
            b"te": b"trailers",
            **headers,
        }
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self.send(HEADERS, 0x4, stream, block)
        body = message if isinstance(message, bytes) else message.SerializeToString()
        self.send(DATA, 0x1, stream, struct.pack(">BI", flag, len(body)) + body)

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames as they come, until the server closes; pings are answered unless told not to."""
        while True:
            try:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            except (asyncio.IncompleteReadError, OSError):
                return
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            if kind == SETTINGS and not flags:
                self.send(SETTINGS, 1)
            if kind == PING and not flags and self.answers_pings:
                self.send(PING, 1, 0, payload)
            yield Frame(kind, flags, stream, payload)

    async def first(self, accept: Callable[[Frame], bool]) -> Frame | None:
        """The first frame that `accept` takes; None where the server closes before."""
        async with asyncio.timeout(SOON_S):
            async for frame in self.frames():
                if accept(frame):
                    return frame
        return None

    async def answered(self, stream: int) -> Frame | None:
        """The frame that ends a call, or the connection; None where the server just closes."""

        def ends(frame: Frame) -> bool:
            last = frame.kind in (DATA, HEADERS) and bool(frame.flags & 1)
            return frame.kind == GOAWAY or (
                frame.stream == stream and (last or frame.kind == RST_STREAM)
            )

        return await self.first(ends)


def _text(value: bytes) -> bytes:
    """A string literal of HPACK, without Huffman coding."""
    if len(value) < 127:
        return bytes([len(value)]) + value
    rest, out = len(value) - 127, bytearray([127])
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes(out) + bytes([rest]) + value


def lines_of(stderr: str) -> Iterator[str]:
    """Lines as the strictest reader splits them: at every separator that Unicode knows."""
    yield from (line for line in re.split(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", stderr) if line)
