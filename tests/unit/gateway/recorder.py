"""Stands for all services behind a gateway: notes who calls what, and answers with nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from gristmill.classifier.v1 import classifier_service_pb2 as classifier_pb
from gristmill.classifier.v1 import result_pb2

from services.runtime import standard
from tests.harness import CLASSIFY


class Recorder(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc's stubs say Any
    """Notes each call and answers it with an empty message."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.called = asyncio.Event()
        self.fault: tuple[grpc.StatusCode, str] | None = None

    @property
    def methods(self) -> list[str]:
        """What was called."""
        return [method for method, _ in self.calls]

    def service(self, details: Any) -> Any:
        """Health for the gateway's own probes; all else is noted."""
        answer: Callable[..., Any] = self._classify if details.method == CLASSIFY else self._answer
        if details.method in (f"/{standard.HEALTH}/Watch", f"/{standard.HEALTH}/Check"):
            answer = self._serving
        else:
            self.calls.append((details.method, dict(details.invocation_metadata)))
            self.called.set()
        return grpc.stream_stream_rpc_method_handler(answer)

    async def _serving(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        up = standard.HealthCheckResponse(status=standard.HealthCheckResponse.SERVING)
        yield up.SerializeToString()

    async def _classify(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        async for _ in self._answer(requests, context):
            # Who asks about one item must be told of one.
            one = result_pb2.ItemResult(classification=result_pb2.Classification())
            yield classifier_pb.ClassifyResponse(results=[one]).SerializeToString()

    async def _answer(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        if self.fault is not None:
            await context.abort(*self.fault)
        async for _ in requests:
            break
        yield b""
