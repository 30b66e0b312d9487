"""WebSockets to a gateway, as a client of its contract speaks them; and what they end with."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gateway.bodies import BodyBudget
from tests.harness import SOON_S, soon
from tests.unit.gateway.stack import Stack

BIDI = "/classifier/v1/classify:bidi"
LARGE = "x" * 2**20


def items(*ids: str, text: str = "good") -> str:
    """A message with these items."""
    return json.dumps({"items": [{"id": one, "item": {"text": {"text": text}}} for one in ids]})


def ids(message: Any) -> list[str]:
    """The ids of the results in a message."""
    return [one["id"] for one in message["results"]]


def answered(socket: ClientConnection) -> Headers:
    """The headers of the handshake's answer."""
    assert socket.response is not None
    return socket.response.headers


@asynccontextmanager
async def talk(s: Stack, path: str = BIDI, **more: Any) -> AsyncIterator[ClientConnection]:
    """An open WebSocket."""
    given = {"proxy": None, "ping_interval": None, "max_size": None, **more}
    async with connect(f"ws://127.0.0.1:{s.gateway.port}{path}", **given) as socket:
        yield socket


async def received(socket: ClientConnection) -> Any:
    """The next message."""
    return json.loads(await soon(socket.recv()))


@dataclass
class End:
    """How a WebSocket ended, and what came before."""

    messages: list[Any]
    code: int | None
    reason: str | None

    def error(self, code: int, reason: str) -> dict[str, Any]:
        """The error that ended it, which must be the last message, of the one shape."""
        assert (self.code, self.reason) == (code, reason), self
        last = self.messages[-1]
        assert set(last) == {"error"}
        error: dict[str, Any] = last["error"]
        assert set(error) == {"code", "status", "reason", "message", "details", "requestId"}
        assert error["reason"] == reason
        return error


async def end_of(socket: ClientConnection) -> End:
    """Everything that still comes, and the close."""
    messages = []
    try:
        async with asyncio.timeout(SOON_S):
            while True:
                messages.append(json.loads(await socket.recv()))
    except ConnectionClosed:
        return End(messages, socket.close_code, socket.close_reason)


async def refusal(s: Stack, path: str = BIDI, **more: Any) -> tuple[dict[str, Any], Any]:
    """The error that a handshake is refused with, and the headers beside it."""
    with pytest.raises(InvalidStatus) as caught:
        async with talk(s, path, **more):
            pass
    response = caught.value.response
    assert response.body is not None
    error: dict[str, Any] = json.loads(bytes(response.body))["error"]
    assert error["code"] == response.status_code
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == error["requestId"]
    assert response.headers["x-content-type-options"] == "nosniff"
    return error, response.headers


def frame(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """A short frame as a client sends it, masked with zeros."""
    return bytes([opcode | 0x80 * last, 0x80 | len(payload), 0, 0, 0, 0]) + payload


def budget(s: Stack) -> BodyBudget:
    """What the gateway counts the bodies that it holds with."""
    parts: Any = s.gateway.gateway.app.user_middleware[0].kwargs["parts"]
    found: BodyBudget = parts.bounds.budget
    return found
