"""What a server tells of itself: spans to a real OTLP collector, /metrics, channelz."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc

from tests.harness import CLASSIFY, Scripted, request, serve, soon

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = ("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-01")
UNSAMPLED = ("traceparent", f"00-{TRACE_ID}-b7ad6b7169203331-00")


class Collector(otlp_rpc.TraceServiceServicer):
    """Keeps the spans that it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC names
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return otlp.ExportTraceServiceResponse()


@asynccontextmanager
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    """A collector in this process, and its endpoint."""
    server, kept = grpc.aio.server(), Collector()
    otlp_rpc.add_TraceServiceServicer_to_server(kept, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield kept, f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def test_a_sampled_call_is_exported_under_its_caller_s_trace(transport: str) -> None:
    async with collector() as (kept, endpoint):
        async with serve(Scripted(), transport, otlp_endpoint=endpoint) as served:
            await soon(served.stub.Classify(request(), metadata=(SAMPLED,)))
            await soon(served.stub.Classify(request(), metadata=(UNSAMPLED,)))
            # The flush waits for the collector, which answers on this loop.
            await asyncio.to_thread(served.server._tracing.flush)
        (span,) = kept.spans
        assert span.trace_id.hex() == TRACE_ID
        assert span.parent_span_id.hex() == "b7ad6b7169203331"
        assert span.name == CLASSIFY[1:]
        told = {pair.key: pair.value.string_value for pair in span.attributes}
        assert told["rpc.system"] == "grpc"
        assert told["rpc.grpc.status"] == "OK"


async def test_metrics_are_there_to_be_scraped(transport: str) -> None:
    async with serve(Scripted(), transport, admin_port=0) as served:
        await soon(served.stub.Classify(request()))
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{served.server.admin_port}/metrics")
        line = (
            f'grpc_server_call_duration_seconds_count{{grpc_method="{CLASSIFY}",grpc_status="OK"}}'
        )
        assert line in answer.text
        assert "gristmill_build_info{" in answer.text


async def test_channelz_is_on_a_port_of_its_own(transport: str) -> None:
    async with serve(Scripted(), transport, channelz_port=0) as served:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.server.channelz_port}") as channel:
            stub = channelz_pb2_grpc.ChannelzStub(channel)
            servers = await soon(stub.GetServers(channelz_pb2.GetServersRequest()))
        assert servers.server
        with_callers = channelz_pb2_grpc.ChannelzStub(served.open())
        refused = with_callers.GetServers(channelz_pb2.GetServersRequest())
        try:
            await soon(refused)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        else:
            raise AssertionError("channelz is on the callers' port")
