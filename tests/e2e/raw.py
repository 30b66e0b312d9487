"""Requests, answers and frames of WebSockets as bytes: what no client of the better kind sends."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.e2e.steady_caller import BODY, PATH

POST = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode()
BIDI = (
    b"GET /classifier/v1/classify:bidi HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n"
    b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
GET = b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n"


async def send(writer: asyncio.StreamWriter, parts: tuple[bytes | Iterator[bytes], ...]) -> None:
    """All of it, or as much as is taken."""
    with suppress(ConnectionError):
        for part in parts:
            for piece in (part,) if isinstance(part, bytes) else part:
                writer.write(piece)
                await writer.drain()


@dataclass
class Answer:
    """What came back; status 0 where the connection was cut."""

    status: int = 0
    body: bytes = b""

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> "Answer":
        """The next answer of a connection."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            fields = dict(one.lower().split(b": ", 1) for one in head.split(b"\r\n")[1:] if one)
            if status < 200:
                return cls(status)
            return cls(status, await reader.readexactly(int(fields[b"content-length"])))
        except (asyncio.IncompleteReadError, ConnectionError):
            return cls()

    @property
    def error(self) -> Any:
        """The error that it is."""
        return json.loads(self.body)["error"]

    def __str__(self) -> str:
        return f"{self.status} {self.body[:200]!r}"


def refused(answer: Answer, status: int, reason: str, text: str = "") -> None:
    """As documented."""
    assert answer.status == status, str(answer)
    assert answer.error["reason"] == reason, str(answer)
    assert text in answer.error["message"], str(answer)


def length(body: bytes) -> bytes:
    """The end of a head."""
    return b"content-length: %d\r\n\r\n" % len(body)


def padded(size: int) -> bytes:
    """A good request of so many bytes."""
    return BODY + b" " * (size - len(BODY))


def frame(text: bytes, *, opcode: int = 1, last: bool = True) -> bytes:
    """A frame of a WebSocket, masked with zeros."""
    size = len(text)
    if size < 126:
        coded = bytes([128 + size])
    elif size < 65_536:
        coded = b"\xfe" + size.to_bytes(2, "big")
    else:
        coded = b"\xff" + size.to_bytes(8, "big")
    return bytes([opcode | (128 if last else 0)]) + coded + bytes(4) + text


def chunks(sizes: Iterator[int]) -> Iterator[bytes]:
    """Blanks, in chunks of these sizes."""
    for size in sizes:
        yield b"%x\r\n%s\r\n" % (size, b" " * size)
    yield b"0\r\n\r\n"


def one_by_one(body: bytes) -> bytes:
    """A body in chunks of one byte."""
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
