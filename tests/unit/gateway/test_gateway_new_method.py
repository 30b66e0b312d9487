"""An RPC that the contract gets tomorrow is there over HTTP, with no change of the gateway."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from gristmill.classifier.v1 import classifier_service_pb2
from websockets.asyncio.client import connect

from gateway.config import GatewayConfig
from gateway.contract import Mounted
from gateway.server import HttpServer
from services.runtime.auth import SCOPES
from tests.harness import SOON_S, soon

SERVICE = "gristmill.classifier.v1.ClassifierService"
NEW = ("Explain", "ExplainStream", "ExplainBidi")


def tomorrow() -> Any:
    """The classifier's service with three more RPCs, as if their proto had been compiled."""
    pool = descriptor_pool.DescriptorPool()

    def add(file: Any, into: descriptor_pb2.FileDescriptorProto) -> None:
        for one in file.dependencies:
            known = descriptor_pb2.FileDescriptorProto()
            one.CopyToProto(known)
            if known.name not in added:
                added.add(known.name)
                add(one, known)
        pool.Add(into)

    added: set[str] = set()
    file = descriptor_pb2.FileDescriptorProto()
    classifier_service_pb2.DESCRIPTOR.CopyToProto(file)
    for name, client, server in (
        ("Explain", False, False),
        ("ExplainStream", False, True),
        ("ExplainBidi", True, True),
    ):
        method = file.service[0].method.add(
            name=name,
            input_type=".gristmill.classifier.v1.LoadModelRequest",
            output_type=".gristmill.classifier.v1.LoadModelResponse",
            client_streaming=client,
            server_streaming=server,
        )
        rule = method.options.Extensions[annotations_pb2.http]
        if client:
            rule.get = "/classifier/v1/explain:bidi"
        else:
            rule.post = f"/classifier/v1/{{model.model}}:{'stream' if server else 'explain'}"
            rule.body = "*"
    add(classifier_service_pb2.DESCRIPTOR, file)
    return pool.FindServiceByName(SERVICE)


class Behind(grpc.GenericRpcHandler):
    """Answers all three: the model's name, in capitals."""

    def __init__(self, service: Any) -> None:
        method = service.methods_by_name["Explain"]
        self._request = message_factory.GetMessageClass(method.input_type)
        self._response = message_factory.GetMessageClass(method.output_type)

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method."""
        kinds = {
            f"/{SERVICE}/Explain": (grpc.unary_unary_rpc_method_handler, self._one),
            f"/{SERVICE}/ExplainStream": (grpc.unary_stream_rpc_method_handler, self._twice),
            f"/{SERVICE}/ExplainBidi": (grpc.stream_stream_rpc_method_handler, self._each),
        }
        kind, behaviour = kinds[handler_call_details.method]
        return kind(behaviour, self._request.FromString, self._response.SerializeToString)

    def _answer(self, request: Any) -> Any:
        answer = self._response()
        answer.model.model = request.model.model.upper()
        answer.model.version = request.model.version
        return answer

    async def _one(self, request: Any, context: Any) -> Any:
        return self._answer(request)

    async def _twice(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield self._answer(request)
        yield self._answer(request)

    async def _each(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield self._answer(request)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one table that a new RPC has to be in: who may call it."""
    for name in NEW:
        monkeypatch.setitem(SCOPES, f"/{SERVICE}/{name}", "infer")


@asynccontextmanager
async def gateway() -> AsyncIterator[httpx.AsyncClient]:
    """A gateway that reads tomorrow's contract, in front of a server that has it."""
    service = tomorrow()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Behind(service),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    address = dict.fromkeys(("registry", "classifier", "generator"), f"127.0.0.1:{port}")
    http = HttpServer(
        GatewayConfig(port=0, admin_port=-1, **address), [Mounted("classifier", service)]
    )
    await http.start()
    base = f"http://127.0.0.1:{http.port}"
    async with httpx.AsyncClient(base_url=base, timeout=SOON_S, trust_env=False) as client:
        yield client
    await soon(http.drain())
    await server.stop(None)


async def test_a_unary_method_is_json_with_its_path_and_body() -> None:
    async with gateway() as client:
        answer = await client.post("/classifier/v1/abc:explain", json={"model": {"version": 7}})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["model"] == "ABC"
        assert answer.json()["model"]["version"] == 7
        wrong = await client.post("/classifier/v1/abc:explain", json={"model": {"x": 1}})
        assert (wrong.status_code, wrong.json()["error"]["reason"]) == (400, "INVALID_FIELD")


async def test_a_server_stream_is_events_and_lines() -> None:
    async with gateway() as client:
        url = "/classifier/v1/abc:stream"
        events = await client.post(url, json={})
        assert events.headers["content-type"] == "text/event-stream"
        assert events.text.count("data: ") == 2
        lines = await client.post(url, json={}, headers={"accept": "application/x-ndjson"})
        assert [json.loads(line)["model"]["model"] for line in lines.text.splitlines()] == [
            "ABC",
            "ABC",
        ]


async def test_a_bidi_stream_is_a_websocket() -> None:
    async with gateway() as client:
        url = f"ws://127.0.0.1:{client.base_url.port}/classifier/v1/explain:bidi"
        async with asyncio.timeout(SOON_S), connect(url) as socket:
            for name in ("a", "b"):
                await socket.send(json.dumps({"model": {"model": name}}))
            await socket.send("")
            found = [json.loads(message)["model"]["model"] async for message in socket]
    assert found == ["A", "B"]
    assert socket.close_code == 1000


async def test_all_are_documented() -> None:
    async with gateway() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    for ending, verb in ((":explain", "post"), (":stream", "post"), (":bidi", "get")):
        (found,) = [
            one[verb]
            for path, one in paths.items()
            if path.endswith(ending) and "_Explain" in one.get(verb, {}).get("operationId", "")
        ]
        assert found["responses"]
        assert found["x-gristmill-scope"] == "infer"
